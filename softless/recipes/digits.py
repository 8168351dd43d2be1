"""SimA on scikit-learn's 1,797 handwritten digits: a real training in minutes, without a download.

Reaches: not tuned yet. The goal is 97 % on the stratified 20 % test split (mean of three seeds). One seed, 30 epochs, validation:
         91.7 % in the paper's scale, 93.5 % with `--set model.args.token_scale=tokens`.
Takes:   60 epochs of 19 steps of 64 images; 210 ms a step on one core of a busy machine.
Paper:   none; the smallest honest stage for SimA (arXiv:2206.08898) beside softmax: `--set model.op=softmax` is its twin.
Command: softless train --recipe digits
"""

from softless.training.recipe import AugmentSpec, DataSpec, ModelSpec, OptimSpec, Recipe, ScheduleSpec


def recipe() -> Recipe:
    return Recipe(
        name="digits",
        summary="SimA ViT on scikit-learn's handwritten digits",
        model=ModelSpec(
            name="vit_tiny_patch16_224",
            op="sima",
            args={"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 5, "num_heads": 4},
        ),
        data=DataSpec(source="digits", image_size=32, in_chans=1, interpolation="bilinear", crop_pct=1.0),
        augment=AugmentSpec(
            affine=(10.0, 0.08, 0.1),  # no flips: a mirrored 2 is no 2
            hflip=0.0,
            color_jitter=None,
            auto_augment=None,
            interpolation="bilinear",
            reprob=0.0,
            mixup=0.0,
            cutmix=0.0,
            smoothing=0.1,
        ),
        optim=OptimSpec(lr=2e-3, base_batch=None, weight_decay=0.05, clip_grad=1.0),
        schedule=ScheduleSpec(epochs=60, warmup_epochs=5, warmup_lr=1e-5, min_lr=1e-5),
        batch_size=64,
        ema_decay=0.98,
        ema_evaluate=True,
    )
