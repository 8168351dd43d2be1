"""SimA-DeiT-S on ImageNet-1k, 300 epochs: the paper's recipe.

Reaches: 79.8 % top-1 at 224 pixels, crop ratio 1.0 (Table 1; softmax DeiT-S: 79.8 %).
Takes:   about 100 hours on 8 RTX 6000 (the paper's figure).
Paper:   SimA, arXiv:2206.08898, section 4.1; values the paper leaves open are those of its code
         (main.py, as XCiT's).
Command: torchrun --nproc-per-node 8 -m softless train --recipe imagenet_sima_deit_small --data
         IMAGENET \
             --set data.workers=10

The rate is 5e-4 per 512 images: 1e-3 at the batch of 1,024. The averaged weights are tracked and
stored, and validation uses the raw ones, as the code does. The rate moves once an epoch, to that of
the epoch before, as in the code.
"""

from softless.experiment.groups import AugmentSpec, DataSpec, ModelSpec, OptimSpec, ScheduleSpec
from softless.experiment.recipe import Recipe

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def recipe() -> Recipe:
    return Recipe(
        name="imagenet_sima_deit_small",
        summary="the paper's SimA-DeiT-S on ImageNet-1k, 300 epochs",
        model=ModelSpec(name="sima_deit_small_patch16_224"),
        data=DataSpec(
            source="folder",
            image_size=224,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            interpolation="bicubic",
            crop_pct=1.0,
        ),
        augment=AugmentSpec(
            scale=(0.08, 1.0),
            ratio=(3 / 4, 4 / 3),
            hflip=0.5,
            color_jitter=0.4,
            auto_augment="rand-m9-mstd0.5-inc1",
            interpolation="bicubic",
            reprob=0.25,
            remode="pixel",
            recount=1,
            mixup=0.8,
            cutmix=1.0,
            mixup_prob=1.0,
            mixup_switch_prob=0.5,
            mixup_mode="batch",
            smoothing=0.1,
            repeats=3,
        ),
        optim=OptimSpec(
            name="adamw", lr=5e-4, base_batch=512, weight_decay=0.05, eps=1e-8, clip_grad=None
        ),
        schedule=ScheduleSpec(
            name="cosine", epochs=300, warmup_epochs=5, warmup_lr=1e-6, min_lr=1e-5, moves="epoch"
        ),
        batch_size=1024,
        drop_path=0.05,
        ema_decay=0.99996,
        ema_evaluate=False,
        metric="top1",
        amp="float16",
    )
