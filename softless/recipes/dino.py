"""Features of one's own images, learned without labels: class folders (labels unused) or one folder
of images.

Reaches: depends on the images and on patience: self-supervision needs many more steps than labels
         do. A thousand photographs of ten kinds of clothes: docs/uses.md, and `softless bench dino
         --data IMAGES` puts untrained networks and pixels beside it.
Takes:   15 ms of one CPU core with avx512_bf16 per image and epoch: 25 minutes for 100 epochs of a
         thousand images. On a GPU take larger images: --set data.image_size=96 dino.local_size=48
         dino.reduce=none batch_size=128
Paper:   DINO (arXiv:2104.14294) on XCiT's host with SimA (arXiv:2206.08898), for small sets and
         short runs: milder crops and blur, stronger colours (or the background's would do), few
         outputs, a teacher that follows sooner, and SimA over the tokens' mean.
Command: softless train --recipe dino --data IMAGES; softless eval runs/dino --knn 20
         (its twin: --set model.op=xca model.args.token_scale=None)
"""

from softless.experiment.groups import DataSpec, ModelSpec, OptimSpec, ScheduleSpec
from softless.experiment.recipe import Recipe
from softless.tasks.dino.settings import DinoSpec


def recipe() -> Recipe:
    return Recipe(
        name="dino",
        summary="features of one's own images, learned without labels",
        model=ModelSpec(
            "xcit_tiny_12_p8_224",
            op="sima",
            args={
                "embed_dim": 96,
                "depth": 4,
                "num_heads": 4,
                "cls_attn_layers": 2,
                "token_scale": "tokens",
            },
        ),
        data=DataSpec(source="folder", image_size=48, crop_pct=0.875),
        optim=OptimSpec(lr=5e-4, base_batch=None, weight_decay=0.04, clip_grad=1.0),
        schedule=ScheduleSpec(epochs=100, warmup_epochs=2, warmup_lr=1e-6, min_lr=1e-5),
        dino=DinoSpec(
            outputs=512,
            hidden=512,
            bottleneck=128,
            momentum=(0.98, 1.0),
            teacher_temp=(0.03, 0.03),
            teacher_temp_epochs=0,
            local_crops=2,
            local_size=24,
            reduce=80,
            global_scale=(0.6, 1.0),
            local_scale=(0.3, 0.6),
            color_jitter=0.8,
            grayscale=0.3,
            blur=(0.2, 0.0, 0.0),
            solarize=0.0,
        ),
        batch_size=25,
        amp="bfloat16",
        metric="last",
        threads=1,
    )
