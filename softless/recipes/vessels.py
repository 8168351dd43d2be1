"""Retinal vessels on whole photographs of 960 x 999 pixels, from random weights (CHASE_DB1).

Reaches: 0.765 Dice of vessels on test, its softmax twin 0.765, a second human 0.797, all background
         0: docs/uses.md. Ten epochs reach 0.69.
Takes:   16 s an epoch of one CPU core with avx512_bf16, 0.8 s a step, 0.6 GB for a step beside the
         libraries; its softmax twin 2.1 s a step and 0.5 GB.
Paper:   none; XCiT's host with SimA (arXiv:2206.08898) and DPT's decoder (arXiv:2103.13413) at the
         size the camera gives.
Command: softless train --recipe vessels --data chase_db1

Images are 60 x 64 = 3,840 tokens of 16 x 16 pixels, never cut into tiles; DPT brings them back to 2
x 2 pixels. The twin's command adds
    --set model.op=softmax model.args.token_scale=None
With patches of 8 (model.args.patch_size=8), 15,360 tokens, a step takes 1.2 s with SimA and 17 s
with softmax. token_scale="tokens" keeps the attention alive at such sizes: trained in the paper's
scale, switching it off changed nothing.
"""

from softless.experiment.groups import DataSpec, ModelSpec, OptimSpec, ScheduleSpec
from softless.experiment.recipe import Recipe
from softless.tasks.segmentation.settings import SegmentationSpec


def recipe() -> Recipe:
    return Recipe(
        name="vessels",
        summary="retinal vessels on whole photographs",
        model=ModelSpec(
            name="xcit_tiny_12_p16_224",
            op="sima",
            args={"embed_dim": 96, "depth": 4, "num_heads": 4, "token_scale": "tokens"},
        ),
        data=DataSpec(source="masks"),
        segmentation=SegmentationSpec(
            decoder="dpt",
            width=32,
            labels="labels_observer1",
            observer="labels_observer2",
            vflip=0.5,
            color_jitter=0.3,
            dice=1.0,
        ),
        optim=OptimSpec(lr=2e-3, base_batch=None, weight_decay=0.05, clip_grad=1.0),
        schedule=ScheduleSpec(
            epochs=40, warmup_epochs=2, warmup_lr=1e-5, min_lr=1e-5, min_steps=640
        ),
        batch_size=1,
        amp="bfloat16",
        metric="dice",
        threads=1,
    )
