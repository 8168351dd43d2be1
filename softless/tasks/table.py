"""What each task brings, gathered from its folder."""

from dataclasses import replace
from types import ModuleType
from typing import NamedTuple

from softless.data.samples import Samples
from softless.errors import DataError, UsageError, need, unknown
from softless.evaluation.run import LoadedRun
from softless.experiment.bag_table import BagTableSpec
from softless.experiment.groups import LISTED, TableSpec
from softless.experiment.recipe import Recipe
from softless.tasks import folders, lengths
from softless.tasks.folders import of_tasks
from softless.tasks.task import Task


class TaskRow(NamedTuple):
    """What a task brings."""

    task: type[Task]
    # its part of a run's page: `headline`, `samples`, SAMPLES (how to read them), `method` (how the
    # measures came about), and `numbers` and `further` sections where it has some
    page: ModuleType
    predict: ModuleType | None  # `predict`; None where it gives no answers to images


_TASKS, _PAGES, _PREDICTS = of_tasks("task"), of_tasks("page"), of_tasks("predict")
TABLE = {
    name: TaskRow(_TASKS[name].TASK, _PAGES[name], _PREDICTS.get(name)) for name in folders.TASKS
}
TASKS: dict[str, type[Task]] = {name: row.task for name, row in TABLE.items()}


def open_task(recipe: Recipe) -> Task:
    """The task of a recipe, its data opened and checked; the task's own recipe has the length that
    fits them.

    Raises:
        MissingExtra: a package that the run would need at some time is not installed.
        DataError: what is wrong with the data.
        UsageError: a field of the recipe that does not fit, or a measure that the task does not
            have.
    """
    recipe.check()
    kind = TASKS[recipe.task]
    if recipe.metric not in kind.measures:
        raise unknown(f"measure of {kind.name}", recipe.metric, kind.measures)
    if recipe.class_weights != "none" and not kind.weighs:
        raise UsageError(
            f"class_weights={recipe.class_weights} is for classification; this recipe is for "
            f"{kind.name}"
        )
    need(*kind.needs, *(["sklearn"] if recipe.data.source == "digits" else []))
    task = kind.open(recipe)
    recipe, measurements = task.measured(recipe)
    task.fitted = lengths.fitted(recipe, len(task.splits.train)).with_measured(measurements)
    task.recipe = task.fitted.recipe
    return task


def dense_samples(
    loaded: LoadedRun,
    path: str | None,
    split: str,
    *,
    table: TableSpec | BagTableSpec | None = None,
    batch_size: int | None = None,
    workers: int = 0,
) -> tuple[Task, Samples]:
    """The run's own task on a split of labelled images, their classes in the run's order.

    Args:
        loaded: a run of any task but classification.
        path: where the images are; None is where the run found its own.
        split: train, val or test.
        table: that lists other samples, where the task takes one.
        batch_size: images at once; as in training by default.
        workers: processes that load images.

    Raises:
        DataError: the images cannot be read, have other classes, or have no such split.
    """
    stored = loaded.recipe
    spec = replace(stored.data, path=path or stored.data.path, workers=workers)
    recipe = replace(stored, data=spec, batch_size=batch_size or stored.batch_size)
    if loaded.task in LISTED and (path is not None or table is not None):
        whole = replace(spec, folds=None, fold=None)
        recipe = replace(recipe, data=whole, table=table or stored.table)
        task = TASKS[loaded.task].open_other(recipe, split)
    else:
        task = open_task(recipe)
    task = task.with_classes(loaded.classes, f"the run {loaded.path}")
    splits = {"train": task.splits.train, "val": task.splits.val, "test": task.splits.test}
    samples = splits[split]
    if samples is None:
        raise DataError(
            f"{spec.path} has no test split: choose --split val, or give other images with --data"
        )
    return task, samples
