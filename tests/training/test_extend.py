"""A run is made longer: the same run up to where it stood, the longer schedule from there on."""

import json
from pathlib import Path

import pytest

import softless
from softless.errors import ResumeMismatch, UsageError
from softless.training import Recipe, fit
from tests.training.test_loop import lines, same, state, untimed


def again(recipe: Recipe | None, out: Path):
    return fit(recipe, out, resume=True, device="cpu", progress=False)


def test_a_finished_run_follows_the_longer_schedule(tiny: Recipe, tmp_path: Path):
    out = tmp_path / "run"
    short = fit(tiny, out, device="cpu", progress=False)
    assert short.extended_from == []
    before = untimed(out)
    longer = tiny.with_fields(**{"schedule.epochs": 5})
    result = again(longer, out)
    assert (result.epochs, result.extended_from) == (5, [3])
    assert "made longer than the 3 epochs" in str(result)
    assert json.loads((out / "result.json").read_text())["extended_from"] == [3]
    assert [line["epoch"] for line in lines(out)] == [1, 2, 3, 4, 5]
    assert untimed(out)[:3] == before
    fit(longer, tmp_path / "whole", device="cpu", progress=False)
    assert [line["lr"] for line in lines(out)][3:] == [
        line["lr"] for line in lines(tmp_path / "whole")
    ][3:]
    assert again(None, out) == result, "a run that is finished is told again"
    assert (again(tiny.with_fields(**{"schedule.epochs": 6}), out)).extended_from == [3, 5]


def test_an_extension_that_stops_goes_on_with_the_same_bits(
    tiny: Recipe, tmp_path: Path, monkeypatch
):
    from softless.training import loop

    for name in ("whole", "cut"):
        fit(tiny, tmp_path / name, device="cpu", progress=False)
    longer = tiny.with_fields(**{"schedule.epochs": 5})
    again(longer, tmp_path / "whole")
    inner, count = loop.train_step, []

    def dies(*args):
        count.append(1)
        if len(count) == 6:  # in the second of the two epochs that were added
            raise KeyboardInterrupt
        return inner(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", dies)
        with pytest.raises(KeyboardInterrupt):
            again(longer, tmp_path / "cut")
    assert not (tmp_path / "cut" / "result.json").exists(), "it is not finished any more"
    assert again(None, tmp_path / "cut").extended_from == [3]
    assert untimed(tmp_path / "cut") == untimed(tmp_path / "whole")
    assert same(state(tmp_path / "cut"), state(tmp_path / "whole"))


def test_only_epochs_may_change_and_only_upwards(tiny: Recipe, tmp_path: Path):
    out = tmp_path / "run"
    fit(tiny, out, device="cpu", progress=False)
    with pytest.raises(
        UsageError,
        match="has 3 epochs, and a run that is continued can only be made longer: set more than 3",
    ):
        again(tiny.with_fields(**{"schedule.epochs": 2}), out)
    with pytest.raises(ResumeMismatch, match=r"optim.lr"):
        again(tiny.with_fields(**{"schedule.epochs": 5, "optim.lr": 1e-4}), out)
    with pytest.raises(ResumeMismatch, match=r"schedule.min_lr"):
        again(tiny.with_fields(**{"schedule.epochs": 5, "schedule.min_lr": 1e-6}), out)
    assert len(lines(out)) == 3


def test_what_was_fitted_at_the_start_stays(tiny: Recipe, tmp_path: Path):
    """48 images in batches of 12 that were halved to 6, and two epochs that became four, the
    warm-up with them.
    """
    out = tmp_path / "run"
    few = tiny.with_fields(**{"schedule.min_steps": 48, "schedule.min_epoch_steps": 8})
    first = fit(few, out, device="cpu", progress=False)
    assert first.epochs == 6
    held = json.loads((out / "recipe.json").read_text())
    assert held["fitted"] == {
        "batch_size": 6,
        "schedule.epochs": 6,
        "schedule.warmup_epochs": 2,
        "ema_decay": pytest.approx(0.9**0.5),
    }
    with pytest.raises(UsageError, match="has 6 epochs"):
        softless.train(out=out, resume=True, set=["schedule.epochs=5"], device="cpu")
    result = softless.train(out=out, resume=True, set=["schedule.epochs=7"], device="cpu")
    assert (result.epochs, result.extended_from) == (7, [6])
    held = json.loads((out / "recipe.json").read_text())
    assert (held["schedule"]["warmup_epochs"], held["fitted"]["batch_size"]) == (2, 6)
