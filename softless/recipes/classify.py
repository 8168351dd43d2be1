"""A sensible default for one's own images: `root/class/*`, or `root/{train,val,test}/class/*`.

Reaches: depends on the images; a thousand photographs of ten kinds of clothes from random weights:
         docs/results.md.
Takes:   12 ms of one CPU core per image and epoch at 128 pixels (8 with `--amp bfloat16` where the
         processor has it): under ten core-minutes for a thousand images. On a GPU take more pixels:
         --set data.image_size=224 batch_size=256
Paper:   XCiT's host with SimA (arXiv:2206.08898), light augmentation, for small sets and short
         runs.
Command: softless train --recipe classify --data IMAGES

token_scale="training" is the number of tokens at data.image_size: there the model is the paper's,
and on larger images the attention keeps its size. token_scale="tokens" costs accuracy in this host:
0.28 beside 0.44 at 96 pixels, three seeds (docs/results.md).

Fine-tuning starts from weights: those that timm knows for a model, a .safetensors file, a run, or a
folder of `save_weights`. Where they are of another attention, the model is fitted to theirs first,
on training images without labels. Rate, length and stochastic depth are then those of
`FINE_TUNING` below, and images are normalised as the weights know them.
    softless train --recipe classify --data IMAGES --set model.name=vit_small_patch16_224 model.op=sima model.pretrained=true
    softless train --recipe classify --data IMAGES --weights runs/other
"""

from softless.experiment.groups import AugmentSpec, DataSpec, ModelSpec, OptimSpec, ScheduleSpec
from softless.experiment.recipe import Recipe

# in place of the recipe's own, where a run starts from weights
FINE_TUNING = {
    "optim.lr": 1e-4,
    "schedule.epochs": 15,
    "schedule.warmup_epochs": 1,
    "schedule.min_lr": 1e-6,
    "schedule.min_steps": 400,
}


def recipe() -> Recipe:
    return Recipe(
        name="classify",
        summary="one's own images in class folders, from random weights or fine-tuned",
        model=ModelSpec(
            name="sima_xcit_tiny_12_p16_224",
            args={
                "embed_dim": 128,
                "depth": 6,
                "num_heads": 4,
                "cls_attn_layers": 1,
                "token_scale": "training",
            },
        ),
        data=DataSpec(source="folder", image_size=128, crop_pct=0.95),
        augment=AugmentSpec(
            scale=(0.35, 1.0),
            color_jitter=0.3,
            auto_augment=None,
            reprob=0.1,
            mixup=0.1,
            cutmix=0.3,
            smoothing=0.1,
        ),
        optim=OptimSpec(lr=1e-3, base_batch=None, weight_decay=0.05, clip_grad=1.0),
        schedule=ScheduleSpec(
            epochs=40,
            warmup_epochs=3,
            warmup_lr=1e-6,
            min_lr=1e-5,
            min_steps=1000,
            min_epoch_steps=10,
        ),
        batch_size=32,
        drop_path=0.05,
        ema_decay=0.995,
        ema_evaluate=True,
    )
