"""The groups of the tasks as fields of a recipe, in the order of the table of tasks.

For type checkers `task_fields.pyi` says the same, written by `tools/task_fields.py`.
"""

from dataclasses import field, make_dataclass

from softless.tasks.folders import of_tasks

# task -> its group: what a recipe sets to be one of this task
GROUPS = {task: module.SETTINGS for task, module in of_tasks("settings").items()}

TaskFields = make_dataclass(
    "TaskFields",
    [(task, group | None, field(default=None)) for task, group in GROUPS.items()],
    frozen=True,
    namespace={"__module__": __name__, "__doc__": "A group for each task; a recipe sets one."},
)
