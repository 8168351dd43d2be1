"""One process at a time trains in a folder; a dead one is taken over from."""

import errno
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from softless.errors import Interrupted, UsageError
from softless.experiment import claim as module
from softless.experiment.claim import Claim, alive, holder
from tests.training.zygote import Zygote


@pytest.mark.bar("A19", "two processes in one folder: the second is refused")
def test_a_second_process_is_told_who_holds_the_folder(tmp_path: Path):
    claim = Claim.take(tmp_path)
    with pytest.raises(
        UsageError,
        match=rf"is in use by process {os.getpid()} on {socket.gethostname()} since 20\d\d-",
    ):
        Claim.take(tmp_path)
    held = holder(tmp_path)
    assert held is not None
    assert held["pid"] == os.getpid()
    claim.end("finished")
    assert holder(tmp_path) is None
    assert json.loads((tmp_path / "state.json").read_text())["state"] == "finished"
    Claim.take(tmp_path).end("finished")


@pytest.mark.bar("A19", "the lock of a dead process: taken over with a warning")
def test_a_dead_one_is_taken_over_from_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    code = (
        "import sys; from pathlib import Path; from softless.experiment.claim import Claim; "
        "Claim.take(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert holder(tmp_path) is None
    Claim.take(tmp_path).end("finished")
    assert "is gone: taking over" in caplog.text


def test_a_number_that_was_given_out_again_is_another_process(tmp_path: Path):
    Claim.take(tmp_path)
    held = json.loads((tmp_path / "lock").read_text())
    assert alive(held)
    assert not alive({**held, "process": "1"})
    assert not alive({**held, "pid": 2**22 + 1})


def test_another_host_cannot_be_seen_from_here(tmp_path: Path):
    (tmp_path / "lock").write_text(
        json.dumps({"pid": 1, "host": "elsewhere", "started": "2026-01-01", "process": "1"})
    )
    with pytest.raises(
        UsageError, match=r"process 1 on elsewhere since 2026-01-01: .*if it is gone, delete .*lock"
    ):
        Claim.take(tmp_path)


DEEP = "[" * 2000
HERE = socket.gethostname()
SILENT = {  # what a lock may hold that names no process: a power cut, a bad disk, another program
    "empty": b"",
    "a blank": b" ",
    "one NUL": b"\0",
    "NUL bytes": bytes(150),
    "a block of NUL": bytes(4096),
    "cut JSON": b'{"pid": 12',
    "an open string": b'{"pid": 1, "host": "a',
    "a list": b"[]",
    "a list of locks": b'[{"pid": 1, "host": "a"}]',
    "a number": b"7",
    "NaN": b"NaN",
    "null": b"null",
    "true": b"true",
    "a text": b'"lock"',
    "words": b"locked by me\n",
    "two objects": b'{"pid": 1} {"pid": 2}',
    "empty object": b"{}",
    "no pid": json.dumps({"host": HERE}).encode(),
    "no host": b'{"pid": 1}',
    "nested": DEEP.encode(),
    "nested objects": b'{"a":' * 800,
    "not UTF-8": b'{"pid": 1, "host": "\xff\xfe"}',
    "UTF-16": '{"pid": 1}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"pid": 1}',
    "huge": b" " * 5000,
    "very huge": b"x" * 3_000_000,
    **{
        f"pid {name}": json.dumps({"pid": pid, "host": HERE, "started": "2026-01-01"}).encode()
        for name, pid in {
            "0": 0,
            "-1": -1,
            "-12345": -12345,
            "10^20": 10**20,
            "2^32": 2**32,
            "1e400": 10**400,
            "text": "12",
            "float": 1.5,
            "null": None,
            "true": True,
            "list": [1],
            "object": {},
        }.items()
    },
    "host is a number": json.dumps({"pid": 1, "host": 7}).encode(),
    "host is null": json.dumps({"pid": 1, "host": None}).encode(),
}


@pytest.mark.bar("A19", "a damaged lock, by kind: taken over with a line, at once")
@pytest.mark.parametrize("kind", SILENT)
def test_a_lock_that_says_nothing_is_taken_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
):
    (tmp_path / "lock").write_bytes(SILENT[kind])
    assert holder(tmp_path) is None
    claim = Claim.take(tmp_path)
    held = holder(tmp_path)
    assert held is not None
    assert held["pid"] == os.getpid()
    assert "is damaged (" in caplog.text
    assert "taking over" in caplog.text
    claim.end("finished")
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def a_loop(lock: Path) -> None:
    lock.symlink_to(lock)


def a_full_folder(lock: Path) -> None:
    lock.mkdir()
    (lock / "mine").write_text("kept")


STRANGE = {
    "dangling link": (lambda lock: lock.symlink_to("nowhere"), "is a link"),
    "link to a file": (lambda lock: lock.symlink_to(__file__), "is a link"),
    "link to itself": (a_loop, "is a link"),
    "folder": (Path.mkdir, "is a folder"),
    "full folder": (a_full_folder, "is a folder"),
    "pipe": (os.mkfifo, "is a pipe"),
}


@pytest.mark.bar("A19", "what is called lock is no file, by kind: one sentence, at once")
@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_file_is_named_and_stays(tmp_path: Path, kind: str):
    make, said = STRANGE[kind]
    make(tmp_path / "lock")
    with pytest.raises(
        UsageError, match=rf"lock {said}, and the lock of a run is a file: delete it if no process"
    ):
        Claim.take(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    assert holder(tmp_path) is None


def test_a_lock_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "lock").write_text("{}")

    def refused(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(
        UsageError, match=r"cannot read .*lock: Permission denied; make it readable, or delete it"
    ):
        Claim.take(tmp_path)


def test_a_lock_that_was_damaged_while_its_process_runs_is_still_its(tmp_path: Path):
    """state.json names the process too."""
    claim = Claim.take(tmp_path)
    (tmp_path / "lock").write_bytes(bytes(150))
    with pytest.raises(UsageError, match=rf"is in use by process {os.getpid()} on"):
        Claim.take(tmp_path)
    claim.note("finished")
    Claim.take(tmp_path).end("finished")


def test_a_lock_that_another_process_has_by_now_is_not_deleted(tmp_path: Path):
    claim = Claim.take(tmp_path)
    (tmp_path / "lock").write_text(json.dumps({"pid": 1, "host": HERE, "token": "another"}))
    claim.end("finished")
    assert (tmp_path / "lock").exists()


def test_a_lock_is_never_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """However long a process is held up while it makes its lock, nobody finds half of one."""
    seen: list[bytes | None] = []
    for name in ("write_bytes", "touch"):
        inner = getattr(Path, name)

        def wrapped(self: Path, *args: Any, inner: Any = inner) -> Any:
            done = inner(self, *args)
            lock = tmp_path / "lock"
            seen.append(lock.read_bytes() if lock.exists() else None)
            return done

        monkeypatch.setattr(Path, name, wrapped)
    fsync = os.fsync

    def looked(handle: int) -> None:
        lock = tmp_path / "lock"
        seen.append(lock.read_bytes() if lock.exists() else None)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", looked)
    Claim.take(tmp_path)
    assert len(seen) > 3
    assert all(content is None or json.loads(content)["pid"] == os.getpid() for content in seen)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP])
def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int):
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refused)
    claim = Claim.take(tmp_path)
    with pytest.raises(UsageError, match="in use"):
        Claim.take(tmp_path)
    claim.end("finished")
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_a_process_that_waits_hears_a_signal_and_does_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fcntl = pytest.importorskip("fcntl")
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(Interrupted, match="SIGTERM while") as raised:
        Claim.take(tmp_path, stopped=lambda: signal.SIGTERM)
    assert raised.value.exit_code == 143
    assert pickle.loads(pickle.dumps(raised.value)).exit_code == 143
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    with pytest.raises(UsageError, match="another process has been starting in the run folder"):
        Claim.take(tmp_path)
    os.close(handle)
    Claim.take(tmp_path).end("finished")


def test_a_folder_that_is_not_to_be_used_after_all_is_as_it_was(tmp_path: Path):
    def look() -> None:
        raise UsageError("it holds a run by now")

    (tmp_path / "state.json").write_text("what the run before said")
    with pytest.raises(UsageError, match="it holds a run by now"):
        Claim.take(tmp_path, look)
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
    assert (tmp_path / "state.json").read_text() == "what the run before said"


@pytest.mark.bar(
    "A19",
    "processes that start together, with no lock, a dead and a damaged one: one of them trains",
)
@pytest.mark.parametrize(
    "rounds", [pytest.param(12, id="12"), pytest.param(200, id="200", marks=pytest.mark.soak)]
)
def test_of_several_that_start_together_one_has_the_folder(
    zygote: Zygote, tmp_path: Path, rounds: int, record_property: Callable[[str, object], None]
):
    assert zygote.race(tmp_path / "race", rounds) == 0, (tmp_path / "race/said.txt").read_text()
    record_property("cases", (rounds, rounds))
