"""What a model is trained for: its data, its loss, its measures.

One file per task; the training loop knows `Task` alone.
"""

from typing import TYPE_CHECKING

from softless.errors import UsageError, need, unknown
from softless.tasks import lengths
from softless.tasks.classification import Classification
from softless.tasks.detection import Detection
from softless.tasks.dino import Dino
from softless.tasks.multilabel import Multilabel
from softless.tasks.segmentation import Segmentation
from softless.tasks.task import Outcome, Task, TrainingProgress, facts

if TYPE_CHECKING:
    from softless.training.recipe import Recipe

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Classification, Multilabel, Detection, Segmentation, Dino)
}

__all__ = [
    "TASKS",
    "Classification",
    "Detection",
    "Dino",
    "Multilabel",
    "Outcome",
    "Segmentation",
    "Task",
    "TrainingProgress",
    "facts",
    "open_task",
]


def open_task(recipe: "Recipe") -> Task:
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
