"""The first lines of a run and the last: what they say, and that they move no number."""

import json
import os
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import softless
from softless.cli.main import main
from softless.recipes import get_recipe
from softless.tasks.loaded import load_run
from softless.training import Recipe, fit, opening
from tests.conftest import ROOT
from tests.training.test_loop import same, state, untimed


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[opening.Trial]:
    """Trials are made however few steps are ahead; those that were."""
    seen: list[opening.Trial] = []
    inner = opening.tried

    def noted(run):
        if trial := inner(run):
            seen.append(trial)
        return trial

    monkeypatch.setattr(opening, "FEWEST", 1)
    monkeypatch.setattr(opening, "tried", noted)
    return seen


def test_the_first_lines(
    tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], tried: list[opening.Trial]
):
    noted: list[dict] = []
    inner = opening.tell

    def watched(run, *, show):
        inner(run, show=show)
        noted.append(json.loads((run.folder.path / "state.json").read_text()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "tell", watched)
        fit(tiny, tmp_path / "run", device="cpu")
    said = capsys.readouterr().err.splitlines()
    parameters = sum(
        parameter.numel() for parameter in load_run(tmp_path / "run").model.parameters()
    )
    assert (
        said[0]
        == "data     images.npz: 3 classes, 48 train, 18 validation, 15 test images at 16 x 16"
    )
    assert (
        said[1]
        == f"model    vit_tiny_patch16_224 with sima, {parameters:,} parameters, cpu, 1 thread, 0 "
        "workers"
    )
    time = r"about \d+ s \(\d+ s of CPU time\), from three trial steps"
    assert re.fullmatch(rf"steps    3 epochs of 4 steps = 12; {time}", said[2])
    assert said[3].startswith("epoch 1/3")
    assert tried[0].steps == 3
    (state,) = noted
    assert (state["state"], state["opening"]["train"], state["opening"]["trials"]) == (
        "running",
        48,
        3,
    )


def test_a_silent_run_and_a_short_one_try_nothing(
    tiny: Recipe,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    def fails(*_):
        raise AssertionError("a trial step was taken")

    monkeypatch.setattr(opening, "_step", fails)
    fit(tiny, tmp_path / "short", device="cpu")
    assert "steps    3 epochs of 4 steps = 12\n" in capsys.readouterr().err
    monkeypatch.setattr(opening, "FEWEST", 1)
    fit(tiny, tmp_path / "silent", device="cpu", progress=False)
    assert capsys.readouterr().err == ""


def test_a_slow_step_is_tried_once(
    tiny: Recipe,
    tmp_path: Path,
    tried: list[opening.Trial],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(opening, "PATIENCE", 0.0)
    fit(tiny, tmp_path / "run", device="cpu")
    assert tried[0].steps == 1
    assert "from one trial step\n" in capsys.readouterr().err


def test_a_number_format_that_is_slow_here_is_said(
    tiny: Recipe,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    """The times are measured; here they are made up, since they hang on the processor."""
    trial = opening.Trial(3, 2.0, 2.0, amp_seconds=30.0, plain_seconds=2.0)
    monkeypatch.setattr(opening, "tried", lambda _: trial)
    fit(replace(tiny, amp="bfloat16"), tmp_path / "slow", device="cpu")
    said = capsys.readouterr().err.splitlines()
    assert (
        said[2]
        == "numbers  bfloat16 is slow here: a step takes 30 s, and 2 s in float32 (--amp none)"
    )
    assert said[3].startswith("steps ")
    monkeypatch.setattr(opening, "tried", lambda _: replace(trial, amp_seconds=2.5))
    fit(replace(tiny, amp="bfloat16"), tmp_path / "fast", device="cpu")
    assert "numbers " not in capsys.readouterr().err


def test_only_what_computes_in_another_format_is_timed_twice(
    tiny: Recipe, tmp_path: Path, tried: list[opening.Trial]
):
    fit(tiny, tmp_path / "plain", device="cpu")
    fit(replace(tiny, amp="bfloat16"), tmp_path / "half", device="cpu")
    assert tried[0].plain_seconds is None
    assert tried[1].amp_seconds is not None
    assert tried[1].plain_seconds is not None
    assert 0 < tried[1].plain_seconds < 100


HOSTS = {
    "dropping, mixing, averaging": {},
    "running means": {"model.name": "sima_xcit_tiny_12_p16_224", "model.op": None},
    "drawn tensors": {"model.op": "performer"},
    "no step of its own": {"amp": "bfloat16", "optim.name": "sgd"},
}


@pytest.mark.parametrize("fields", HOSTS.values(), ids=HOSTS)
def test_trial_steps_move_no_number(
    tiny: Recipe, tmp_path: Path, fields: dict, tried: list[opening.Trial]
):
    args = tiny.model.args
    if "model.name" in fields:
        args = {"img_size": 32, "embed_dim": 16, "depth": 2, "num_heads": 2, "cls_attn_layers": 1}
        fields = {**fields, "data.image_size": 32}
    short = replace(
        tiny, model=replace(tiny.model, args=args), schedule=replace(tiny.schedule, epochs=2)
    )
    recipe = short.with_fields(**fields)
    fit(recipe, tmp_path / "silent", device="cpu", progress=False)
    torch.manual_seed(3)
    fit(recipe, tmp_path / "told", device="cpu")
    assert len(tried) == 1
    assert same(state(tmp_path / "silent"), state(tmp_path / "told"))
    assert untimed(tmp_path / "silent") == untimed(tmp_path / "told")


def test_trial_steps_of_two_tasks_move_no_number(tmp_path: Path, tried: list[opening.Trial]):
    for name in ("dino", "vessels"):
        recipe = get_recipe(name).quick(tmp_path / f"{name}-images")
        fit(recipe, tmp_path / f"{name}-silent", device="cpu", progress=False)
        fit(recipe, tmp_path / f"{name}-told", device="cpu")
        assert same(state(tmp_path / f"{name}-silent"), state(tmp_path / f"{name}-told"))
    assert [trial.steps for trial in tried] == [2, 2]


def test_a_continued_run_says_what_is_done(
    tiny: Recipe,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    save = softless.training.checkpoint.save

    def killed(run):
        if run.epoch == 2:
            raise KeyboardInterrupt
        save(run)

    with monkeypatch.context() as patch:
        patch.setattr(softless.training.checkpoint, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            fit(tiny, tmp_path / "run", device="cpu", progress=False)
    fit(None, tmp_path / "run", resume=True, device="cpu")
    assert "steps    3 epochs of 4 steps = 12; 4 are done, 8 ahead\n" in capsys.readouterr().err


def test_the_last_line_is_the_page(
    tiny: Recipe,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    fit(tiny, tmp_path / "run", device="cpu", progress=False)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--resume", "--out", "run", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"page {tmp_path / 'run/report.html'}"


@pytest.mark.soak
def test_of_two_ranks_one_speaks_and_the_run_is_the_same(tiny: Recipe, tmp_path: Path):
    """Both try the same number of steps, BatchNorm's exchange included; nothing waits for ever."""
    args = {"img_size": 32, "embed_dim": 16, "depth": 2, "num_heads": 2, "cls_attn_layers": 1}
    recipe = replace(
        tiny, model=replace(tiny.model, args=args), schedule=replace(tiny.schedule, epochs=2)
    )
    recipe = recipe.with_fields(**{
        "model.name": "sima_xcit_tiny_12_p16_224",
        "model.op": None,
        "data.image_size": 32,
    })
    script = (
        "import pickle, sys\nfrom pathlib import Path\nfrom softless.training import fit, "
        "opening\nopening.FEWEST = 1\n"
        "fit(pickle.loads(Path(sys.argv[1]).read_bytes()), sys.argv[2], device='cpu', "
        "progress=sys.argv[3] == 'told')\n"
    )
    (tmp_path / "recipe.pickle").write_bytes(pickle.dumps(recipe))
    (tmp_path / "train.py").write_text(script)
    said = {}
    for how in ("silent", "told"):
        words = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            str(tmp_path / "train.py"),
        ]
        done = subprocess.run(
            [sys.executable, *words, str(tmp_path / "recipe.pickle"), str(tmp_path / how), how],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0, done.stderr[-2000:]
        said[how] = done.stderr
    assert len(re.findall(r"^data     images.npz: 3 classes", said["told"], re.MULTILINE)) == 1
    assert "parameters, 2 processes of cpu, 1 thread, 0 workers" in said["told"]
    assert "from three trial steps" in said["told"]
    assert same(state(tmp_path / "silent"), state(tmp_path / "told"))


def test_lengths_that_were_fitted_are_said(
    tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    few = tiny.with_fields(**{"schedule.min_steps": 24, "schedule.min_epoch_steps": 8})
    fit(few, tmp_path / "run", device="cpu")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fitted")]
    assert len(said) == 1, "three epochs of eight steps are enough"
    assert (
        "batch_size 12 -> 6: 48 training images make 4 steps an epoch, and "
        "schedule.min_epoch_steps is 8" in said[0]
    )


def test_softmax_that_is_kept_is_said() -> None:
    """Beside the operator that the model is named by; where nothing is kept there is no such
    line.
    """
    facts: dict[str, Any] = {
        "data": "d",
        "classes": 2,
        "train": 4,
        "val": 2,
        "test": 0,
        "pixels": (32, 32),
        "model": "soft_tiny_224",
        "parameters": 1,
        "device": "cpu",
        "processes": 1,
        "threads": 1,
        "workers": 0,
        "epochs": 1,
        "steps": 1,
        "done": 0,
    }
    kept = opening.Opening(**facts, softmax="stage3.blocks.*.attn (Attention, 2 times)").lines()
    assert kept[2] == "softmax  is kept in stage3.blocks.*.attn (Attention, 2 times)"
    assert [line for line in kept if line != kept[2]] == opening.Opening(**facts).lines()
