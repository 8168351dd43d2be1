import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from softless.experiment.candidates import (
    best_of,
    better,
    candidates,
    described,
    gain,
    measured,
    still_rising,
)
from softless.training import Recipe, fit
from softless.training.optim import averaged


def pair(value, loss=1.0, weights="averaged", metric="top1"):
    return {
        "epoch": 1,
        "counted_from": 1,
        "weights": weights,
        "metric": metric,
        "value": value,
        "loss": loss,
    }


def line(epoch: int, raw: float, average: float | None = None, *, raw_loss: float = 1.0) -> dict:
    both = {} if average is None else {"val_ema": {"top1": average, "loss": 1.0}}
    return {"epoch": epoch, "weights": None, "val": {"top1": raw, "loss": raw_loss}, **both}


@pytest.mark.bar("A14", "a measure that is not finite, or missing: never the best")
@pytest.mark.parametrize(
    ("new", "old", "wins"),
    [
        (pair(0.9), None, True),
        (pair(0.9), pair(0.8, 0.1), True),
        (pair(0.9, 1.0), pair(0.9, 1.1), True),
        (pair(0.9, 1.1), pair(0.9, 1.0), False),
        (pair(math.nan), None, False),
        (pair(0.9, math.nan), None, False),
        (pair(None), None, False),
        # a tie goes to the average, whatever the loss
        (pair(0.9, 0.1, "raw"), pair(0.9, 1.0), False),
        (pair(0.9, 1.0), pair(0.9, 0.1, "raw"), True),
        (pair(0.91, 1.0, "raw"), pair(0.9, 0.1), True),
        (pair(0.1, 0.1, metric="loss"), pair(0.2, 0.2, metric="loss"), True),
        (pair(0.2, 0.2, metric="loss"), pair(0.1, 0.1, metric="loss"), False),
    ],
)
def test_what_is_better(new, old, wins: bool):
    assert better(new, old) is wins


def test_an_epoch_offers_both_kinds_of_weights():
    assert [one["weights"] for one in candidates(line(3, 0.5, 0.4), "top1")] == ["averaged", "raw"]
    assert best_of(line(3, 0.5, 0.4), "top1")["weights"] == "raw"
    assert best_of(line(3, 0.4, 0.5), "top1")["weights"] == "averaged"
    assert best_of(line(3, 0.5, 0.5, raw_loss=0.1), "top1")["weights"] == "averaged"
    assert best_of(line(3, 0.5, math.nan), "top1")["weights"] == "raw"
    assert best_of(line(3, 0.5), "top1")["weights"] == "raw"
    assert best_of(line(3, 0.5, 0.9), "last") == pair(3, weights="averaged", metric="last") | {
        "epoch": 3
    }


def test_a_line_of_an_older_softless_chose_from_the_average_alone():
    old = {"epoch": 0, "val": {"top1": 0.9}, "val_ema": {"top1": 0.3}}
    assert measured(old) == {"averaged": {"top1": 0.3}}
    assert measured({"epoch": 0, "val": {"top1": 0.9}}) == {"raw": {"top1": 0.9}}


def test_still_rising_is_what_the_last_quarter_added():
    flat = [line(epoch, min(0.5, 0.1 * epoch)) for epoch in range(12)]
    assert gain(flat, "top1") == 0
    assert not still_rising(flat, "top1")
    steep = [line(epoch, 0.02 * epoch) for epoch in range(12)]
    assert gain(steep, "top1") == pytest.approx(0.06)
    assert still_rising(steep, "top1")
    assert described(0.06, "top1") == "+6.0 points of top-1"
    assert gain(steep[:3], "top1") is None
    assert not still_rising(steep[:3], "top1")


@pytest.mark.parametrize("decay", [0.98, 0.995, 0.9999])
def test_no_average_keeps_much_of_the_random_start(tiny: Recipe, decay: float):
    """After 40 steps a constant 0.995 would hold 82 % of the start, and the average would answer at
    random.
    """
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)  # the random start
    ema = averaged(tiny.with_fields(ema_decay=decay), model)
    assert ema is not None
    model.weight.data.fill_(0.0)  # all that comes after
    for step in range(40):
        ema.update(model, step)
    assert float(ema.module.weight.detach()) < 1e-3


def test_the_decay_rises_to_the_recipe_s(tiny: Recipe):
    ema = averaged(tiny.with_fields(ema_decay=0.98), torch.nn.Linear(1, 1))
    assert ema is not None
    assert [ema.get_decay(step) for step in (0, 8, 98)] == [1 / 10, 9 / 18, 99 / 108]
    assert ema.get_decay(1000) == 0.98


def test_the_better_of_both_weights_is_kept_published_and_tested(tiny: Recipe, tmp_path: Path):
    out = tmp_path / "run"
    asked = tiny.with_fields(**{"schedule.epochs": 6, "metric": "loss"})
    result = fit(asked, out, device="cpu", progress=False)
    log = [json.loads(text) for text in (out / "log.jsonl").read_text().splitlines()]
    both = np.array([(epoch["val_ema"]["loss"], epoch["val"]["loss"]) for epoch in log])
    epoch, kind = np.unravel_index(np.argmin(both), both.shape)
    assert (result.best_epoch, result.weights) == (epoch + 1, ["averaged", "raw"][kind])
    assert result.val["loss"] == both.min()
    assert [line["kept"] for line in log] == [
        both[: n + 1].min() < both[:n].min(initial=9) for n in range(6)
    ]
    raw = fit(asked.with_fields(ema_evaluate=False), tmp_path / "raw", device="cpu", progress=False)
    assert (raw.best_epoch, raw.weights) == (both[:, 1].argmin() + 1, "raw")
    assert raw.val["loss"] == both[:, 1].min()
    ours, theirs = (
        load_file(out / "best.safetensors"),
        load_file(tmp_path / "raw" / "best.safetensors"),
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs) == (
        result.weights == "raw"
    )
