"""A recipe: everything that decides how a run trains, frozen and printable.

A recipe names *what* is done; `training/` and `data/` turn it into optimiser, schedule and
transforms. Fields are set from the command line as `--set optim.lr=3e-4`.
"""

import dataclasses
import json
import logging
import tempfile
import typing
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from softless.errors import DataError, UsageError
from softless.experiment import augmentation, model_fields, rules
from softless.experiment.fields import KEY, FieldSetting, group_of, literal, no_field, typed, walk
from softless.experiment.files import MEND, read_recipe
from softless.experiment.groups import CLASSIFICATION, RunFields, ScheduleSpec
from softless.tasks.folders import TASKS, of_tasks
from softless.words import clipped

_log = logging.getLogger("softless.training")
# of what made the run: its names in recipe.json
VERSIONS = ("softless", "torch", "timm", "torchvision", "numpy", "python")
_SMALL = of_tasks("small")
# task -> the run on generated data, with a small model and two steps; of a task that brings none,
# that of classification
SHRINK: Mapping[str, Callable[[Any, Path], Any]] = {
    task: _SMALL.get(task, _SMALL[CLASSIFICATION]).shrunk for task in TASKS
}


@dataclass(frozen=True)
class Recipe(RunFields):
    """One run, complete. `table` lists the images where they lie in no class folders. At most one
    group of a task (`detection`, …) is set; without, the run classifies. `quick` is the same run on generated data with a small model and two steps.
    """

    def quick(self, folder: str | Path | None = None) -> "Recipe":
        """The same run in seconds: two steps of generated images (written into `folder`, or a
        temporary one) and a small model.
        """
        shrunk: Recipe = SHRINK[self.task](
            self, Path(folder or tempfile.mkdtemp(prefix="softless-quick-"))
        )
        # generated images have 8 bits, and no groups; a table lists them where the task wrote one
        data = replace(shrunk.data, range=None, group=None, folds=None, fold=None)
        written = None if shrunk.table == self.table else shrunk.table
        return replace(shrunk, data=data, table=written)

    def with_fields(self, **fields: Any) -> "Recipe":
        """A copy with dotted fields replaced (`optim.lr`), values given as text or typed, in any
        order.

        A group takes a mapping of its fields: `optim={"lr": 1e-3}`. `model.args` is set whole by
        one, cleared by `{}`.

        Raises:
            UsageError: no such field (nearest name offered), a value of another type or out of its
                range.
        """
        user_fields = flat_fields(fields)
        _refuse_image_size(self, user_fields)
        recipe = self
        for name, value in user_fields.items():
            if name != "model.args" and not name.startswith("model.args."):
                recipe = _replace(recipe, name.split("."), value, name)
        if any(name.startswith("model.") for name in user_fields):
            recipe = replace(
                recipe, model=model_fields.chosen(self.model, recipe.model, user_fields)
            )
            recipe = model_fields.with_depths(recipe, user_fields)
        recipe = _with_length_kept(
            _with_warmup_scaled(recipe, self.schedule, user_fields), user_fields
        )
        return _without_measuring(recipe, user_fields)

    def check(self) -> None:
        """Whether every field has its type, lies in its range and goes with the others
        (`experiment.rules`): held before any work.

        Raises:
            UsageError: the first that does not.
        """
        for row in walk(self):
            typed(row.value, row.hint, row.name, row.setting)
        model_fields.check_model(self)
        rules.check(self)
        check = augmentation.check if self.settings is None else self.settings.check
        check(self)


def flat_fields(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names; a mapping for a group stands for its fields.

    Raises:
        UsageError: a field that is set twice.
    """
    groups = {name for name, hint in typing.get_type_hints(Recipe).items() if group_of(hint)}
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        inner = literal(value) if prefix + name in groups else value
        entries = (
            flat_fields(inner, f"{name}.")
            if prefix + name in groups and isinstance(inner, Mapping)
            else {name: value}
        )
        for inner_name, inner_value in entries.items():
            if flat.setdefault(prefix + inner_name, inner_value) != inner_value:
                raise UsageError(f"{prefix}{inner_name} is set twice, to different values")
    return flat


def _refuse_image_size(recipe: Recipe, user_fields: Mapping[str, Any]) -> None:
    """Images of boxes and of label images keep their shape, so `data.image_size` would be without
    effect.
    """
    sized = recipe.settings.sized if recipe.settings is not None else ""
    if "data.image_size" in user_fields and sized:
        raise UsageError(
            f"data.image_size={clipped(user_fields['data.image_size'])} has no effect in "
            f"{recipe.task}, where images keep their shape: set {sized}"
        )


def _with_length_kept(recipe: Recipe, user_fields: Mapping[str, Any]) -> Recipe:
    """Epochs and batch that are set stay as they are, however few the images (`tasks.lengths`)."""
    floors = {
        "schedule.epochs": "min_steps",
        "batch_size": "min_epoch_steps",
        "accumulate": "min_epoch_steps",
    }
    for name, floor in floors.items():
        if name not in user_fields:
            continue
        if getattr(recipe.schedule, floor) is not None and f"schedule.{floor}" in user_fields:
            raise UsageError(
                f"{name} and schedule.{floor} are both set, and each decides the other: set one "
                "of them"
            )
        off: dict[str, Any] = {floor: None}
        recipe = replace(recipe, schedule=replace(recipe.schedule, **off))
    return recipe


def _without_measuring(recipe: Recipe, user_fields: Mapping[str, Any]) -> Recipe:
    """Fields of detection that are set are not measured on the data."""
    spec = recipe.detection
    if spec is None or "detection.measure" in user_fields:
        return recipe
    measured = tuple(name for name in spec.measure if f"detection.{name}" not in user_fields)
    return (
        recipe
        if measured == spec.measure
        else replace(recipe, detection=replace(spec, measure=measured))
    )


def _with_warmup_scaled(
    recipe: Recipe, own: ScheduleSpec, user_fields: Mapping[str, Any]
) -> Recipe:
    """A run that was made shorter than its warm-up has one in proportion, unless the warm-up was
    set too; it is said.
    """
    spec = recipe.schedule
    if (
        "schedule.epochs" not in user_fields
        or "schedule.warmup_epochs" in user_fields
        or spec.warmup_epochs < spec.epochs
    ):
        return recipe
    scaled = min(round(spec.warmup_epochs * spec.epochs / own.epochs), spec.epochs - 1)
    _log.warning(
        "schedule.epochs=%d is no longer than the recipe's warm-up of %d epochs: "
        "schedule.warmup_epochs=%d, in proportion",
        spec.epochs,
        spec.warmup_epochs,
        scaled,
    )
    return replace(recipe, schedule=replace(spec, warmup_epochs=scaled))


def recipe_from(stored: Mapping[str, Any], *, strict: bool = True) -> Recipe:
    """The recipe that recipe.json holds, whatever stands beside it there.

    Args:
        stored: the content of recipe.json.
        strict: refuse fields that its groups do not have; otherwise they are passed over.

    Raises:
        UsageError: a field that recipes do not have, or a value of another type.
    """
    names = {entry.name for entry in dataclasses.fields(Recipe)}
    recipe: Recipe = _from_json(
        Recipe, {name: value for name, value in stored.items() if name in names}, "", strict=strict
    )
    return recipe


def _from_json(kind: Any, content: Mapping[str, Any], prefix: str, *, strict: bool) -> Any:
    hints = typing.get_type_hints(kind)
    abouts = {
        entry.name: entry.metadata.get(KEY, FieldSetting("")) for entry in dataclasses.fields(kind)
    }
    values = {}
    for name, value in content.items():
        if name not in abouts:
            if not strict:
                continue
            raise no_field(prefix + name, (prefix + field_name for field_name in abouts))
        inner = group_of(hints[name], value)
        if inner is not None and value is not None:
            values[name] = _from_json(inner, value, f"{prefix}{name}.", strict=strict)
        else:
            values[name] = typed(value, hints[name], prefix + name, abouts[name])
    return kind(**values)


def _replace(spec: Any, path: list[str], value: Any, full_name: str) -> Any:
    head, *rest = path
    hints = typing.get_type_hints(type(spec))
    if head not in hints:
        raise no_field(full_name, (row.name for row in walk(Recipe)))
    if rest:
        if getattr(spec, head) is None and head == "table":
            raise UsageError(
                f"'{full_name}' is of a table, and none is given: give --table FILE.csv"
            )
        if getattr(spec, head) is None:
            raise UsageError(
                f"'{full_name}' is a field of {head} recipes, and this one is for {spec.task}"
            )
        return replace(spec, **{head: _replace(getattr(spec, head), rest, value, full_name)})
    if dataclasses.is_dataclass(inner := getattr(spec, head)):
        first = dataclasses.fields(inner)[0].name
        raise UsageError(
            f"'{full_name}' is a group of fields: set one of them, for example "
            f"{full_name}.{first}=…"
        )
    field_setting = next(
        entry.metadata.get(KEY, FieldSetting(""))
        for entry in dataclasses.fields(spec)
        if entry.name == head
    )
    return replace(spec, **{head: typed(value, hints[head], full_name, field_setting)})


def restored(stored: Mapping[str, Any], *, strict: bool = True) -> Recipe:
    """The recipe that was written: JSON has lists alone, and the model's arguments tuples.

    Args:
        stored: the content of recipe.json.
        strict: refuse fields that recipes do not have; otherwise they are passed over.

    Raises:
        UsageError: a field that recipes do not have, or a value of another type.
    """
    recipe = recipe_from(stored, strict=strict)
    args = {name: _tuples(value) for name, value in recipe.model.args.items()}
    return replace(recipe, model=replace(recipe.model, args=args))


@dataclass(frozen=True)
class StoredRecipe:
    """What recipe.json says of a run."""

    recipe: Recipe
    fitted: Mapping[str, Any]  # dotted field -> what the run took in place of the recipe's
    versions: Mapping[str, str]  # package -> version
    machine: Mapping[str, Any]

    @property
    def epochs(self) -> int:
        """The epochs that the run is meant to have."""
        epochs = self.fitted.get("schedule.epochs")
        return epochs if type(epochs) is int else self.recipe.schedule.epochs


def read_stored(path: Path) -> StoredRecipe:
    """Read recipe.json. Fields that only another softless has are passed over.

    Raises:
        DataError: missing, damaged, or no recipe.
    """
    content = read_recipe(path)
    try:
        recipe = restored(content, strict=False)
    except (UsageError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged: {error}; {MEND}") from error
    return StoredRecipe(
        recipe=recipe,
        fitted=content.get("fitted") or {},
        versions={name: str(content[name]) for name in VERSIONS if name in content},
        machine=content.get("machine") or {},
    )


def as_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as it reads back from recipe.json."""
    content: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    return content


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
