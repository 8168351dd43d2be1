"""Runs exported in eight bits and pooled over their seeds."""

import importlib
import json
from dataclasses import replace

import pytest

from lab.exports import Answers, Pooled, exports
from softless.errors import UsageError
from tests.exporting.trained import digits_run

module = importlib.import_module("lab.exports")


def answers(right, right_plain, **changed):
    measured = Answers(
        "digits",
        "sima",
        0,
        "onnx",
        "static",
        "products",
        True,
        {},
        "edge",
        right,
        right_plain,
        1.0,
        0.01,
        10,
        40,
    )
    return replace(measured, **changed)


def test_pooled_over_seeds():
    same = [True] * 90 + [False] * 10
    worse = [True] * 88 + [False] * 12
    pooled = Pooled((
        answers(same, same),
        answers(worse, same, seed=1, agreement=0.98, recipe="weights", passed=False),
    ))
    row = pooled.row()
    assert (row["seeds"], row["images"], row["gate"]) == (2, 100, "1 of 2")
    assert (row["top1_float"], row["top1_int8"], row["drop"]) == (0.9, 0.89, -0.01)
    assert (row["agreement"], row["least_agreement"]) == (0.99, 0.98)
    assert row["recipe"] == "products weights"
    assert row["bar"] == "missed"
    assert Pooled((answers(same, same),)).row()["bar"] == "met"
    # the estimate holds and the interval does not
    single = [True] * 200
    less = [*single[:-1], False]
    assert Pooled((answers(less, single),)).drop.value == -0.005
    assert not Pooled((answers(less, single),)).holds


def test_runs_are_exported_once_and_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "record_path", lambda name: tmp_path / f"{name}.csv")
    run = digits_run(tmp_path / "digits", token_scale="tokens")
    out = tmp_path / "answers"
    found = exports([str(run)], formats=["onnx"], out=out, record=True)
    assert [(p.runs[0].kind, p.runs[0].op) for p in found.pooled] == [
        ("static", "sima"),
        ("weights", "sima"),
    ]
    first = found.pooled[0].runs[0]
    assert len(first.right) == 397
    assert sum(first.right_plain) / 397 > 0.6
    assert 0 < first.bytes < first.float_bytes
    assert (tmp_path / "int8.csv").read_text().count("\n") == 3
    assert "products" in str(found)
    with pytest.raises(UsageError, match="is there already"):
        exports([str(run)], formats=["onnx"], out=out)
    monkeypatch.setattr(module, "export", None)  # nothing is exported again
    again = exports([str(run)], formats=["onnx"], out=out, resume=True)
    assert json.dumps(again.to_dict()) == json.dumps(found.to_dict())


def test_what_cannot_be_measured_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no runs"):
        exports()
    with pytest.raises(UsageError, match="no kind 'four' of eight bits"):
        exports([str(tmp_path)], kinds=["four"])
    with pytest.raises(UsageError, match="format"):
        exports([str(tmp_path)], formats=["onx"])
