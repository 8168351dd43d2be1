"""SimA on scikit-learn's 1,797 handwritten digits: a real training in minutes, without a download.

Reaches: see docs/results.md (three seeds, beside its softmax twin); chosen on the validation split
         alone.
Takes:   80 epochs of 19 steps; two to three minutes of one CPU core.
Paper:   none; the smallest honest stage for SimA (arXiv:2206.08898) beside softmax:
         `--set model.op=softmax` is its twin.
Command: softless train --recipe digits

Each token is 2 x 2 of a digit's 8 x 8 pixels. SimA runs with token_scale="tokens". In one trial
(one seed, tokens of one pixel) the paper's scale learned more slowly at first and was level at the
end.
"""

from softless.experiment.groups import AugmentSpec, DataSpec, ModelSpec, OptimSpec, ScheduleSpec
from softless.experiment.recipe import Recipe


def recipe() -> Recipe:
    return Recipe(
        name="digits",
        summary="SimA ViT on scikit-learn's handwritten digits",
        model=ModelSpec(
            name="vit_tiny_patch16_224",
            op="sima",
            args={
                "patch_size": 8,
                "embed_dim": 96,
                "depth": 5,
                "num_heads": 4,
                "token_scale": "tokens",
            },
        ),
        data=DataSpec(
            source="digits", image_size=32, in_chans=1, interpolation="bilinear", crop_pct=1.0
        ),
        augment=AugmentSpec(
            affine=(12.0, 0.1, 0.15),  # no flips: a mirrored 2 is no 2
            hflip=0.0,
            color_jitter=None,
            auto_augment=None,
            interpolation="bilinear",
            reprob=0.0,
            mixup=0.0,
            cutmix=0.0,
            smoothing=0.1,
        ),
        optim=OptimSpec(lr=1.5e-3, base_batch=None, weight_decay=0.05, clip_grad=1.0),
        schedule=ScheduleSpec(
            epochs=80,
            warmup_epochs=5,
            warmup_lr=1e-5,
            min_lr=1e-5,
            min_steps=1200,
            min_epoch_steps=10,
        ),
        batch_size=64,
        drop_path=0.1,
        ema_decay=0.98,
        ema_evaluate=True,
    )
