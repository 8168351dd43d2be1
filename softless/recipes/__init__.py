"""One experiment per file; each module has `recipe()`, which returns a complete frozen Recipe."""

from softless.errors import unknown
from softless.recipes import digits, folder, imagenet_sima_deit_small, imagenet_sima_xcit_small, medmnist
from softless.training.recipe import Recipe

RECIPES = {
    "digits": digits.recipe,
    "folder": folder.recipe,
    "medmnist": medmnist.recipe,
    "imagenet_sima_deit_small": imagenet_sima_deit_small.recipe,
    "imagenet_sima_xcit_small": imagenet_sima_xcit_small.recipe,
}

__all__ = ["RECIPES", "get_recipe"]


def get_recipe(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        UsageError: there is none; the nearest name is offered.
    """
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]()
