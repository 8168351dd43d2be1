"""How training images are changed a little, where nobody says how."""

from collections.abc import Mapping
from typing import Any

from softless.experiment.groups import AugmentSpec, DataSpec
from softless.models.sides import sides

SMALL = 64  # pixels: grey images up to here are turned and shifted, others are cropped
NO_CHANGE: Mapping[str, Any] = {
    "hflip": 0.0,
    "color_jitter": None,
    "auto_augment": None,
    "reprob": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "smoothing": 0.0,
}

# of images that a model was fitted to as they are: see `tasks.distillation`
AS_THEY_ARE = AugmentSpec(scale=(1.0, 1.0), ratio=(1.0, 1.0), **NO_CHANGE)


def light(data: DataSpec) -> AugmentSpec:
    """Light changes of training images: small grey ones are turned, shifted and scaled, others
    cropped a little; pictures in colour are mirrored too.
    """
    if data.in_chans == 1 and max(sides(data.image_size)) <= SMALL:
        return AugmentSpec(affine=(10.0, 0.08, 0.1), interpolation="bilinear", **NO_CHANGE)
    mirrored = {**NO_CHANGE, "hflip": 0.5 if data.in_chans == 3 else 0.0}
    return AugmentSpec(scale=(0.7, 1.0), **mirrored)
