"""What a checkpoint may hold: a state of this run, with numbers that a run can have, or one
sentence; and weights that are finite.
"""

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from softless.cli.main import main
from softless.errors import CheckpointError, DivergedError, ResumeMismatch, SoftlessError
from softless.experiment.checkpoints import Checkpoints
from softless.training import Recipe, fit, loop
from tests.edits import edit
from tests.training.conftest import tiny_recipe, write_npz


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return begin(tmp_path_factory.mktemp("begun"))


def begin(root: Path, **fields: Any) -> Path:
    """A run of three epochs, of which one is done."""
    recipe = tiny_recipe(write_npz(root / "images.npz")).with_fields(**fields)
    inner, calls = loop.train_epoch, []

    def once(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return inner(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_epoch", once)
        with pytest.raises(KeyboardInterrupt):
            fit(recipe, root / "run", device="cpu", progress=False)
    return root / "run"


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    shutil.copytree(begun, tmp_path / "run")
    return tmp_path / "run"


def with_state(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """The newest state changed, and its manifest made to fit."""
    store = Checkpoints(run / "checkpoints")
    state = store.newest()
    assert state is not None
    place = store.positions()[0]
    change(state)
    store.save(state, place, {})


def first(state: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(iter(state["optimizer"]["state"].values()))
    return found


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "epoch -5": lambda state: state.update(epoch=-5),
    "epoch 99": lambda state: state.update(epoch=99),
    "epoch text": lambda state: state.update(epoch="1"),
    "epoch true": lambda state: state.update(epoch=True),
    "epochs 0": lambda state: state.update(epochs=0),
    "step -1": lambda state: state.update(step=-1),
    "step 5": lambda state: state.update(step=5),
    "updates": lambda state: state.update(updates=None),
    "no model": lambda state: state.pop("model"),
    "model list": lambda state: state.update(model=[]),
    "model numbers": lambda state: state["model"].update({"head.weight": 7}),
    "no optimizer": lambda state: state.pop("optimizer"),
    "empty optimizer": lambda state: state.update(optimizer={}),
    "optimizer groups": lambda state: state["optimizer"].update(param_groups=7),
    "moments of another shape": lambda state: first(state).update(exp_avg=torch.zeros(3, 3, 3)),
    "moments of text": lambda state: first(state).update(exp_avg="zero"),
    "scheduler": lambda state: state.update(scheduler=1),
    "partial": lambda state: state.update(partial={"loss": "x"}),
    "partial unknown": lambda state: state["partial"].update(more=1),
    "left_out": lambda state: state.update(left_out=[1, 2]),
    "best": lambda state: state.update(best={"epoch": "first"}),
    "best weights": lambda state: state.update(best_weights={"head.weight": 1}),
    "classes": lambda state: state.update(classes=5),
    "other classes": lambda state: state.update(classes=["x"]),
    "fingerprint": lambda state: state.update(fingerprint=[]),
    "extended": lambda state: state.update(extended_from="no"),
    "ema": lambda state: state.update(ema=3),
    "best missing": lambda state: state.pop("best"),
    "best weights missing": lambda state: state.pop("best_weights"),
    "ema missing": lambda state: state.pop("ema"),
    "best without its value": lambda state: state["best"].pop("value"),
    "best of another measure": lambda state: state["best"].update(metric=[1]),
    "no ema": lambda state: state.update(ema=None),
}


@pytest.mark.bar(
    "C5", "a state with entries that no run has, its manifest made to fit, by kind: one sentence"
)
@pytest.mark.parametrize("kind", CHANGES)
def test_a_state_that_no_run_has_is_one_sentence(run: Path, kind: str):
    with_state(run, CHANGES[kind])
    with pytest.raises((CheckpointError, ResumeMismatch)) as raised:
        fit(None, run, resume=True, device="cpu", progress=False)
    assert "\n" not in str(raised.value)
    assert not (run / "lock").exists()


@pytest.mark.parametrize(
    "value",
    [["a"], {"a": 1}, "a", 2.5, torch.zeros(2)],
    ids=["list", "table", "text", "number", "tensor"],
)
def test_an_entry_of_another_type_is_one_sentence(run: Path, tmp_path: Path, value: object):
    """Whichever entry it is: a list is in no set of words, and a tensor is neither true nor
    false.
    """
    names: list[str] = []
    with_state(run, names.extend)
    for name in names:
        again = tmp_path / name
        shutil.copytree(run, again)
        with_state(again, lambda state, name=name: state.update({name: value}))  # type: ignore[misc]
        try:
            fit(None, again, resume=True, device="cpu", progress=False)
        except (CheckpointError, ResumeMismatch) as error:
            assert "\n" not in str(error)  # noqa: PT017 - some entries may be such a value


def test_a_state_of_this_run_is_taken(run: Path):
    with_state(run, lambda _: None)
    assert fit(None, run, resume=True, device="cpu", progress=False).epochs == 3


def test_weights_that_overflow_are_never_kept(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Loss and gradient of the step were finite, and the update went beyond what float32 holds."""
    inner, calls = torch.optim.AdamW.step, []

    def step(self: Any, *args: Any) -> Any:
        done = inner(self, *args)
        calls.append(1)
        if len(calls) == 6:  # a state is written next
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(float("inf"))
        return done

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(
        DivergedError,
        match=r"the weights .* are not finite after step 2 of epoch 2 .*were not kept",
    ) as raised:
        fit(
            replace(tiny, save=replace(tiny.save, every_steps=2)),
            tmp_path / "run",
            device="cpu",
            progress=False,
        )
    assert raised.value.exit_code == 3
    state = Checkpoints(tmp_path / "run/checkpoints").newest()
    assert state is not None
    assert state["epoch"] == 1
    for held in ("model", "ema", "best_weights"):
        assert all(bool(tensor.isfinite().all()) for tensor in state[held].values())


VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    10**7,
    1.5,
    float("nan"),
    "text",
    [],
    {},
    [1],
    {"a": 1},
    torch.zeros(2),
    torch.zeros(0),
)


@pytest.mark.parametrize("name", ["fingerprint", "best", "scheduler", "scaler"])
def test_a_tensor_among_plain_values_is_one_sentence(run: Path, tmp_path: Path, name: str):
    shutil.copytree(run, tmp_path / "again")
    with_state(tmp_path / "again", lambda state: state[name].update(classes=torch.zeros(2)))
    with pytest.raises(CheckpointError, match=rf"{name} is .* should be .*"):
        fit(None, tmp_path / "again", resume=True, device="cpu", progress=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("exp_avg", None),
        ("exp_avg", 7),
        ("exp_avg", torch.zeros(3)),
        ("exp_avg", "gone"),
        ("step", torch.zeros(3)),
        ("step", "gone"),
    ],
    ids=str,
)
def test_a_moment_of_another_kind_is_one_sentence(
    run: Path, tmp_path: Path, name: str, value: object
):
    def change(state: dict[str, Any]) -> None:
        kept = state["optimizer"]["state"][0]
        if isinstance(value, str):
            del kept[name]
        else:
            kept[name] = value

    shutil.copytree(run, tmp_path / "again")
    with_state(tmp_path / "again", change)
    with pytest.raises(ResumeMismatch, match=rf"(another one|was changed) \('?{name}\b"):
        fit(None, tmp_path / "again", resume=True, device="cpu", progress=False)


@pytest.mark.parametrize(
    ("name", "value"), [("warmup_t", None), ("base_values", [1]), ("t_initial", "gone")]
)
def test_a_schedule_of_another_kind_is_one_sentence(
    run: Path, tmp_path: Path, name: str, value: object
):
    def change(state: dict[str, Any]) -> None:
        if value == "gone":
            del state["scheduler"][name]
        else:
            state["scheduler"][name] = value

    shutil.copytree(run, tmp_path / "again")
    with_state(tmp_path / "again", change)
    with pytest.raises(
        ResumeMismatch, match=rf"was changed \({name} of the schedule is .*, and should be"
    ):
        fit(None, tmp_path / "again", resume=True, device="cpu", progress=False)


def test_a_rate_that_is_no_number_is_one_sentence(run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "again")
    with_state(
        tmp_path / "again", lambda state: state["optimizer"]["param_groups"][0].update(lr="fast")
    )
    with pytest.raises(
        ResumeMismatch, match=r"lr of a group of the optimiser is str, and should be a number"
    ):
        fit(None, tmp_path / "again", resume=True, device="cpu", progress=False)


@pytest.mark.parametrize(
    "name",
    [
        "sgd",
        "momentum",
        "adam",
        "lamb",
        "lion",
        "adafactor",
        "muon",
        "adopt",
        "lambw",
        "cadafactorbv",
        "lookahead_adamw",
    ],
)
def test_a_run_of_any_optimiser_goes_on(tmp_path: Path, name: str):
    """What it keeps of a parameter is held against what one of its kind makes, not against
    AdamW's.
    """
    run = begin(tmp_path, **{"optim.name": name})
    assert fit(None, run, resume=True, device="cpu", progress=False).epochs == 3


@pytest.mark.soak
@pytest.mark.bar(
    "C12", "a checkpoint edited at random, its manifest made to fit: no traceback, no hang"
)
def test_300_checkpoints_edited_at_random(
    run: Path, tmp_path: Path, record_property: Callable[[str, object], None]
):
    rng = random.Random(0)
    for done in range(300):
        record_property("cases", (done, 300))
        shutil.rmtree(tmp_path / "again", ignore_errors=True)
        shutil.copytree(run, tmp_path / "again")
        with_state(tmp_path / "again", lambda state: edit(rng, state, VALUES))
        assert main(["runs", str(tmp_path / "again")]) == 0
        try:
            fit(None, tmp_path / "again", resume=True, device="cpu", progress=False)
        except SoftlessError as error:
            assert "\n" not in str(error)  # noqa: PT017 - whether it is raised is open
    record_property("cases", (300, 300))
