"""`bench recover`: operators beside each other in one trained model."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from softless.cli.main import main
from softless.compare import recovery
from softless.errors import UsageError
from tests.exporting.trained import digits_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return digits_run(tmp_path_factory.mktemp("digits"), op="softmax")


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """Class folders of digits that the run was not trained on."""
    root = tmp_path_factory.mktemp("images")
    images, targets = load_digits(return_X_y=True)
    for row in range(1400, 1600):
        folder = root / str(targets[row])
        folder.mkdir(exist_ok=True)
        pixels = np.round(images[row].reshape(8, 8) * 15.9).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{row}.png")
    return root


def test_a_line_for_each_operator_and_step(run, digits, tmp_path, capsys, monkeypatch):
    out, record = tmp_path / "out", tmp_path / "recorded.csv"
    monkeypatch.setattr(recovery, "record_path", lambda _: record)
    words = ["bench", "recover", str(run), "--images", str(digits), "--number", "64"]
    words += ["--steps", "refit", "--seeds", "2", "--out", str(out), "--ops", "relu_linear", "sima"]
    assert main([*words, "softmax", "--record", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    rows = printed["rows"]
    assert [(row["op"], row["step"]) for row in rows] == [
        ("relu_linear", "bare"),
        ("relu_linear", "refit"),
        ("sima", "bare"),
        ("sima", "refit"),
        ("softmax", ""),
    ]
    assert "its attention is softmax already" in rows[-1]["why"]
    for bare, refit in (rows[:2], rows[2:4]):
        assert refit["kl"] < bare["kl"]
        assert refit["low"] <= refit["top1"] <= refit["high"]
        assert refit["share"] == refit["top1"] / refit["teacher_top1"]
        assert refit["seeds"] == 2
    told = [
        json.loads((out / f"sima-seed{seed}/recover.json").read_text())["steps"]["refit"]["kl"]
        for seed in range(2)
    ]
    assert told[0] != told[1]
    assert rows[3]["kl"] == pytest.approx(sum(told) / 2)
    with record.open(encoding="utf-8") as file:
        assert [row["op"] for row in csv.DictReader(file)] == [row["op"] for row in rows]
    assert main(words) == 2
    assert "overwrite deletes it" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 0
    assert "relu_linear" in capsys.readouterr().out


def test_what_fits_no_operator_is_an_error(run, digits, tmp_path):
    with pytest.raises(UsageError, match="softmax already"):
        recovery.recoveries(str(run), images=digits, ops=["softmax"], out=tmp_path / "out")
    with pytest.raises(UsageError, match="'swap'"):
        recovery.recoveries(str(run), images=digits, steps=["swap"], out=tmp_path / "out")
    with pytest.raises(UsageError, match="at least one"):
        recovery.recoveries(str(run), images=digits, seeds=0, out=tmp_path / "out")
