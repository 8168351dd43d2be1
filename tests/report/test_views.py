"""The page's view and predict's answers are chosen from tables of tasks, not by names in files."""

from types import SimpleNamespace
from typing import Any

import pytest

from softless.cli.predict import ANSWERS
from softless.errors import UsageError
from softless.report.page import VIEWS, _view
from softless.tasks import TASKS


def groups(*tasks: str) -> Any:
    return [SimpleNamespace(runs=[SimpleNamespace(task=task)]) for task in tasks]


def test_the_tables_have_every_task():
    assert set(VIEWS) == set(TASKS)
    assert set(ANSWERS) == set(TASKS) - {"dino"}, "which names nothing"


@pytest.mark.parametrize("task", VIEWS)
def test_every_task_has_its_view(task: str):
    assert callable(_view(groups(task, task)).headline)


@pytest.mark.parametrize("task", ["html", "page", "numbers", "detektion", ""])
def test_another_module_of_the_page_is_no_task(task: str):
    with pytest.raises(UsageError, match=f"no task named '{task}'"):
        _view(groups(task))
