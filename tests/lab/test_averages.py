"""What a run publishes stands beside what it ended with: other weights, measured on the same
images.
"""

import pytest
import torch

from lab.averages import averages
from softless.errors import UsageError
from softless.evaluation import evaluate
from softless.experiment.checkpoints import Checkpoints
from softless.recipes import get_recipe
from softless.tasks.table import open_task
from softless.training.model import build_for

LIMITS = (40, 60)


def short():
    return get_recipe("digits").with_fields(**{
        "schedule.epochs": 3,
        "batch_size": 20,
        "data.workers": 0,
        "threads": 1,
    })


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return averages(short(), LIMITS, out=tmp_path_factory.mktemp("averages") / "out", device="cpu")


def test_a_row_per_run_and_one_of_means_per_number_of_images(found):
    rows = found.rows()
    assert [(row["limit"], row["kind"], row["images"]) for row in rows] == [
        ("40", "run", 40),
        ("60", "run", 60),
        ("40", "mean", 40),
        ("60", "mean", 60),
    ]
    assert [row["steps"] for row in rows[:2]] == [6, 9]
    for run, mean in zip(rows[:2], rows[2:], strict=True):
        for name in ("val_shipped", "test_shipped", "test_last_raw", "test_last_averaged"):
            assert run[name] == mean[name], "one seed is its own mean"
    assert "test shipped" in str(found)


def test_last_weights_are_those_of_the_last_step(found):
    """Raw and averaged ones are set apart: on three epochs of digits they answer otherwise."""
    for ended in found.runs:
        task = open_task(short().with_fields(**{"data.limit": int(ended.limit)}))
        assert task.splits.test is not None
        model = build_for(task)
        state = Checkpoints(ended.run.folder / "checkpoints").newest()
        assert state is not None
        for kind, key in (("raw", "model"), ("averaged", "ema")):
            model.load_state_dict(state[key])
            right = evaluate(model, task.eval_loader(task.splits.test, 0, 1), task.splits.classes)
            assert ended.last["test"][kind]["top1"] == right.metrics.top1
            assert (
                ended.last["val"][kind]["top1"]
                == ended.run.epochs[-1][{"raw": "val", "averaged": "val_ema"}[kind]]["top1"]
            )
        assert any(
            not torch.equal(state["model"][name], state["ema"][name]) for name in state["model"]
        )


def test_no_run_publishes_less_than_it_ended_with_on_validation(found):
    for ended in found.runs:
        values = ended.values("top1")
        assert values["val_shipped"] >= max(values["val_last_raw"], values["val_last_averaged"])


def test_a_number_of_images_is_named_once(tmp_path):
    with pytest.raises(UsageError, match="each once"):
        averages(short(), (40, 40), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
