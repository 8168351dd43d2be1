"""Losses and gradients that are not finite: stop, skip, rewind; what is written down, and what they
never reach.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from softless.errors import DivergedError
from softless.experiment.checkpoints import Checkpoints
from softless.tasks.classification.task import Classification
from softless.training import Recipe, fit
from tests.training.ends import end_of


def policy(recipe: Recipe, name: str, **more: Any) -> Recipe:
    return recipe.with_fields(**{"divergence.policy": name, **more})


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch):
    """Makes the loss, or the gradient, of some calls not finite; returns the list of calls."""

    def install(calls_to_break: set[int], what: str = "loss", forever: bool = False) -> list[int]:
        calls: list[int] = []
        inner = Classification.loss

        def loss(self: Classification, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            calls.append(len(calls) + 1)
            value = inner(self, logits, targets)
            if calls[-1] in calls_to_break or (forever and calls[-1] > min(calls_to_break)):
                if what == "loss":
                    return value * math.nan
                logits.register_hook(lambda grad: grad * math.inf)
            return value

        monkeypatch.setattr(Classification, "loss", loss)
        return calls

    return install


def last(run: Path) -> dict[str, Any]:
    state = Checkpoints(run / "checkpoints").newest()
    assert state is not None
    return state


def finite(run: Path) -> bool:
    state = last(run)
    tensors = [
        *state["model"].values(),
        *state["ema"].values(),
        *load_file(run / "best.safetensors").values(),
    ]
    tensors += [value for entry in state["optimizer"]["state"].values() for value in entry.values()]
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


@pytest.mark.bar(
    "A13",
    "loss not finite, policy stop: exit code 3, the dump names the step, its images, rate and "
    "scale; last and best are finite",
)
def test_the_dump_names_step_images_rate_and_scale(tiny: Recipe, tmp_path: Path, broken: Any):
    broken({7})
    with pytest.raises(DivergedError, match=r"diverged-e0002-s000003\.json names its images"):
        fit(tiny, tmp_path / "run", device="cpu", progress=False)
    told = json.loads((tmp_path / "run/diverged-e0002-s000003.json").read_text())
    assert (told["epoch"], told["step"], told["updates"], told["loss"], told["scale"]) == (
        2,
        3,
        6,
        "nan",
        1.0,
    )
    assert 0 < told["lr"] <= tiny.effective_lr
    assert len(told["samples"]) == tiny.batch_size
    assert json.loads((tmp_path / "run/state.json").read_text())["state"] == "diverged"
    assert finite(tmp_path / "run")


@pytest.mark.bar(
    "A13",
    "loss or gradient not finite, policy skip: the step is left out, everything kept is finite",
)
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_skip_leaves_the_step_out_and_nothing_else(
    tiny: Recipe, tmp_path: Path, broken: Any, monkeypatch: pytest.MonkeyPatch, what: str
):
    recipe = policy(tiny, "skip")
    moves: list[int] = []
    step = torch.optim.AdamW.step

    def counted(self: Any) -> Any:
        moves.append(1)
        return step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    broken({7}, what)
    result = fit(recipe, tmp_path / "run", device="cpu", progress=False)
    assert (result.epochs, len(moves)) == (3, 11)
    state = last(tmp_path / "run")
    assert (state["updates"], state["left_out"]) == (12, [(1, 2)])
    assert finite(tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert all(math.isfinite(line["train_loss"]) for line in lines)


@pytest.mark.bar("A13", "NaN images before BatchNorm, policy skip: running means are undone")
def test_skip_undoes_what_the_forward_pass_did_to_running_means(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A NaN image spoils BatchNorm's running mean before the loss is known."""
    args = {"embed_dim": 16, "depth": 1, "num_heads": 2, "cls_attn_layers": 1}
    recipe = policy(
        tiny,
        "skip",
        **{"model.name": "xcit_nano_12_p8_224", "model.op": "sima", "model.args": args},
    )
    inner, calls = Classification.mix, []

    def mix(self: Classification, images: torch.Tensor, targets: torch.Tensor, **where: int) -> Any:
        calls.append(1)
        return inner(self, images * math.nan if len(calls) == 6 else images, targets, **where)

    monkeypatch.setattr(Classification, "mix", mix)
    fit(recipe, tmp_path / "run", device="cpu", progress=False)
    state = last(tmp_path / "run")["model"]
    assert any("running_mean" in name for name in state)
    assert finite(tmp_path / "run")


def test_skip_has_patience_for_so_many_in_a_row(tiny: Recipe, tmp_path: Path, broken: Any):
    calls = broken({3}, forever=True)
    with pytest.raises(DivergedError, match=r"divergence.policy=skip was tried 3 times"):
        fit(policy(tiny, "skip"), tmp_path / "run", device="cpu", progress=False)
    assert len(calls) == 6, "two good ones, three left out, and the one that ends it"


def test_skipped_steps_that_are_not_in_a_row_do_not_add_up(
    tiny: Recipe, tmp_path: Path, broken: Any
):
    broken({2, 4, 6, 8, 10})
    assert fit(policy(tiny, "skip"), tmp_path / "run", device="cpu", progress=False).epochs == 3


@pytest.mark.bar(
    "A13", "loss not finite, policy rewind: ends where a run ends that skipped the step"
)
@pytest.mark.parametrize("bad", [2, 7])
def test_rewind_goes_back_and_leaves_that_step_out(
    tiny: Recipe, tmp_path: Path, broken: Any, caplog: pytest.LogCaptureFixture, bad: int
):
    """Before the first checkpoint of an epoch, and in the middle of one; it ends where a run ends
    that had skipped the step.
    """
    calls = broken({bad})
    fit(policy(tiny, "rewind"), tmp_path / "rewound", device="cpu", progress=False)
    assert "going back to the last checkpoint" in caplog.text
    again = (bad - 1) % 4  # steps of the epoch that were done twice
    assert len(calls) == 12 + again
    assert finite(tmp_path / "rewound")
    state = last(tmp_path / "rewound")
    assert state["left_out"] == [((bad - 1) // 4, (bad - 1) % 4)]
    calls.clear()
    broken({bad})
    fit(policy(tiny, "skip"), tmp_path / "skipped", device="cpu", progress=False)
    assert end_of(tmp_path / "rewound") == end_of(tmp_path / "skipped")


def test_rewind_has_patience_too(tiny: Recipe, tmp_path: Path, broken: Any):
    broken({3}, forever=True)
    with pytest.raises(DivergedError, match=r"divergence.policy=rewind was tried 3 times"):
        fit(policy(tiny, "rewind"), tmp_path / "run", device="cpu", progress=False)
    assert last(tmp_path / "run")["updates"] == 0


def test_a_left_out_step_stays_left_out_after_a_resume(tiny: Recipe, tmp_path: Path, broken: Any):
    broken({6})
    once = policy(tiny, "skip", **{"save.every_steps": 1, "save.keep": 20})
    fit(once, tmp_path / "run", device="cpu", progress=False)
    expected = end_of(tmp_path / "run")
    broken(set())
    store = Checkpoints(tmp_path / "run/checkpoints")
    for place in store.positions():
        if place > (6, 1):
            for path in store._files(place):
                path.unlink()
    (tmp_path / "run/result.json").unlink()
    fit(once, tmp_path / "run", device="cpu", progress=False, resume=True)
    assert end_of(tmp_path / "run") == expected
