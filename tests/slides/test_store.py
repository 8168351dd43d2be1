"""A run in a folder: killed at any step it ends with the same bits; what is another run's, damaged
or too large is said.
"""

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import softless
from softless.errors import CheckpointError, StorageError
from softless.slides import engine, store, stream
from softless.slides.stream import StreamResult
from tests.slides.models import image, vit, xcit


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


def same_bits(a: StreamResult, b: StreamResult) -> bool:
    assert a.saliency is not None
    assert b.saliency is not None
    assert a.tokens is not None
    assert b.tokens is not None
    pairs = [(a.logits, b.logits), (a.features, b.features), (a.tokens, b.tokens)]
    for name in ("query", "key", "class_row"):
        ours, theirs = getattr(a.saliency, name), getattr(b.saliency, name)
        assert (ours is None) == (theirs is None)
        pairs += [] if ours is None else [(ours, theirs)]
    return all(torch.equal(x, y) for x, y in pairs) and a.unreadable == b.unreadable


def run(model: Any, folder: Path | None) -> StreamResult:
    return stream(model, image(), chunk=31, store=folder, tokens=True)


def instants(monkeypatch: pytest.MonkeyPatch, every: int) -> Iterator[None]:
    """The process ends at every so many calls that change a file, ahead of the call, or in the
    middle of a write into the tokens.
    """
    count = {"calls": 0}
    replace, pwrite = Path.replace, os.pwrite

    def end() -> bool:
        count["calls"] += 1
        return count["calls"] % every == 0

    def replacing(self: Path, target: Any) -> Any:
        if end():
            raise Killed
        return replace(self, target)

    def writing(handle: int, data: Any, at: int) -> int:
        if end():
            pwrite(handle, bytes(data)[: len(data) // 2], at)
            raise Killed
        return pwrite(handle, data, at)

    monkeypatch.setattr(Path, "replace", replacing)
    monkeypatch.setattr(store.os, "pwrite", writing)
    yield
    monkeypatch.undo()


@pytest.mark.parametrize(
    "make",
    [vit, lambda: vit("nystrom"), xcit, lambda: vit(global_pool="avg")],
    ids=["vit", "two sweeps", "lpi", "mean"],
)
def test_ended_again_and_again_a_run_ends_with_the_same_bits(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    wanted = run(model, None)
    assert same_bits(run(model, tmp_path / "whole"), wanted)
    ends = 0
    for _ in instants(monkeypatch, every=13):
        for _ in range(100):
            try:
                found = run(model, tmp_path / "ended")
                break
            except Killed:
                ends += 1
    assert ends > 5
    assert same_bits(found, wanted)
    assert same_bits(run(model, tmp_path / "ended"), wanted)  # a finished run is its answer


def test_without_the_journal_s_tokens_a_run_ends_with_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: where a step's tokens are not written again, a run that ended in the middle of
    their writing is wrong.
    """
    model = vit()
    wanted = run(model, None)
    monkeypatch.setattr(
        engine,
        "Entry",
        lambda at, tensors: store.Entry({k: v for k, v in at.items() if k != "start"}, tensors),
    )
    pwrite, calls = os.pwrite, {"count": 0}

    def writing(handle: int, data: Any, at: int) -> int:
        calls["count"] += len(data) == 31 * 192 * 4  # a chunk of tokens
        if calls["count"] == 2:
            pwrite(handle, bytes(data)[: len(data) // 2], at)
            calls["count"] += 1
            raise Killed
        return pwrite(handle, data, at)

    monkeypatch.setattr(store.os, "pwrite", writing)
    with pytest.raises(Killed):
        run(model, tmp_path / "ended")
    assert not same_bits(run(model, tmp_path / "ended"), wanted)


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    model = vit()
    run(model, tmp_path / "run")
    with pytest.raises(CheckpointError, match="another options"):
        stream(model, image(), chunk=32, store=tmp_path / "run", tokens=True)
    with pytest.raises(CheckpointError, match="another image"):
        stream(model, image(seed=2), chunk=31, store=tmp_path / "run", tokens=True)
    with torch.no_grad():
        model.head.weight[0, 0] += 1  # type: ignore[union-attr, operator, index]
    with pytest.raises(CheckpointError, match="another model"):
        run(model, tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds other files"):
        run(model, tmp_path / "other")


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    model = vit()
    run(model, tmp_path / "run")
    with store.held(tmp_path / "run"), pytest.raises(CheckpointError, match="another process"):
        run(model, tmp_path / "run")


def test_a_log_goes_back_to_where_the_journal_stands(tmp_path: Path) -> None:
    """A line that a kill tore, and lines of a step that will be made again, are gone."""
    log = store.Log(tmp_path)
    log.add({"tile": 1})
    length = log.length
    log.add({"tile": 2})
    with log.path.open("ab") as file:
        file.write(b'{"til')
    again = store.Log(tmp_path)
    assert again.back_to(length) == [{"tile": 1}]
    again.add({"tile": 3})
    assert store.Log(tmp_path).back_to(again.length) == [{"tile": 1}, {"tile": 3}]


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    model = vit()
    run(model, tmp_path / "run")
    journal = tmp_path / "run" / store.JOURNAL
    found = bytearray(journal.read_bytes())
    found[-3] ^= 1
    journal.write_bytes(found)
    with pytest.raises(CheckpointError, match=r"journal.bin is damaged"):
        run(model, tmp_path / "run")


def test_a_disk_without_room_is_said_ahead(tmp_path: Path) -> None:
    """The room is taken before the first step, by a limit on the size of files in place of a full
    disk.
    """
    with (
        limited(50_000),
        pytest.raises(StorageError, match=r"tokens.bin: .*are needed and .* are free"),
    ):
        run(vit(), tmp_path / "run")
    assert same_bits(run(vit(), tmp_path / "run"), run(vit(), None))


def test_a_disk_that_fills_up_keeps_the_finished_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls = vit(), {"count": 0}
    wanted, opened = run(model, None), Path.open

    def opening(self: Path, mode: str = "r", **options: Any) -> Any:
        if self.name == "journal.bin.tmp":
            calls["count"] += 1
            if 15 <= calls["count"] < 17:
                raise OSError(28, "No space left on device")
        return opened(self, mode, **options)

    monkeypatch.setattr(Path, "open", opening)
    for _ in range(2):
        with pytest.raises(
            StorageError, match=r"No space left on device.*finished are kept.*run the same again"
        ):
            run(model, tmp_path / "run")
    before = calls["count"]
    assert same_bits(run(model, tmp_path / "run"), wanted)
    fresh = 0
    monkeypatch.undo()

    def counting(self: store.Journal, entry: store.Entry) -> None:
        nonlocal fresh
        fresh += 1
        write(self, entry)

    write = store.Journal.write
    monkeypatch.setattr(store.Journal, "write", counting)
    run(model, tmp_path / "again")
    assert calls["count"] - before <= fresh - 12  # what was finished was not done again


class limited:  # noqa: N801  # a context
    """No file grows beyond so many bytes."""

    def __init__(self, most: int) -> None:
        self.most = most

    def __enter__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.most, self.before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)
        signal.signal(signal.SIGXFSZ, self.handler)


def test_the_tokens_take_their_room_on_the_disk(tmp_path: Path) -> None:
    rows = store.InFile(tmp_path / "tokens.bin", 1000, 64, torch.float32, torch.device("cpu"))
    rows.open()
    assert (tmp_path / "tokens.bin").stat().st_blocks * 512 >= 1000 * 64 * 4
    rows.write(3, torch.ones(2, 64))
    assert torch.equal(rows.read(2, 6).sum(1), torch.tensor([0.0, 64, 64, 0]))
    rows.close(remove=True)


def test_a_finished_run_is_told_again_without_room(tmp_path: Path) -> None:
    model, pixels = vit(), np.zeros((160, 176, 3), dtype=np.uint8)
    found = stream(model, pixels, chunk=31, store=tmp_path / "run")
    with limited(1):
        again = stream(model, pixels, chunk=31, store=tmp_path / "run")
    assert torch.equal(again.logits, found.logits)
    assert again.saliency is not None
    assert found.saliency is not None
    assert torch.equal(again.saliency.query, found.saliency.query)


def test_what_is_left_of_a_finished_run_is_small(tmp_path: Path) -> None:
    stream(vit(), np.zeros((160, 176, 3), dtype=np.uint8), chunk=31, store=tmp_path / "run")
    assert {file.name for file in (tmp_path / "run").iterdir()} == {
        store.ABOUT,
        store.JOURNAL,
        "maps.bin",
    }
    assert softless.stream is stream
