"""`softless data check`: a data set read once, every fault named before anything is trained on
it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from softless.bags.check import is_bags
from softless.data.findings import DataCheck
from softless.errors import UsageError, located, unknown
from softless.experiment.assignments import assignments
from softless.recipes import get_recipe
from softless.tasks.check import Reading, check
from softless.training.own_data import with_table


def data(
    what: Literal["check"],
    path: str | Path | None = None,
    *,
    table: str | Path | None = None,
    images: Path | None = None,
    min_side: int | None = None,
    max_pixels: int | None = None,
    strict: bool = False,
    range: str | None = None,
    recipe: str | None = None,
    set: Sequence[str] | str | Mapping[str, Any] = (),
) -> DataCheck:
    """Read a data set in full and list every bad file with its reason; the exit code is 0 where it
    is clean, 1 where something is bad.

    Also counted: images seen and good, files passed over because of their ending, hidden files,
    images that are read but perhaps not as meant (warnings), and the same pixels in two splits. The
    Python function is softless.tasks.check.check.

    Args:
        what: check.
        path: a folder of class folders, with or without splits, of COCO json files, or of images
            and label images; a COCO json; an npz file with MedMNIST's keys; a table (.csv); a
            folder of bags of features. docs/data.md and docs/bags.md have the layouts.
        table: CSV file that lists the images or the slides, as of `softless train`; its files
            start from `path`, or from its own folder. Its columns are set with
            --set table.label=NAME.
        images: folder that a COCO json's file names start from; the usual places are tried without
            it.
        min_side: report images with a shorter side below this; without it 8, or SOFTLESS_MIN_SIDE.
        max_pixels: report images with more pixels than this, undecoded; without it 89478485, or
            SOFTLESS_MAX_PIXELS.
        strict: warnings and duplicates make the exit code 1 too.
        range: the range of the images' values, for images of more than 8 bits: 0..4095, or
            window=400,level=40.
        recipe: refuse what training by this recipe refuses, and nothing else.
        set: fields of the recipe as field=value, for example detection.head=retinanet.

    Raises:
        DataError: nothing at `path` that can be checked.
        UsageError: an unknown `what`, or options that do not fit.
    """
    if what != "check":
        raise unknown("use of `softless data`", what, ("check",))
    user_fields = dict(assignments(set))
    if path is not None and table is None and located(path).suffix.lower() == ".csv":
        path, table = None, path
    if path is None and table is None:
        raise UsageError("softless data check needs --path, or --table FILE.csv")
    if user_fields and recipe is None and table is None:
        raise UsageError("--set sets fields of a recipe: give --recipe too")
    if range is not None and recipe is None and table is not None:
        user_fields, range = {"data.range": range, **user_fields}, None
    if range is not None and recipe is not None:
        raise UsageError(f"--range is for a check without a recipe: give --set data.range={range}")
    if recipe is None and table is not None:
        recipe = "bags" if path is not None and is_bags(located(path)) else "folder"
    reading = None if recipe is None else _reading(recipe, user_fields, table)
    return check(
        path,
        images=images,
        min_side=min_side,
        max_pixels=max_pixels,
        strict=strict,
        range=range,
        reading=reading,
    )


def _reading(name: str, fields: Mapping[str, Any], table: str | Path | None) -> Reading:
    """What a recipe reads of its data."""
    recipe = with_table(get_recipe(name), table).with_fields(**fields)
    if recipe.data.source == "digits":
        raise UsageError(
            f"recipe '{name}' reads scikit-learn's bundled digits, and there is nothing to check"
        )
    boxes, pixels = recipe.detection, recipe.segmentation
    return Reading(
        recipe.data.source,
        classes=recipe.task != "dino",
        masks=boxes is not None and boxes.head == "maskrcnn",
        labels=None if pixels is None else pixels.labels,
        ignore=() if pixels is None else tuple(pixels.ignore),
        fov=None if pixels is None else pixels.fov,
        values=None if pixels is None else pixels.values,
        range=recipe.data.range,
        table=recipe.table,
        group=recipe.data.group,
        bags=None if recipe.bags is None else recipe.bags.given,
    )
