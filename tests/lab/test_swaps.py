"""Families of timm, swapped or refused, with audits before and after."""

import importlib

import pytest

from lab.__main__ import run
from lab.swaps import FAMILIES, families
from softless.cli.main import main

module = importlib.import_module("lab.swaps")


@pytest.mark.extra
def test_swapped_in_part_and_refused(monkeypatch, tmp_path):
    """A family that is swapped whole, one whose class attention alone is, and one that is
    refused.
    """
    monkeypatch.setattr(module, "record_path", lambda name: tmp_path / f"{name}.csv")
    found = families(["XCiT", "CaiT", "LeViT"], record=True)
    xcit, cait, levit = found.rows
    width, heads = 128 // 4, 4
    assert (xcit.swapped, xcit.kept, xcit.why, xcit.softmax_after) == (14, 0, "", 0)
    assert xcit.softmax_before == 12 * heads * width**2 + 2 * heads * 197
    assert xcit.bare_error is not None
    assert xcit.calibrated_error is not None
    assert 0 < xcit.calibrated_error <= xcit.bare_error
    assert (cait.swapped, cait.kept) == (2, 24)
    assert "talking heads" in cait.why
    assert cait.softmax_before - cait.softmax_after == 2 * heads * 197
    assert (levit.swapped, levit.softmax_after, levit.bare_error) == (0, levit.softmax_before, None)
    assert levit.kept == 11
    assert (xcit.by_force, cait.by_force, levit.by_force) == (0, 24, 0)
    assert "a bias by relative position" in levit.why
    assert (tmp_path / "swaps.csv").read_text(encoding="utf-8").count("\n") == 4
    assert "talking heads" in str(found)


def test_what_force_gives_up_is_measured_on_trained_weights(monkeypatch, tmp_path):
    """Of a model of one block and one epoch; its bias is no longer zero, as drawn weights have
    it.
    """
    trained = importlib.import_module("lab.biases")
    monkeypatch.setattr(trained, "record_path", lambda name: tmp_path / f"{name}.csv")
    monkeypatch.setattr(trained, "GIVEN_UP", {"SAM": "a bias by queries and position"})
    monkeypatch.setattr(trained, "SIZES", {"embed_dim": 32, "depth": 1, "num_heads": 2})
    found = trained.biases(epochs=1, record=True)
    (row,) = found.rows
    assert 1e-4 < row.branch_error < 1
    assert 0.05 < row.accuracy <= 1
    assert 0.05 < row.accuracy_without <= 1
    assert "1 epochs" not in str(found)
    assert (tmp_path / "biases.csv").read_text(encoding="utf-8").count("\n") == 2


def test_other_operators_and_every_name(monkeypatch, capsys):
    import timm

    assert all(timm.is_model(name) for name in FAMILIES.values())
    monkeypatch.setattr(module, "FAMILIES", {"DeiT": FAMILIES["DeiT"]})
    assert main(["swaps", "--op", "xca"], run=run) == 0
    assert "attention 'xca'" in capsys.readouterr().out
    assert main(["swaps", "--op", "simma"], run=run) == 2
    assert "Did you mean 'sima'" in capsys.readouterr().err
