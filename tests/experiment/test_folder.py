"""Who may write into a run folder, and what is said to the others."""

import contextlib
import errno
import json
import random
import socket
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import softless.experiment.folder as module
from softless.errors import (
    CheckpointError,
    DataError,
    Interrupted,
    ResumeMismatch,
    StorageError,
    UsageError,
)
from softless.experiment import checkpoints as store
from softless.experiment.checkpoints import Checkpoints
from softless.experiment.claim import Claim
from softless.experiment.folder import RunFolder, differences
from softless.experiment.groups import DataSpec
from softless.experiment.recipe import as_json
from softless.models.durable import write_whole
from softless.tasks.loaded import load_run
from softless.training import Recipe, fit, loop, setup
from softless.words import few
from tests.data.making import class_folders, noise

Usage = namedtuple("Usage", "total used free")  # noqa: PYI024 - what shutil.disk_usage returns


@pytest.fixture
def short(tiny: Recipe) -> Recipe:
    return replace(tiny, schedule=replace(tiny.schedule, epochs=1, warmup_epochs=0))


def run(recipe: Recipe, path: Path, **options):
    return fit(recipe, path, device="cpu", progress=False, **options)


def test_a_folder_that_holds_a_run_is_refused_and_untouched(short: Recipe, tmp_path: Path):
    out = tmp_path / "run"
    run(short, out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    with pytest.raises(
        UsageError,
        match=r"already holds a run \(recipe 'tiny', finished\): continue it with --resume",
    ):
        run(short, out)
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}


def test_overwrite_replaces_the_run_and_nothing_else(short: Recipe, tmp_path: Path):
    out = tmp_path / "run"
    run(short, out)
    (out / "report.html").write_text("old")
    (out / "notes.txt").write_text("mine")
    run(replace(short, seed=5), out, overwrite=True)
    assert json.loads((out / "recipe.json").read_text())["seed"] == 5
    assert not (out / "report.html").exists()
    assert (out / "notes.txt").read_text() == "mine"
    assert len((out / "log.jsonl").read_text().splitlines()) == 1


def test_overwrite_keeps_the_old_run_when_the_new_one_cannot_start(short: Recipe, tmp_path: Path):
    out = tmp_path / "run"
    run(short, out)
    with pytest.raises(UsageError):
        run(replace(short, data=replace(short.data, path="nowhere.npz")), out, overwrite=True)
    assert (out / "result.json").exists()


def test_resume_of_a_finished_run_returns_it(short: Recipe, tmp_path: Path):
    first = run(short, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert run(short, tmp_path / "run", resume=True) == first
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}


@pytest.mark.bar("A20", "resume with another recipe: the fields are named")
def test_resume_names_the_fields_that_differ(short: Recipe, tmp_path: Path):
    run(short, tmp_path / "run")
    other = short.with_fields(**{"optim.lr": 0.5, "model.args.depth": 3, "data.workers": 1})
    with pytest.raises(
        UsageError, match=r"differs in model.args.depth \(2 there, 3 asked\), optim.lr"
    ) as raised:
        run(other, tmp_path / "run", resume=True)
    assert "workers" not in str(raised.value)


def test_resume_in_an_empty_folder_starts_and_says_so(
    short: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    assert run(short, tmp_path / "new", resume=True).epochs == 1
    assert "nothing to resume" in caplog.text


def die_before(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    """SIGKILL leaves what is on disk, and so does this: neither `except` nor `finally` may tidy
    up.
    """
    monkeypatch.setattr(owner, name, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(Claim, "end", lambda *_, **__: None)


@pytest.mark.bar(
    "A1",
    "death before the first checkpoint counted: nothing was acknowledged, the run starts again",
)
@pytest.mark.parametrize(
    ("owner", "name", "said"),
    [
        (RunFolder, "check_room", "nothing to resume in"),
        (RunFolder, "rewind_log", "nothing to resume in"),
        (loop, "train", "no checkpoint was finished in"),
        (Checkpoints, "save", "no checkpoint was finished in"),
        (store, "write_text", "no checkpoint was finished in"),
    ],
)
def test_a_start_that_was_killed_early_is_resumed_at_the_first_epoch(
    short: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    owner: object,
    name: str,
    said: str,
):
    with monkeypatch.context() as patch:
        die_before(patch, owner, name)
        with pytest.raises(KeyboardInterrupt):
            run(short, tmp_path / "run")
    assert (tmp_path / "run/state.json").exists()
    (tmp_path / "run/lock").unlink()
    assert run(short, tmp_path / "run", resume=True).epochs == 1
    assert said in caplog.text
    assert "at its first epoch" in caplog.text


@pytest.mark.bar("A11", "after a start that found too little room: the same command starts the run")
def test_a_first_start_that_found_no_room_can_be_given_again(
    short: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 5000, 5000))
        for resume in (False, True):
            with pytest.raises(StorageError, match="needs about"):
                run(short, tmp_path / "run", resume=resume)
    assert run(short, tmp_path / "run", resume=True).epochs == 1


def test_a_run_whose_checkpoints_are_gone_does_not_start_anew_in_silence(
    short: Recipe, tmp_path: Path
):
    longer = replace(short, schedule=replace(short.schedule, epochs=2))
    run(longer, tmp_path / "run")
    (tmp_path / "run/result.json").unlink()
    for path in (tmp_path / "run/checkpoints").iterdir():
        path.unlink()
    with pytest.raises(
        CheckpointError, match=r"has 2 epochs in its log.jsonl and no finished checkpoint"
    ):
        run(longer, tmp_path / "run", resume=True)


@pytest.mark.bar(
    "A18", "damaged checkpoints: no good one is pruned for them, and they are moved aside"
)
def test_a_run_moves_damaged_checkpoints_aside_and_goes_on(
    short: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    longer = replace(short, schedule=replace(short.schedule, epochs=3))
    run(longer, tmp_path / "run")
    (tmp_path / "run/result.json").unlink()
    newest = max((tmp_path / "run/checkpoints").glob("*.pt"))
    newest.write_bytes(b"damaged")
    run(longer.with_fields(**{"save.keep": 1}), tmp_path / "run", resume=True)
    assert (
        f"the damaged checkpoints are in {newest.parent / 'damaged'} now: {newest.stem}"
        in caplog.text
    )
    found = Checkpoints(tmp_path / "run/checkpoints")
    assert len(found.positions()) == 1
    assert found.newest() is not None


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Let something happen while the next command opens its data."""
    inner = setup._assembled

    def slow(*args, **options):
        made = inner(*args, **options)
        with monkeypatch.context() as patch:
            patch.setattr(setup, "_assembled", inner)
            act()
        return made

    monkeypatch.setattr(setup, "_assembled", slow)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.bar(
    "A19",
    "a run that another command finished or stopped meanwhile: not replaced without --overwrite",
)
@pytest.mark.parametrize("ended", ["finished", "stopped"])
def test_a_run_that_was_there_by_the_time_the_folder_was_taken_stays(
    short: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: str
):
    out, kept = tmp_path / "run", {}

    def other() -> None:
        with monkeypatch.context() as patch:
            if ended == "stopped":
                patch.setattr(
                    loop, "finish", lambda _: (_ for _ in ()).throw(Interrupted("SIGTERM", 143))
                )
            with contextlib.suppress(Interrupted):
                run(short, out)
        kept.update(contents(out))

    meanwhile(monkeypatch, other)
    with pytest.raises(
        UsageError,
        match=r"already holds a run \(recipe 'tiny', .*finished\): continue it with --resume",
    ):
        run(replace(short, seed=9), out)
    assert contents(out) == kept
    monkeypatch.undo()
    assert run(replace(short, seed=9), out, overwrite=True).epochs == 1


@pytest.mark.bar(
    "A19",
    "a run that another command finished or stopped meanwhile: not replaced without --overwrite",
)
def test_a_run_to_continue_that_is_another_by_now_is_left(
    short: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "run"
    run(short, out)
    (out / "result.json").unlink()
    meanwhile(monkeypatch, lambda: run(replace(short, seed=9), out, overwrite=True))
    with pytest.raises(
        UsageError, match=r"another command changed the run in .*: give this command again"
    ):
        run(short, out, resume=True)
    assert json.loads((out / "recipe.json").read_text())["seed"] == 9


def test_nothing_of_a_run_under_way_is_swept_by_a_second_command(
    short: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What it is writing just now lies beside its place, too."""
    claim = Claim.take(tmp_path)
    (tmp_path / "best.json.tmp").write_text("half")
    with pytest.raises(UsageError, match="in use by process"):
        run(short, tmp_path)
    assert (tmp_path / "best.json.tmp").exists()
    claim.end("stopped")


def test_the_lock_of_a_killed_finished_run_is_gone_after_resume(short: Recipe, tmp_path: Path):
    first = run(short, tmp_path / "run")
    dead = {"pid": 2**22 + 1, "host": socket.gethostname(), "started": "2026-01-01", "process": "1"}
    (tmp_path / "run/lock").write_text(json.dumps(dead))
    assert run(short, tmp_path / "run", resume=True) == first
    assert not (tmp_path / "run/lock").exists()


def test_resume_and_overwrite_exclude_each_other(short: Recipe, tmp_path: Path):
    with pytest.raises(UsageError, match="choose one"):
        run(short, tmp_path / "run", resume=True, overwrite=True)


def test_a_file_is_no_run_folder(short: Recipe, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        run(short, tmp_path / "file")


def test_a_folder_that_cannot_be_made(short: Recipe, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot make the folder .*run: Not a directory"):
        run(short, tmp_path / "file" / "run")


def test_no_free_disk(short: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 5000, 5000))
    out = tmp_path / "run"
    with pytest.raises(
        StorageError,
        match=r"run needs about 0\.\d MB for checkpoints and its disk has 0\.0 MB free",
    ):
        run(short, out)
    assert [path.name for path in out.iterdir()] == ["state.json"]
    assert json.loads((out / "state.json").read_text())["state"] == "failed"


def test_a_disk_that_fills_keeps_the_old_file(tmp_path: Path):
    path = tmp_path / "state"
    path.write_text("old")

    def full(beside: Path):
        beside.write_text("ne")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(
        StorageError,
        match=r"cannot write .*state: No space left on device; more than 0.0 MB are needed and "
        r"[\d.]+ .B are free",
    ):
        write_whole(path, full)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def unfinished(recipe: Recipe, out: Path) -> Checkpoints:
    run(recipe, out)
    (out / "result.json").unlink()
    return Checkpoints(out / "checkpoints")


def test_a_checkpoint_runs_no_code(short: Recipe, tmp_path: Path):
    unfinished(short, tmp_path / "run").save({"epoch": Path("would be unpickled")}, (99, 9), {})
    (tmp_path / "run/checkpoints").joinpath("step-000000004-epoch-0001.pt").unlink()
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints .* is good .*pathlib"):
        run(short, tmp_path / "run", resume=True)


@pytest.mark.bar("A20", "resume with another model: the differing tensors are named")
def test_a_checkpoint_of_another_model(short: Recipe, tmp_path: Path):
    store = unfinished(short, tmp_path / "run")
    state = store.newest()
    assert state is not None
    state["model"]["head.weight"] = torch.zeros(7, 16)
    state["model"]["extra"] = torch.zeros(1)
    store.save(state, (99, 9), {})
    with pytest.raises(
        ResumeMismatch, match=r"another model's.*extra is unknown.*head.weight has shape"
    ):
        run(short, tmp_path / "run", resume=True)


@pytest.mark.bar("A20", "resume on changed data: named")
def test_resume_on_changed_data(short: Recipe, tmp_path: Path):
    unfinished(short, tmp_path / "run")
    arrays = dict(np.load(str(short.data.path)))
    arrays["train_images"][0] = 0
    np.savez(str(short.data.path), **arrays)
    with pytest.raises(ResumeMismatch, match="the data changed since"):
        run(short, tmp_path / "run", resume=True)


@pytest.mark.bar("A20", "resume on other pixels under the same names: named")
def test_resume_on_changed_pixels(short: Recipe, tmp_path: Path):
    root = class_folders(tmp_path / "data", {"a": 8, "b": 8, "c": 8})
    recipe = replace(
        short,
        data=DataSpec(
            "folder", str(root), image_size=16, in_chans=3, mean=(0.5,) * 3, std=(0.2,) * 3
        ),
    )
    store = unfinished(recipe, tmp_path / "run")
    for file in root.rglob("*.png"):
        noise(seed=1000 + int(file.stem)).save(file)
    with pytest.raises(
        ResumeMismatch,
        match=r"the data changed since \(pixels of train, pixels of val\); bring them back",
    ):
        run(recipe, tmp_path / "run", resume=True)
    state = store.newest()
    assert state is not None
    state["fingerprint"] = {
        key: value for key, value in state["fingerprint"].items() if not key.startswith("pixels")
    }
    store.save(state, (99, 9), {})  # of an older softless, which did not look
    assert run(recipe, tmp_path / "run", resume=True).epochs == 1


def test_a_half_line_of_the_log_is_dropped(tmp_path: Path):
    folder = RunFolder(tmp_path)
    folder.log({"epoch": 1, "val": {"loss": 1.0}})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"epo')
    folder.rewind_log(1)
    assert folder.epochs() == [{"epoch": 1, "val": {"loss": 1.0}}]


def test_few():
    assert few("abc") == "a, b, c"
    assert few(map(str, range(12))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
    assert differences({"a": {"b": 1}, "machine": 2}, {"a": {"b": 1, "c": 3}}) == [
        "a.c (unset there, 3 asked)"
    ]


def test_fields_that_an_older_softless_did_not_write_are_at_their_defaults(short: Recipe):
    stored = {
        name: value
        for name, value in as_json(short).items()
        if name not in {"divergence", "grad_checkpointing"}
    }
    assert differences(stored, as_json(short)) == []
    assert differences(stored, as_json(replace(short, grad_checkpointing=True))) == [
        "grad_checkpointing (False there, True asked)"
    ]


@pytest.mark.bar("C4", "one bit flipped in the best weights of a run: refused")
def test_300_bit_flips_in_the_best_weights_are_refused(
    short: Recipe, tmp_path: Path, record_property: Callable[[str, object], None]
):
    run(short, tmp_path / "run")
    path, rng = tmp_path / "run/best.safetensors", random.Random(0)
    whole = path.read_bytes()
    for done in range(300):
        record_property("cases", (done, 300))
        bad = bytearray(whole)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(
            DataError, match=r"best.safetensors is not what best.json beside it describes"
        ):
            load_run(tmp_path / "run")
    record_property("cases", (300, 300))
    path.write_bytes(whole)
    assert load_run(tmp_path / "run").classes == ("0", "1", "2")
