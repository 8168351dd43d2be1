"""A recipe that reads data of one's own."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from softless.data.arrays import stored_channels
from softless.data.notices import notice
from softless.errors import UsageError, located
from softless.training.recipe import Recipe

GREY, COLOUR = 1, 3


def with_data(recipe: Recipe, path: str | Path | None, given: Collection[str] = ()) -> Recipe:
    """The recipe with its data at this path. Colour images of an npz file stay so, whatever the recipe was made for, which is said.

    Args:
        recipe: whose data are replaced.
        path: a folder or a file; None leaves the recipe as it is.
        given: fields that the user set: they are never changed.

    Raises:
        UsageError: a recipe whose data come with a package.
    """
    if path is None:
        return recipe
    if recipe.data.source == "digits":
        raise UsageError(
            f"recipe '{recipe.name}' reads scikit-learn's bundled digits, so --data {path} has no effect: leave it out, or "
            "take --recipe classify (class folders) or medmnist (npz)"
        )
    data = replace(recipe.data, path=str(path))
    grey = data.source == "npz" and data.in_chans == GREY and data.mean is None and "data.in_chans" not in given
    if grey and stored_channels(located(path)) == COLOUR:
        data = replace(data, in_chans=COLOUR)
        notice(f"{path}: the images are in colour: data.in_chans=3 instead of the recipe's 1")
    return replace(recipe, data=data)
