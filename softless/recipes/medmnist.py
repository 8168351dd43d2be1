"""MedMNIST: 28-pixel medical images in one npz file, classes of unequal size.

Reaches: not measured yet. The goal on PneumoniaMNIST: the lower end of the 95 % interval above 0.837, which logistic regression on
         raw pixels reaches.
Takes:   half an hour for PneumoniaMNIST's 4,708 images on one core of a busy machine (113 images/s).
Paper:   MedMNIST v2 (Yang et al., Scientific Data 2023); the model is SimA's (arXiv:2206.08898).
Command: softless train --recipe medmnist --data pneumoniamnist.npz      (colour sets: --set data.in_chans=3)

Balanced class weights, and the best epoch picked by balanced accuracy: the area under the ROC curve, reported beside it, ranks
images well before the threshold between the classes is right.
"""

from softless.training.recipe import AugmentSpec, DataSpec, ModelSpec, OptimSpec, Recipe, ScheduleSpec


def recipe() -> Recipe:
    return Recipe(
        name="medmnist",
        summary="28-pixel medical images (MedMNIST npz), balanced classes",
        model=ModelSpec(
            name="vit_tiny_patch16_224",
            op="sima",
            args={"img_size": 28, "patch_size": 4, "embed_dim": 96, "depth": 6, "num_heads": 4},
        ),
        data=DataSpec(source="npz", image_size=28, in_chans=1, interpolation="bilinear", crop_pct=1.0),
        augment=AugmentSpec(
            affine=(15.0, 0.1, 0.15),
            hflip=0.5,
            color_jitter=None,
            auto_augment=None,
            interpolation="bilinear",
            reprob=0.25,
            mixup=0.2,
            cutmix=0.0,
            smoothing=0.1,
        ),
        optim=OptimSpec(lr=1e-3, base_batch=None, weight_decay=0.05, clip_grad=1.0),
        schedule=ScheduleSpec(epochs=40, warmup_epochs=3, warmup_lr=1e-5, min_lr=1e-5),
        batch_size=128,
        drop_path=0.05,
        ema_decay=0.99,
        ema_evaluate=True,
        class_weights="balanced",
        metric="balanced_accuracy",
    )
