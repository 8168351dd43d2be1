"""Boxes of one's own in COCO's files: Faster R-CNN on a small XCiT with SimA, its sizes measured on
the training boxes.

Reaches: depends on the images; box AP 0.41 on test of nuclei, turned and mirrored as below, one
         seed. With masks: docs/uses.md.
Takes:   about half a second of one CPU core for an image of 256 x 256 pixels and an epoch; more in
         proportion to the pixels.
Paper:   XCiT's detector (arXiv:2106.09681) with SimA (arXiv:2206.08898, section 4.2), at a fraction
         of its size.
Command: softless train --recipe boxes --data DATA

Anchors, the size of the images, canvas and scale are measured (`softless.tasks.detection.sizes`) and said
in the first lines of a run. What is set is not measured: --set detection.anchors=16,32,64,128,256
or detection.resize=800. Where every class looks alike turned or mirrored, add
    --set detection.vflip=0.5 detection.quarter_turns=true
"""

from softless.experiment.groups import DataSpec, ModelSpec, OptimSpec, ScheduleSpec
from softless.experiment.recipe import Recipe
from softless.tasks.detection.settings import DetectionSpec


def recipe() -> Recipe:
    return Recipe(
        name="boxes",
        summary="boxes of one's own in COCO's files, Faster R-CNN on a small SimA-XCiT from "
        "random weights",
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
            head="fasterrcnn",
            width=64,
            measure=("anchors", "resize", "canvas", "scale"),
            anchors=(8, 16, 32, 64, 128),
            proposals=500,
            regions=128,
            detections=300,
            resize=None,
            canvas=(256, 256),
            scale=(0.6, 1.6),
            photometric=True,
        ),
        optim=OptimSpec(lr=1e-3, base_batch=None, weight_decay=0.05, clip_grad=1.0),
        schedule=ScheduleSpec(epochs=40, warmup_epochs=2, min_steps=1000, min_epoch_steps=10),
        batch_size=4,
        ema_decay=0.99,
        ema_evaluate=True,
        metric="box_ap",
    )
