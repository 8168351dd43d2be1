"""SimA in XCiT-S12/16, trained without labels by DINO.

Reaches: linear 75.5 %, 20-NN 71.2 % in the paper (table 4; XCiT-S12/16 itself 75.8 and 71.6); not
         run here. Measure with softless eval runs/imagenet_sima_dino --knn 20 --linear
Takes:   about 100 h on 4 RTX 3090 in the paper.
Paper:   Koohpayegani and Pirsiavash, SimA, arXiv:2206.08898, section 4.3: AdamW, rate 2.5e-4 at a
         batch of 256, weight decay 0.04 to 0.4, 100 epochs, the rest as DINO's for XCiT-S12/16
         (Caron et al., arXiv:2104.14294), whose list of arguments we could not read. So momentum,
         crops, clipping and warm-up are the defaults of its published code, the teacher's
         temperature (0.04 to 0.07 over 30 epochs) what its README recommends.
Command: torchrun --nproc-per-node 4 -m softless train --recipe imagenet_sima_dino --data IMAGENET
         --out runs/imagenet_sima_dino (XCiT itself: --set model.name=xcit_small_12_p16_224
         model.op=xca)
"""

from softless.experiment.groups import DataSpec, ModelSpec, OptimSpec, ScheduleSpec
from softless.experiment.recipe import Recipe
from softless.tasks.dino.settings import DinoSpec


def recipe() -> Recipe:
    return Recipe(
        name="imagenet_sima_dino",
        summary="SimA in XCiT-S12/16 on ImageNet without labels, DINO for 100 epochs",
        model=ModelSpec("sima_xcit_small_12_p16_224"),
        data=DataSpec(
            source="folder",
            image_size=224,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            workers=10,
        ),
        optim=OptimSpec(lr=2.5e-4, base_batch=256, weight_decay=0.04, clip_grad=3.0),
        schedule=ScheduleSpec(epochs=100, warmup_epochs=10, warmup_lr=0.0, min_lr=1e-6),
        dino=DinoSpec(
            outputs=65536,
            momentum=(0.996, 1.0),
            teacher_temp=(0.04, 0.07),
            teacher_temp_epochs=30,
            local_crops=8,
            local_size=96,
            global_scale=(0.4, 1.0),
            local_scale=(0.05, 0.4),
        ),
        batch_size=256,
        drop_path=0.1,
        metric="last",
        amp="float16",
        threads=8,
    )
