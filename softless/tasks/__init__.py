"""What a model is trained for: a folder for each task, and what all share."""

from softless.moved import names_in

__getattr__ = names_in(
    __name__,
    {
        "TASKS": "softless.tasks.table",
        "open_task": "softless.tasks.table",
        "Task": "softless.tasks.task",
        "Outcome": "softless.tasks.task",
        "facts": "softless.tasks.task",
    },
)
