"""SimA-XCiT-S12/16 on ImageNet-1k, 400 epochs: the paper's recipe.

Reaches: 82.1 % top-1 at 224 pixels, crop ratio 1.0 (Table 1; XCiT-S12/16: 82.0 %).
Takes:   about 100 hours on 8 RTX 6000 (the paper's figure).
Paper:   SimA, arXiv:2206.08898, section 4.1, and the command its code publishes (8 GPUs x 128, drop
         path 0.05).
Command: torchrun --nproc-per-node 8 -m softless train --recipe imagenet_sima_xcit_small --data
         IMAGENET \
             --set data.workers=10

The recipe of DeiT-S with XCiT's model and a hundred epochs more.
"""

from dataclasses import replace

from softless.experiment.groups import ModelSpec
from softless.experiment.recipe import Recipe
from softless.recipes import imagenet_sima_deit_small


def recipe() -> Recipe:
    deit = imagenet_sima_deit_small.recipe()
    return replace(
        deit,
        name="imagenet_sima_xcit_small",
        summary="the paper's SimA-XCiT-S12/16 on ImageNet-1k, 400 epochs",
        model=ModelSpec(name="sima_xcit_small_12_p16_224"),
        schedule=replace(deit.schedule, epochs=400),
    )
