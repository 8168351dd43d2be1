"""result.json, `eval` and `predict` say one thing of a run, in the precision that it was trained
in.
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from softless.cli.eval import eval as eval_run
from softless.cli.predict import predict
from softless.errors import UsageError
from softless.recipes import get_recipe
from softless.tasks.segmentation.values import read_values
from softless.training import fit

FIELDS: dict[str, dict[str, Any]] = {  # a recipe of each task
    "folder": {},
    "nuclei": {"detection.min_score": 0.0},
    "vessels": {"segmentation.fov": None, "segmentation.ignore": ()},
}


@pytest.fixture(scope="module", params=list(FIELDS))
def run(request, tmp_path_factory) -> Path:
    """A run of two steps in bfloat16."""
    folder = tmp_path_factory.mktemp(request.param)
    recipe = get_recipe(request.param).quick(folder / "data").with_fields(amp="bfloat16")
    fit(recipe.with_fields(**FIELDS[request.param]), folder / "run", device="cpu", progress=False)
    return folder / "run"


def measures(content: dict) -> dict:
    return {name: value for name, value in content.items() if isinstance(value, float | dict)}


def test_eval_is_the_result(run: Path):
    result = measures(json.loads((run / "result.json").read_text())["test"])
    found = eval_run(run, device="cpu")
    assert {name: value for name, value in found.to_dict().items() if name in result} == result
    assert result
    assert found.to_dict()["precision"] == "bfloat16"
    assert "computed in bfloat16" in str(found)
    single = eval_run(run, device="cpu", amp="none")
    assert (single.to_dict()["precision"], "computed in float32" in str(single)) == (
        "float32",
        True,
    )
    assert answers(single) != answers(found), "or the test says nothing"
    with pytest.raises(UsageError, match="no precision named 'half'"):
        eval_run(run, device="cpu", amp="half")  # type: ignore[arg-type]


def answers(found) -> object:
    """What the model said, whatever its task."""
    outcome = getattr(found, "evaluation", None) or found.outcome
    for name in ("logits", "answers", "loss"):
        if hasattr(outcome, name):
            held = getattr(outcome, name)
            return held.tolist() if isinstance(held, np.ndarray) else held
    raise AssertionError


@pytest.mark.parametrize("amp", [None, "none"])
def test_predict_says_what_eval_measures(run: Path, tmp_path: Path, amp):
    recipe = json.loads((run / "recipe.json").read_text())
    root = Path(recipe["data"]["path"])
    folder = root / "test" if (root / "test").is_dir() else root / "images" / "test"
    told = predict(run, folder, tmp_path / "out", overlays=False, device="cpu", amp=amp)
    measured = eval_run(run, device="cpu", amp=amp)
    precision = "bfloat16" if amp is None else "float32"
    assert told.to_dict()["precision"] == measured.to_dict()["precision"] == precision
    assert f"computed in {precision}" in str(told)
    if hasattr(measured, "evaluation"):
        with (tmp_path / "out/predictions.csv").open(newline="") as file:
            said = np.array([
                [float(value) for value in row[2:]] for row in list(csv.reader(file))[1:]
            ])
        logits = measured.evaluation.logits.astype(np.float64)
        chances = np.exp(logits - logits.max(1, keepdims=True))
        np.testing.assert_allclose(said, chances / chances.sum(1, keepdims=True), atol=1e-6)
        return
    if hasattr(measured.outcome, "answers"):
        content = json.loads((tmp_path / "out/predictions.json").read_text())
        assert content["info"] == {"precision": precision}
        said = [[one["bbox"], one["score"], one["category_id"]] for one in content["annotations"]]
        assert said == [
            [one["bbox"], one["score"], one["category_id"]] for one in measured.outcome.answers
        ]
        assert said
        return
    for path, label in zip(
        sorted((tmp_path / "out/labels").iterdir()), measured.outcome.labels, strict=True
    ):
        (tmp_path / "label.png").write_bytes(label)
        with Image.open(tmp_path / "label.png") as image:
            assert np.array_equal(read_values(path), np.asarray(image))
