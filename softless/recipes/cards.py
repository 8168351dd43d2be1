"""Playing cards on photographs, boxes of six ranks: RetinaNet on a small pyramid with normalised
SOFT, from random weights.

Reaches: box AP50 0.16 on test, one seed; beside its twins: docs/uses.md. Eighty photographs and
         random weights are little.
Takes:   about 20 seconds of one CPU core an epoch with its validation (40 s beside two other jobs
         on two cores, bfloat16): under a quarter of an hour.
Paper:   normalised SOFT (arXiv:2207.03341), which was shown with RetinaNet on COCO, in a small form
         of its own pyramid.
Command: softless train --recipe cards --data PLAYING_CARDS

The twins under the same recipe: --set model.op=sima, --set model.op=softmax. The last stage is
softmax attention in all three, as published.
"""

from softless.experiment.groups import DataSpec, ModelSpec, OptimSpec, ScheduleSpec
from softless.experiment.recipe import Recipe
from softless.tasks.detection.settings import DetectionSpec


def recipe() -> Recipe:
    return Recipe(
        name="cards",
        summary="playing cards on photographs, RetinaNet on a small SOFTNorm pyramid from random "
        "weights",
        model=ModelSpec(
            name="soft_pyramid_tiny_224",
            op="softnorm",
            args={
                "embed_dims": (32, 64, 128, 192),
                "depths": (1, 1, 2, 1),
                "num_heads": (1, 2, 4, 6),
            },
        ),
        data=DataSpec(source="coco", image_size=320),
        detection=DetectionSpec(
            head="retinanet",
            width=64,
            norm="group",
            resize=288,
            longest=512,
            canvas=(320, 320),
            scale=(0.5, 1.0),
            hflip=0.0,
            quarter_turns=True,
            photometric=True,
        ),
        optim=OptimSpec(lr=1e-3, base_batch=None, weight_decay=0.05, clip_grad=1.0),
        schedule=ScheduleSpec(epochs=60, warmup_epochs=2, min_steps=1000, min_epoch_steps=10),
        batch_size=4,
        ema_decay=0.99,
        ema_evaluate=True,
        metric="box_ap50",
        amp="bfloat16",
        threads=1,
    )
