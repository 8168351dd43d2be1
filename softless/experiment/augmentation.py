"""Rules between the fields of `augment`, and with the images."""

from typing import Any

from timm.data import auto_augment
from timm.data.auto_augment import rand_augment_transform

from softless.errors import UsageError


def check(recipe: Any) -> None:
    """Whether a classification's images can be changed as its recipe says.

    Raises:
        UsageError: they cannot.
    """
    check_augmentation(recipe)
    check_pairs(recipe)


def check_augmentation(recipe: Any) -> None:
    """Whether the fields of `augment` go together, and with the images.

    Raises:
        UsageError: they do not, or timm has no such policy.
    """
    augment, channels = recipe.augment, recipe.data.in_chans
    deep = recipe.data.range is not None
    if channels not in {1, 3} and (augment.auto_augment or augment.color_jitter):
        raise UsageError(
            "augment.auto_augment and augment.color_jitter need grey or RGB images, and "
            f"data.in_chans is {channels}: "
            "set both to none"
        )
    if deep and augment.auto_augment:
        raise UsageError(
            f"augment.auto_augment='{augment.auto_augment}' changes 8-bit images, and "
            f"data.range={recipe.data.range} gives others: "
            "set augment.auto_augment=none; augment.color_jitter changes these too"
        )
    if (
        augment.affine is not None
        and augment.auto_augment
        and not augment.auto_augment.startswith("rand")
    ):
        raise UsageError(
            f"augment.auto_augment='{augment.auto_augment}' cannot be combined with "
            "augment.affine: "
            "only RandAugment ('rand-…') can"
        )
    if augment.auto_augment:
        _policy(augment.auto_augment)


def _policy(text: str) -> None:
    """Whether timm reads this policy.

    Its parser asserts, or takes what it does not know in silence.
    """
    kinds = {"rand": rand_augment_transform, "augmix": auto_augment.augment_and_mix_transform}
    read = next(
        (kind for begin, kind in kinds.items() if text.startswith(begin)),
        auto_augment.auto_augment_transform,
    )
    try:
        read(text, {"translate_const": 1, "img_mean": (0, 0, 0)})
    except (AssertionError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UsageError(
            f"augment.auto_augment='{text}' is no policy of timm: for example "
            "rand-m9-mstd0.5-inc1, or none"
        ) from error


def check_pairs(recipe: Any) -> None:
    """Mixed images fit each other."""
    augment = recipe.augment
    if (augment.mixup or augment.cutmix) and augment.mixup_prob and recipe.batch_size % 2:
        raise UsageError(
            f"mixup and cutmix mix pairs, and batch_size={recipe.batch_size} is odd: set "
            f"batch_size={recipe.batch_size + 1}, or "
            "augment.mixup=0 and augment.cutmix=0"
        )
