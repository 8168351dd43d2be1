"""Mask R-CNN on the pyramid of normalised SOFT-Tiny, COCO, 12 epochs.

Reaches: 41.2 box AP and 38.2 mask AP in the README of the paper's code (Small 43.8 / 40.1, Medium
         46.6 / 42.0, Large 47.0 / 42.2). Not run here.
Takes:   not known; the code says nothing of its machine.
Paper:   normalised SOFT, arXiv:2207.03341. Neither paper nor code give hyper-parameters: rate,
         decay of 1e-4, steps and a shorter side of 800 are those of PVT's detectors
         (arXiv:2102.12122), which share the pyramid's shape. This is our choice.
Command: torchrun --nproc-per-node 8 -m softless train --recipe coco_softnorm_maskrcnn --data COCO
         --set model.weights=WEIGHTS

Other sizes: --set model.name=softnorm_small_224 (medium, large).
"""

from softless.experiment.groups import DataSpec, ModelSpec, OptimSpec, ScheduleSpec
from softless.experiment.recipe import Recipe
from softless.tasks.detection.settings import DetectionSpec


def recipe() -> Recipe:
    return Recipe(
        name="coco_softnorm_maskrcnn",
        summary="Mask R-CNN on normalised SOFT-Tiny, COCO, 12 epochs",
        model=ModelSpec(name="softnorm_tiny_224"),
        data=DataSpec(
            source="coco", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), workers=4
        ),
        detection=DetectionSpec(head="maskrcnn", shortest=(800,), crop_share=0.0, faults="skip"),
        optim=OptimSpec(lr=1e-4, base_batch=None, weight_decay=1e-4),
        schedule=ScheduleSpec(name="multistep", epochs=12, warmup_epochs=0, decay_epochs=(8, 11)),
        batch_size=16,
        drop_path=0.1,
        metric="last",
        amp="float16",
    )
