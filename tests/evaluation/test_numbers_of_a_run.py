"""What a run of two classes says of its test images: the threshold is validation's, and `eval`,
result.json and `runs` agree.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, confusion_matrix, roc_auc_score, roc_curve

from softless.cli.eval import eval as eval_run
from softless.cli.runs import runs
from softless.tasks.loaded import load_run
from softless.training import fit
from tests.training.conftest import tiny_recipe, write_npz


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    fit(
        tiny_recipe(write_npz(folder / "images.npz", classes=2)),
        folder / "run",
        device="cpu",
        progress=False,
    )
    return folder / "run"


def test_the_threshold_is_chosen_on_validation_images(run: Path):
    evaluation = eval_run(run, split="val", device="cpu").evaluation
    chances = np.exp(evaluation.logits.astype(float))
    chances = chances[:, 1] / chances.sum(1)
    false, true, _ = roc_curve(evaluation.targets, chances, drop_intermediate=False)
    threshold = load_run(run).threshold
    assert threshold is not None
    said = chances >= threshold
    gained = said[evaluation.targets == 1].mean() - said[evaluation.targets == 0].mean()
    assert gained == pytest.approx((true - false).max(), abs=1e-9)
    result = json.loads((run / "result.json").read_text())
    assert result["val"]["threshold"] == threshold == result["test"]["at_threshold"]["threshold"]
    assert "threshold" not in result["test"], "test images choose nothing"


def test_the_numbers_are_those_of_the_answers_beside_them(run: Path):
    result = json.loads((run / "result.json").read_text())["test"]
    with np.load(run / "predictions.npz") as held:
        logits, targets = held["logits"].astype(float), held["targets"]
    chances = np.exp(logits[:, 1]) / np.exp(logits).sum(1)
    said = chances >= result["at_threshold"]["threshold"]
    ((passed, called), (missed, found)) = confusion_matrix(targets, said)
    assert result["at_threshold"]["sensitivity"] == pytest.approx(
        found / (found + missed), abs=1e-9
    )
    assert result["at_threshold"]["specificity"] == pytest.approx(
        passed / (passed + called), abs=1e-9
    )
    assert result["auc"] == pytest.approx(
        roc_auc_score(targets, logits[:, 1] - logits[:, 0]), abs=1e-9
    )
    assert result["brier"] == pytest.approx(brier_score_loss(targets, chances), abs=1e-6)
    assert result["commonest"] == max(np.bincount(targets)) / len(targets)
    assert result["chance"] == 0.5
    assert set(result["per_class"]) == {"precision", "recall", "auc"}


def test_eval_says_the_same_in_words(run: Path):
    found = eval_run(run, device="cpu")
    result = json.loads((run / "result.json").read_text())["test"]
    told = json.loads(json.dumps(found.to_dict()))
    assert {name: told[name] for name in result} == result
    text = str(found)
    for line in (
        "always the commonest",
        "chance",
        "sensitivity",
        "specificity",
        "chosen on validation images",
        "Brier score",
        "calibration error",
        "recall",
    ):
        assert line in text


def test_runs_hold_the_accuracy_against_the_commonest_class(run: Path):
    assert "always the commonest class 50.0%, chance 50.0%" in str(runs(run.parent))


def test_a_run_that_chose_no_threshold_has_no_operating_point(run: Path):
    """As an older softless left it."""
    evaluation = replace(eval_run(run, device="cpu").evaluation, threshold=None)
    assert evaluation.to_dict()["at_threshold"] is None
    assert "sensitivity" not in str(evaluation)
