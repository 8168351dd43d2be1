"""The tasks, a line for each: the name of its folder here, of its group in a recipe, and of it in
the files of a run.

Files of the same name do the same in every folder. Whatever is known of all tasks is gathered from
them by `of_tasks`, so a new task is its folder and its line.
"""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

TASKS = (  # the first is the task of recipes that set no group of a task
    "classification",
    "multilabel",
    "detection",
    "segmentation",
    "bags",
    "distillation",
    "dino",
)


def of_tasks(file: str) -> dict[str, ModuleType]:
    """Task -> the module of this name in its folder; a task whose folder has none is left out.

    Args:
        file: "settings", "scores", "small", "model", "task", "predict" or "page". It stands in the
            code as it is, so that `tools/stairs.py` counts the call as imports of these modules.
    """
    names = {task: f"{__package__}.{task}.{file}" for task in TASKS}
    return {task: import_module(name) for task, name in names.items() if find_spec(name)}
