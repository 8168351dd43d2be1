"""`python -m lab eyes`: photographs as bags, told apart in folds that all ways share."""

import csv
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lab.eyes import Bench, by_hand, eyes
from softless.errors import DataError, UsageError
from tests.histology.encoders import saved

pytest.importorskip("h5py")
pytest.importorskip("sklearn")
pytest.importorskip("shapely")
module = importlib.import_module("lab.eyes")
KINDS = ("bright", "dark", "striped")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifteen small photographs of three kinds, and an encoder."""
    root = tmp_path_factory.mktemp("eyes")
    random = np.random.default_rng(0)
    (root / "images" / "train").mkdir(parents=True)
    rows = []
    for number in range(15):
        kind = KINDS[number % 3]
        pixels = random.normal(200 if kind == "bright" else 90, 12, (64, 96, 3))
        if kind == "striped":
            pixels[:, ::8] += 70
        name = f"{number:02d}_{kind}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "images" / "train" / name)
        rows.append((name, "train", kind))
    with (root / "diagnosis.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "split", "diagnosis"), *rows])
    saved(root / "encoder")
    return root


def test_ways_share_their_folds_and_are_measured(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {
        "schedule.epochs": 1,
        "schedule.min_steps": "none",
        "schedule.warmup_epochs": 0,
        "batch_size": 4,
    }
    fields = {**module.FIELDS, **small, "schedule.min_epoch_steps": "none", "threads": 1}
    monkeypatch.setattr(module, "FIELDS", fields)
    monkeypatch.setattr(module, "WHOLE", 64)
    words = {"data": places, "encoder": str(places / "encoder"), "tile": 32, "seeds": 1}
    found = eyes(models=("mean_bag",), out=tmp_path / "out", **words)  # type: ignore[arg-type]
    assert [row.way.split(",")[0] for row in found.rows] == [
        "mean_bag",
        "largest features of tiles",
        "whole photograph",
        "features by hand",
    ]
    for row in found.rows:
        assert (row.low, row.high) == (None, None)  # too few eyes for an interval
        assert row.auc == row.auc_least == row.auc_most == row.auc_averaged
        assert (row.eyes, row.seeds) == (15, 1)
    assert found.rows[-1].auc > 0.9  # brightness and stripes are told by hand
    told = json.loads((tmp_path / "out" / "mean_bag-seed10" / "folds.json").read_text())
    assert told["folds"] == 5
    with pytest.raises(UsageError, match="is there already"):
        eyes(models=("mean_bag",), out=tmp_path / "out", **words)  # type: ignore[arg-type]
    again = eyes(models=("mean_bag",), out=tmp_path / "out", resume=True, **words)  # type: ignore[arg-type]
    assert again.rows == found.rows


def test_a_regression_never_sees_the_eyes_that_it_answers(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features that are the number of the eye: what is known by heart is of no use."""
    bench = Bench(places, str(places / "encoder"), 32, tmp_path, resume=False)
    folds = np.arange(15) % 5
    monkeypatch.setattr(Bench, "_folds", lambda *_: folds)
    answers = bench._regressed(np.eye(15), 0)
    assert np.allclose(answers.sum(1), 1)
    right = answers[np.arange(15), bench.labels]
    assert right.max() < 0.5  # trained on itself each would be found
    with pytest.raises(DataError, match=r"holds no diagnosis\.csv"):
        Bench(tmp_path, "x", 32, tmp_path, resume=False)


def test_features_by_hand_leave_out_what_is_no_eye(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    eye = random.integers(80, 200, (64, 64, 3), dtype=np.uint8)
    eye = np.kron(eye, np.ones((2, 2, 1), dtype=np.uint8))
    Image.fromarray(eye).save(tmp_path / "eye.png")
    framed = np.zeros((192, 192, 3), dtype=np.uint8)
    framed[32:160, 32:160] = eye
    Image.fromarray(framed).save(tmp_path / "framed.png")
    bare, inside = by_hand(tmp_path / "eye.png"), by_hand(tmp_path / "framed.png")
    assert np.allclose(bare[:21], inside[:21])
    assert np.allclose(bare[21:], inside[21:], rtol=0.2)
