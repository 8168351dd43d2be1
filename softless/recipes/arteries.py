"""Retinal arteries and veins on whole photographs of 1168 x 1752 pixels, from random weights
(HRF, half size).

Reaches: mean Dice of background, artery and vein 0.66 on test, one seed; beside its softmax twin:
         docs/uses.md. All background has 0.32.
Takes:   43 s an epoch of one CPU core with avx512_bf16, 1.7 s a step, 1.3 GB for a step beside the
         libraries; its softmax twin 7.8 s a step (three minutes an epoch) and 1.0 GB.
Paper:   none; XCiT's host with SimA (arXiv:2206.08898) and DPT's decoder (arXiv:2103.13413) at the
         size of the label images.
Command: softless train --recipe arteries --data hrf_av

Images are 74 x 110 = 8,140 tokens of 16 x 16 pixels, never cut into tiles. What the label images
call uncertain or a crossing counts nowhere, nor does what lies outside the field of view. The
twin's command adds
    --set model.op=softmax model.args.token_scale=None
"""

from softless.experiment.groups import DataSpec, ModelSpec, OptimSpec, ScheduleSpec
from softless.experiment.recipe import Recipe
from softless.tasks.segmentation.settings import SegmentationSpec


def recipe() -> Recipe:
    return Recipe(
        name="arteries",
        summary="retinal arteries and veins on whole photographs",
        model=ModelSpec(
            name="xcit_tiny_12_p16_224",
            op="sima",
            args={"embed_dim": 96, "depth": 4, "num_heads": 4, "token_scale": "tokens"},
        ),
        data=DataSpec(source="masks"),
        segmentation=SegmentationSpec(
            decoder="dpt",
            width=32,
            ignore=("uncertain_or_crossing",),
            fov="fov",
            vflip=0.5,
            color_jitter=0.3,
            dice=1.0,
        ),
        optim=OptimSpec(lr=2e-3, base_batch=None, weight_decay=0.05, clip_grad=1.0),
        schedule=ScheduleSpec(
            epochs=10, warmup_epochs=1, warmup_lr=1e-5, min_lr=1e-5, min_steps=210
        ),
        batch_size=1,
        amp="bfloat16",
        metric="dice",
        threads=1,
    )
