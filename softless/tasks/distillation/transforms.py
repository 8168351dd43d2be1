"""Light changes of images that are tensors already, as those of pictures in `data.transforms`."""

from collections.abc import Sequence

from timm.data.transforms import str_to_interp_mode
from torchvision import transforms as tv

from softless.data.pictures import tensor_of
from softless.data.transforms import Pipeline, Step
from softless.experiment.recipe import Recipe
from softless.models.sides import sides


def of_tensors(recipe: Recipe, lowest: Sequence[float], *, train: bool) -> Pipeline:
    """The pipeline (h, w, C) float32 -> tensor (C, h, w), changed in training as `augment` says.

    Args:
        recipe: whose group `augment` says turn, shift and scale, or a crop; and flips.
        lowest: (C,) what comes from outside an image.
        train: whether images are changed.
    """
    augment = recipe.augment
    if not train:
        return Pipeline([tensor_of], [], fixed=True)
    tail: list[Step] = []
    if augment.affine is not None:
        degrees, shift, change = augment.affine
        tail.append(
            tv.RandomAffine(
                degrees,
                translate=(shift, shift),
                scale=(1 - change, 1 + change),
                interpolation=tv.InterpolationMode.BILINEAR,
                fill=list(lowest),
            )
        )
    elif tuple(augment.scale) != (1.0, 1.0):
        tail.append(
            tv.RandomResizedCrop(
                sides(recipe.data.image_size),
                scale=augment.scale,
                ratio=augment.ratio,
                interpolation=str_to_interp_mode(augment.interpolation),
                antialias=True,
            )
        )
    flips = ((augment.hflip, tv.RandomHorizontalFlip), (augment.vflip, tv.RandomVerticalFlip))
    tail += [flip(p=chance) for chance, flip in flips if chance]
    return Pipeline([tensor_of], tail, fixed=False)
