"""Label images of one's own, a class for each pixel: whole photographs of any size, from random
weights.

Reaches: depends on the images. The same model has 0.765 Dice of vessels on CHASE_DB1, where a
         second human has 0.797: docs/uses.md.
Takes:   about a second of one CPU core for a training image of a million pixels and an epoch; more
         in proportion to the pixels.
Paper:   none; XCiT's host with SimA (arXiv:2206.08898) and DPT's decoder (arXiv:2103.13413) at the
         size of the images.
Command: softless train --recipe labels --data DATA

Images are never resized and never cut into tiles. Where a step of a whole image takes too much
memory, train on crops, and on smaller images:
    --set segmentation.crop=512,512 segmentation.scale=0.5,1
Where the label images lie, and what their values mean: docs/data.md.
"""

from softless.experiment.groups import DataSpec, ModelSpec, OptimSpec, ScheduleSpec
from softless.experiment.recipe import Recipe
from softless.tasks.segmentation.settings import SegmentationSpec


def recipe() -> Recipe:
    return Recipe(
        name="labels",
        summary="label images of one's own, a class for each pixel, on whole images",
        model=ModelSpec(
            name="xcit_tiny_12_p16_224",
            op="sima",
            args={"embed_dim": 96, "depth": 4, "num_heads": 4, "token_scale": "tokens"},
        ),
        data=DataSpec(source="masks"),
        segmentation=SegmentationSpec(decoder="dpt", width=32, color_jitter=0.3, dice=1.0),
        optim=OptimSpec(lr=2e-3, base_batch=None, weight_decay=0.05, clip_grad=1.0),
        schedule=ScheduleSpec(
            epochs=40, warmup_epochs=2, warmup_lr=1e-5, min_lr=1e-5, min_steps=640
        ),
        batch_size=1,
        metric="dice",
    )
