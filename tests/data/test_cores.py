"""The same work on many files: in their order, side by side where that is faster, given up when
closed.
"""

import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from softless.data import cores

SMALL = 200  # files


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr(cores, "cores", lambda: 4)
    paths = [tmp_path / f"{number}.bin" for number in range(SMALL)]
    for path in paths:
        path.write_bytes(b"small")
    return paths


def threads_of(files: list[Path], seconds: float) -> list[str]:
    def work(file: Path) -> tuple[Path, str]:
        time.sleep(seconds)
        return file, threading.current_thread().name

    with closing(cores.on_all_cores(work, files)) as read:
        found = list(read)
    assert [file for file, _ in found] == files
    return [name for _, name in found]


def test_small_files_that_are_waited_for_are_read_side_by_side(files: list[Path]):
    names = threads_of(files, 0.002)
    assert len({*names[: cores.LOOKED_AT]}) == 1
    assert len({*names[cores.LOOKED_AT :]}) > 1


def test_small_files_at_hand_are_read_in_a_row(files: list[Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cores, "WAITING", float("inf"))
    assert len({*threads_of(files, 0)}) == 1


def test_large_files_are_read_side_by_side(files: list[Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cores, "LARGE", 1)
    assert len({*threads_of(files, 0.002)}) > 1
    assert threads_of([], 0) == []


def test_what_waits_is_given_up(files: list[Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cores, "LARGE", 1)
    seen: list[Path] = []

    def work(file: Path) -> None:
        seen.append(file)
        time.sleep(0.01)

    with closing(cores.on_all_cores(work, files)) as read:
        next(read)
    assert len(seen) < SMALL / 2
