"""The table of the tasks: a row for each folder of `tasks/`."""

from types import ModuleType
from typing import NamedTuple

from softless.errors import UsageError, need, unknown
from softless.experiment.recipe import Recipe
from softless.tasks import lengths
from softless.tasks.classification import page as classification_page
from softless.tasks.classification import predict as classification_predict
from softless.tasks.classification.task import Classification
from softless.tasks.detection import page as detection_page
from softless.tasks.detection import predict as detection_predict
from softless.tasks.detection.task import Detection
from softless.tasks.dino import page as dino_page
from softless.tasks.dino.task import Dino
from softless.tasks.multilabel import page as multilabel_page
from softless.tasks.multilabel import predict as multilabel_predict
from softless.tasks.multilabel.task import Multilabel
from softless.tasks.segmentation import page as segmentation_page
from softless.tasks.segmentation import predict as segmentation_predict
from softless.tasks.segmentation.task import Segmentation
from softless.tasks.task import Task


class TaskRow(NamedTuple):
    """What a task brings."""

    task: type[Task]
    # its part of a run's page: `headline`, `samples`, SAMPLES (how to read them), `method` (how the
    # measures came about), and `numbers` and `further` sections where it has some
    page: ModuleType
    predict: ModuleType | None  # `predict`; None where it gives no answers to images


ROWS = (
    TaskRow(Classification, classification_page, classification_predict),
    TaskRow(Multilabel, multilabel_page, multilabel_predict),
    TaskRow(Detection, detection_page, detection_predict),
    TaskRow(Segmentation, segmentation_page, segmentation_predict),
    TaskRow(Dino, dino_page, None),
)
TABLE = {row.task.name: row for row in ROWS}
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
