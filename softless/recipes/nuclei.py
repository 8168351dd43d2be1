"""Nuclei in microscopy, boxes and masks: Mask R-CNN on a small XCiT with SimA, from random weights.

Reaches: box AP 0.39 and mask AP 0.41 on test, one seed; beside its twin: docs/uses.md.
Takes:   about half a minute of one CPU core an epoch with its validation (61 s beside two other
         jobs on two cores, bfloat16): a quarter of an hour.
Paper:   XCiT's detector (arXiv:2106.09681) with SimA (arXiv:2206.08898, section 4.2), at a fraction
         of its size. The images are BBBC038's.
Command: softless train --recipe nuclei --data NUCLEI_DSB2018

The twin with XCiT's own attention: --set model.op=xca model.args.token_scale=None. In the paper's
scale (model.args.token_scale=None) SimA's branch is next to nothing at a thousand tokens and
weights this young, and box AP on test came to 0.22 instead of 0.39. Validation is of the averaged
weights: those of a single step differ by 15 points of AP50 from epoch to epoch, with batches of
four images behind the running statistics of BatchNorm.
"""

from softless.experiment.groups import DataSpec, ModelSpec, OptimSpec, ScheduleSpec
from softless.experiment.recipe import Recipe
from softless.tasks.detection.settings import DetectionSpec


def recipe() -> Recipe:
    return Recipe(
        name="nuclei",
        summary="nuclei with their outlines, Mask R-CNN on a small SimA-XCiT from random weights",
        model=ModelSpec(
            name="xcit_tiny_12_p8_224",
            op="sima",
            args={
                "embed_dim": 128,
                "depth": 6,
                "num_heads": 4,
                "cls_attn_layers": 1,
                "token_scale": "tokens",
            },
        ),
        data=DataSpec(source="coco", image_size=256),
        detection=DetectionSpec(
            head="maskrcnn",
            width=64,
            anchors=(8, 16, 32, 64, 128),
            proposals=500,
            regions=128,
            detections=300,
            resize=None,
            canvas=(256, 256),
            scale=(0.6, 1.6),
            vflip=0.5,
            quarter_turns=True,
            photometric=True,
        ),
        optim=OptimSpec(lr=1e-3, base_batch=None, weight_decay=0.05, clip_grad=1.0),
        schedule=ScheduleSpec(epochs=40, warmup_epochs=2, min_steps=600, min_epoch_steps=10),
        batch_size=4,
        ema_decay=0.99,
        ema_evaluate=True,
        metric="mask_ap",
        amp="bfloat16",
        threads=1,
    )
