"""What each task brings, gathered from its folder."""

from types import ModuleType
from typing import NamedTuple

from softless.errors import UsageError, need, unknown
from softless.experiment.recipe import Recipe
from softless.tasks import folders, lengths
from softless.tasks.classification.task import Classification
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
    if recipe.class_weights != "none" and not issubclass(kind, Classification):
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
