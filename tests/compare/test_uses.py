"""One table over several operators of a recipe of any task: scores, a real step's cost, how far the
curve was from flat.
"""

from dataclasses import replace

import pytest

from softless.compare.uses import numbers, rising, uses
from softless.experiment.recipe import Recipe
from softless.report.runs import RunRecord
from tests.compare.test_compare import short


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    return uses(
        short(), ("sima", "softmax"), out=tmp_path_factory.mktemp("uses") / "out", device="cpu"
    )


def test_a_row_per_operator_with_its_test_scores_and_costs(used):
    rows = used.rows()
    assert [row["operator"] for row in rows] == ["sima", "softmax"]
    for row, run in zip(rows, used.runs, strict=True):
        assert row["top1"] == round(run.result["test"]["top1"], 4)
        assert row["split"] == "test"
        assert row["peak_mib"] >= 0
        assert row["step_s"] > 0
    assert used.report.is_file()
    assert "SimA" in str(used)


def record(values: list[float], metric: str) -> RunRecord:
    epochs = [{"epoch": epoch, "val": {metric: value}} for epoch, value in enumerate(values)]
    empty: dict = {
        "folder": None,
        "versions": {},
        "machine": {},
        "classes": (),
        "result": {},
        "best": {},
        "predictions": None,
    }
    return RunRecord(recipe=Recipe("", "", metric=metric), epochs=epochs, **empty)


def test_what_the_last_quarter_added():
    assert (
        rising(record([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.7], "box_ap"))
        == "+10.0 points of box AP"
    )
    assert rising(record([0.1, 0.7, 0.6, 0.5], "miou")) == "+0.0 points of mIoU"
    assert rising(record([2.0, 1.0, 0.8, 0.6], "loss")) == "+0.2 of loss"
    assert not rising(record([0.1, 0.2], "miou")), "too short to say"


def test_numbers_hold_measures_and_classes():
    scores = {"miou": 0.12345, "seen": 3, "per_class": {"dice": {"vessel": 0.7, "other": None}}}
    assert numbers(scores) == {"miou": 0.1235, "dice_vessel": 0.7}


def test_baselines_follow_the_runs(used):
    row = replace(used, baselines={"all background": {"dice": 0.0}}).rows()[-1]
    assert row == {"model": "all background", "dice": 0.0, "split": "test"}
