"""What is said where an epoch cannot be chosen."""

from types import SimpleNamespace

import pytest

from softless.tasks.classification.task import Classification
from softless.tasks.detection.task import Detection
from softless.training.keep import _usable_measures


@pytest.mark.parametrize(
    ("task", "metric", "found", "said"),
    [
        (
            Detection,
            "mask_ap",
            {
                "box_ap": 0.3,
                "box_ap50": None,
                "box_ap75": None,
                "mask_ap50": None,
                "mask_ap75": None,
            },
            "metric=box_ap or metric=last",
        ),
        (
            Classification,
            "auc",
            {"top1": 0.5, "balanced_accuracy": float("nan"), "loss": 1.0},
            "metric=top1 or metric=loss",
        ),
    ],
)
def test_advice_names_measures_that_the_task_has(task: type, metric: str, found: dict, said: str):
    run = SimpleNamespace(task=task, recipe=SimpleNamespace(metric=metric))
    assert _usable_measures(run, found) == said  # type: ignore[arg-type]
