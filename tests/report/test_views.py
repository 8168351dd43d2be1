"""The page's view and predict's answers are chosen from tables of tasks, not by names in files."""

from types import SimpleNamespace
from typing import Any

import pytest

from softless.errors import UsageError
from softless.tasks.page import _view
from softless.tasks.table import TABLE


def groups(*tasks: str) -> Any:
    return [SimpleNamespace(runs=[SimpleNamespace(task=task)]) for task in tasks]


@pytest.mark.parametrize("task", TABLE)
def test_every_task_has_its_view(task: str):
    assert callable(_view(groups(task, task)).headline)


@pytest.mark.parametrize("task", TABLE)
def test_every_task_answers_but_those_that_name_nothing_or_hold_no_code(task: str):
    """Dino has no classes; a student's code is in no file of its run."""
    answers: Any = TABLE[task].predict
    assert (answers is None) == (task in {"dino", "distillation"})
    assert answers is None or callable(answers.predict)


@pytest.mark.parametrize("task", ["html", "page", "numbers", "detektion", ""])
def test_another_module_of_the_page_is_no_task(task: str):
    with pytest.raises(UsageError, match=f"no task named '{task}'"):
        _view(groups(task))
