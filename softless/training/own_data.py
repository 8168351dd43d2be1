"""A recipe that reads data of one's own."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from softless.data.arrays import stored_channels, stored_labels
from softless.data.given import has_labels
from softless.data.notices import notice
from softless.data.tables import label_count
from softless.errors import UsageError, located, need_module
from softless.experiment.bag_table import BagTableSpec
from softless.experiment.groups import CLASSIFIES, ModelSpec, TableSpec
from softless.experiment.recipe import Recipe
from softless.models.given import GIVEN, noted
from softless.tasks.multilabel.settings import MultilabelSpec

GREY, COLOUR = 1, 3


def with_table(recipe: Recipe, path: str | Path | None) -> Recipe:
    """The recipe with its images listed in a table.

    Args:
        recipe: of a classifier that reads class folders.
        path: the CSV file; None leaves the recipe as it is.

    Raises:
        UsageError: another recipe.
    """
    if path is None:
        return recipe
    if recipe.settings is not None and recipe.settings.listed:
        return replace(recipe, table=replace(recipe.table or BagTableSpec(), path=str(path)))
    if recipe.task != "classification" or recipe.data.source != "folder":
        raise UsageError(
            f"recipe '{recipe.name}' reads no image files with classes, so --table {path} has "
            "no effect: leave it out, or take --recipe folder"
        )
    return replace(recipe, table=replace(recipe.table or TableSpec(), path=str(path)))


def with_labels(recipe: Recipe, path: str | Path | None, user_fields: Mapping[str, Any]) -> Recipe:
    """The recipe for several labels an image, where the data have several. What does not go with
    that is left out, which is said.

    Args:
        recipe: of a classifier, its table named.
        path: the data, where they are not the recipe's.
        user_fields: fields that the user sets: they are never changed.
    """
    if recipe.task != "classification":
        return recipe
    data_path = path or user_fields.get("data.path") or recipe.data.path
    if recipe.table is not None:
        columns = {
            name: value for name, value in user_fields.items() if name.partition(".")[0] == "table"
        }
        named = recipe.with_fields(**columns)
        has_table = isinstance(named.table, TableSpec) and located(named.table.path or "").is_file()
        several = has_table and isinstance(named.table, TableSpec) and label_count(named.table) > 1
    else:
        several = (
            recipe.data.source == "npz"
            and data_path is not None
            and stored_labels(located(str(data_path))) > 1
        )
    return several_labels(recipe, user_fields) if several else recipe


def several_labels(recipe: Recipe, user_fields: Mapping[str, Any]) -> Recipe:
    """A classifier's recipe for several labels an image; what is changed for that is said."""
    if recipe.multilabel is not None:
        return recipe
    changed: dict[str, Any] = {"metric": "auc"} if recipe.metric not in {"auc", "loss"} else {}
    changed |= {
        f"augment.{name}": 0.0 for name in ("mixup", "cutmix") if getattr(recipe.augment, name)
    }
    changed = {name: value for name, value in changed.items() if name not in user_fields}
    listing = ", ".join(f"{name}={value}" for name, value in changed.items())
    notice(
        "the images have several labels "
        f"each{f': {listing} in place of what the recipe has for one' if listing else ''}"
    )
    return replace(recipe, multilabel=MultilabelSpec()).with_fields(**changed)


def with_model(recipe: Recipe, model: nn.Module | None, user_fields: Collection[str]) -> Recipe:
    """The recipe for a model that was built in Python; where nobody set a size, at the size that
    the model says.

    Args:
        recipe: of a classifier.
        model: the module; None leaves the recipe as it is.
        user_fields: fields that the user set.

    Raises:
        UsageError: a recipe of another task, or fields of a model by name.
    """
    if model is None:
        return recipe
    need_module(model, "train")
    if recipe.task not in CLASSIFIES:
        raise UsageError(
            f"model=… is for classification; recipe '{recipe.name}' is for {recipe.task}"
        )
    if named := sorted(name for name in user_fields if name.partition(".")[0] == "model"):
        raise UsageError(
            f"{named[0]} is of a model by name, and model=… was given: leave one of them out"
        )
    changed: dict[str, Any] = {"drop_path": 0.0} if recipe.drop_path else {}
    side = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if (
        recipe.model.name != GIVEN
        and isinstance(side, tuple)
        and "data.image_size" not in user_fields
    ):
        size = side[0] if side[0] == side[1] else side
        changed |= {"data.image_size": size} if size != recipe.data.image_size else {}
    if changed:
        listing = ", ".join(f"{name}={value}" for name, value in changed.items())
        notice(
            f"the model was built in Python: {listing} in place of what recipe '{recipe.name}' has"
        )
    new = recipe.with_fields(**changed)
    return replace(new, model=ModelSpec(name=GIVEN, args=noted(model)))


def with_datasets(
    recipe: Recipe, parts: Mapping[str, Any], user_fields: Mapping[str, Any]
) -> Recipe:
    """The recipe for datasets that were built in Python.

    Args:
        recipe: of a classifier.
        parts: map-style datasets of (image, target) by part.
        user_fields: fields that the user set.

    Raises:
        UsageError: a recipe of another task.
    """
    if recipe.task not in CLASSIFIES:
        raise UsageError(
            f"a dataset of (image, target) is for classification; recipe '{recipe.name}' is for "
            f"{recipe.task}: "
            "give a folder"
        )
    if recipe.table is not None:
        raise UsageError(
            "a table lists image files, and a dataset was given: leave one of them out"
        )
    data = replace(recipe.data, source="given", path=None, group=None)
    return (
        several_labels(replace(recipe, data=data), user_fields)
        if has_labels(parts)
        else replace(recipe, data=data)
    )


def with_data(recipe: Recipe, path: str | Path | None, user_fields: Collection[str] = ()) -> Recipe:
    """The recipe with its data at this path. Colour images of an npz file stay so, whatever the
    recipe was made for, which is said.

    Args:
        recipe: whose data are replaced.
        path: a folder or a file; None leaves the recipe as it is.
        user_fields: fields that the user set: they are never changed.

    Raises:
        UsageError: a recipe whose data come with a package.
    """
    if path is None:
        return recipe
    if recipe.data.source == "digits":
        raise UsageError(
            f"recipe '{recipe.name}' reads scikit-learn's bundled digits, so --data {path} has no "
            "effect: leave it out, or "
            "take --recipe classify (class folders) or medmnist (npz)"
        )
    data = replace(recipe.data, path=str(path))
    grey = (
        data.source == "npz"
        and data.in_chans == GREY
        and data.mean is None
        and "data.in_chans" not in user_fields
    )
    if grey and stored_channels(located(path)) == COLOUR:
        data = replace(data, in_chans=COLOUR)
        notice(f"{path}: the images are in colour: data.in_chans=3 instead of the recipe's 1")
    return replace(recipe, data=data)
