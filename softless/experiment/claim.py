"""Who trains in a run folder now, and how the last process there ended.

The file `lock` names the process. It is written aside and linked into its place, so it is never
empty, and two that start together cannot both have it. Looking at a lock and taking it over happens
under the system's own lock on the folder, which ends with its process. That one is held for an
instant only: loaders would inherit it, and not every network file system has it. There the link
alone decides between two new runs.
"""

import json
import logging
import os
import signal
import socket
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from softless.errors import Interrupted, UsageError
from softless.experiment.folder import LOCK, STATE
from softless.experiment.processes import running, started
from softless.models.durable import delete, discard, move, storing, write_bytes, write_text

LARGEST = 4096  # bytes of a lock; ours has about 150
PATIENCE = 60.0  # seconds for which another process may look at the lock
PAUSE = 0.05
# each lost one means that another process took the folder, or gave it back, in between
ATTEMPTS = 20
HELD: set[str] = set()  # tokens of the claims of this process: it outlives its runs in a notebook
_log = logging.getLogger("softless.training")


class _DamagedError(Exception):
    """Why a lock says nothing."""


@dataclass
class Claim:
    """A run folder held by this process; `end` says how the run ended and gives it back."""

    folder: Path
    token: str = field(default_factory=lambda: uuid.uuid4().hex)  # tells this lock from every other

    @staticmethod
    def take(
        folder: Path,
        look: Callable[[], object] = lambda: None,
        stopped: Callable[[], int] = lambda: 0,
    ) -> "Claim":
        """Hold the folder.

        Args:
            folder: that of a run.
            look: raises an error where the folder is not to be used after all; called once it is
                held, before anything is written.
            stopped: the number of a signal that came, or 0; asked while another process is waited
                for.

        Raises:
            UsageError: another process trains in it (its number, host and start are named), what is
                called `lock` is no file of ours, or it cannot be written (StorageError).
            Interrupted: a signal came while another process was waited for.
        """
        claim, lock = Claim(folder), folder / LOCK
        for _ in range(ATTEMPTS):
            with _alone(folder, stopped):
                _clear_away(lock)
                if not _placed(lock, {**_me(), "token": claim.token}):
                    continue
            HELD.add(claim.token)
            try:
                look()
                claim.note("running")
            except BaseException:
                claim.give_back()
                raise
            return claim
        raise UsageError(
            f"other processes keep taking the run folder {folder}: wait for them, or choose "
            "another --out"
        )

    def note(self, state: str, message: str = "", **entries: Any) -> None:
        """Write state.json: how the run stands, for people and for `softless runs`."""
        content = {"state": state, "said": message, "since": _now(), **_me(), **entries}
        write_text(self.folder / STATE, json.dumps(content, indent=1) + "\n")

    def end(self, state: str, message: str = "", **entries: Any) -> None:
        """Note how the run ended and give the folder back, whatever the disk does."""
        try:
            self.note(state, message, **entries)
        except UsageError as error:
            _log.warning("%s", error)
        self.give_back()

    def give_back(self) -> None:
        """Delete the lock if it is still this process's, and if the disk lets it."""
        HELD.discard(self.token)
        with suppress(_DamagedError, UsageError):
            if (_read(self.folder / LOCK) or {}).get("token") == self.token:
                discard(self.folder / LOCK)


def holder(folder: Path) -> dict[str, Any] | None:
    """The process that trains in a folder, or None where none does that can be seen from here."""
    try:
        owner = _read(folder / LOCK)
    except (_DamagedError, UsageError):
        return _noted(folder)
    return owner if owner is not None and alive(owner) else None


def alive(owner: Mapping[str, Any]) -> bool:
    """Whether the process of a lock runs and still holds it; one of another host counts as
    running.
    """
    if owner.get("host") != socket.gethostname():
        return True
    try:
        pid = int(owner["pid"])
    except (KeyError, ValueError, TypeError):
        return False
    if pid == os.getpid() and owner.get("token", "") not in {"", *HELD}:
        return False  # a disk that refused kept the lock of a run that this process ended
    return running(pid) and owner.get("process") in {None, started(pid)}


def clear_dead(folder: Path) -> None:
    """Delete the lock of a process that is gone, and the state that it was writing, where a run is
    finished; a disk that refuses is left alone.
    """
    if os.path.lexists(folder / LOCK):
        with suppress(UsageError), _alone(folder, lambda: 0):
            _clear_away(folder / LOCK)
            delete(folder / f"{STATE}.tmp")


def sweep(folder: Path) -> None:
    """Delete what killed processes left beside the lock. The folder is held."""
    for path in folder.glob(f"{LOCK}.*"):
        delete(path)


@contextmanager
def _alone(folder: Path, stopped: Callable[[], int]) -> Iterator[None]:
    """Let one process at a time look at the lock and change it, where the system can lock a
    folder.
    """
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):  # Windows, or a folder that may not be listed
        yield
        return
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            except OSError:  # a network file system without such locks
                break
            else:
                break
            if number := stopped():
                raise Interrupted(
                    f"{signal.Signals(number).name} while {folder} was waited for: nothing was "
                    "begun",
                    128 + number,
                )
            if time.monotonic() > deadline:
                raise UsageError(
                    f"another process has been starting in the run folder {folder} for "
                    f"{PATIENCE:.0f} seconds: wait for it, or choose another --out"
                )
            time.sleep(PAUSE)
        yield
    finally:
        os.close(handle)  # which gives the system's lock back


def _placed(lock: Path, content: Mapping[str, Any]) -> bool:
    """Put a lock where there is none; whether that was so. It is whole from the first instant."""
    aside = lock.with_name(f"{lock.name}.{content['token']}")
    write_bytes(aside, json.dumps(dict(content)).encode())
    try:
        return _linked(aside, lock)
    finally:
        discard(aside)


def _linked(aside: Path, lock: Path) -> bool:
    try:
        os.link(aside, lock)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        return _renamed(aside, lock)
    return True


def _renamed(aside: Path, lock: Path) -> bool:
    """The same without links.

    Windows renames nothing onto a file; elsewhere an exclusive file is made first and then replaced
    by the whole one.
    """
    if os.name == "nt":
        try:
            os.rename(aside, lock)  # noqa: PTH104 - Path.rename says the same of both systems
        except FileExistsError:
            return False
        return True
    with storing(lock):
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
    move(aside, lock)
    return True


def _clear_away(lock: Path) -> None:
    """Remove the lock of a process that is gone, or one that says nothing.

    Raises:
        UsageError: the process is not gone, or what is called `lock` is no file that may be
            removed.
    """
    try:
        owner = _read(lock)
    except _DamagedError as error:
        if (noted := _noted(lock.parent)) is not None:  # the lock was damaged while its process ran
            raise _in_use(lock, noted) from error
        _log.warning(
            "the lock in %s is damaged (%s), and no process is known to train there: taking over",
            lock.parent,
            error,
        )
        delete(lock)
        return
    if owner is None:
        return
    if alive(owner):
        raise _in_use(lock, owner)
    aside = lock.with_name(f"{lock.name}.{uuid.uuid4().hex}")
    with storing(lock):
        try:
            lock.rename(aside)
        except FileNotFoundError:
            return
    with suppress(_DamagedError):
        # another process took it over in between, where the folder cannot be locked
        if _read(aside) != owner:
            _linked(aside, lock)
            discard(aside)
            return
    discard(aside)
    _log.warning(
        "process %s, which held %s since %s, is gone: taking over",
        owner.get("pid"),
        lock.parent,
        owner.get("started"),
    )


def _in_use(lock: Path, owner: Mapping[str, Any]) -> UsageError:
    elsewhere = (
        "" if owner.get("host") == socket.gethostname() else f"; if it is gone, delete {lock}"
    )
    since = owner.get("started") or owner.get("since")
    return UsageError(
        f"run folder {lock.parent} is in use by process {owner.get('pid')} on {owner.get('host')} "
        f"since {since}: "
        f"wait for it, or choose another --out{elsewhere}"
    )


def _noted(folder: Path) -> dict[str, Any] | None:
    """The process that state.json says is training, if it runs on this host: it vouches for a lock
    that says nothing.
    """
    try:
        state = _read(folder / STATE, 1 << 20)
    except (_DamagedError, UsageError):
        return None
    runs_here = (
        state is not None
        and state.get("state") == "running"
        and state.get("host") == socket.gethostname()
    )
    return state if state is not None and runs_here and alive(state) else None


def _me() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": _now(),
        "process": started(os.getpid()),
    }


def _read(path: Path, largest: int = LARGEST) -> dict[str, Any] | None:
    """What a lock says, or None where there is none. Nothing that could block or is large is
    opened.

    Raises:
        UsageError: it is no file, or cannot be read.
        _DamagedError: it names no process.
    """
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            kind = next((name for test, name in KINDS if test(status.st_mode)), "no file")
            raise UsageError(
                f"{path} is {kind}, and the lock of a run is a file: delete it if no process "
                "trains there"
            )
        if status.st_size > largest:
            raise _DamagedError(f"it has {status.st_size} bytes")
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}; make it readable, or delete it if no process "
            "trains there"
        ) from error
    try:
        parsed = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise _DamagedError("it is empty" if not content else "it is not JSON") from error
    if (
        not isinstance(parsed, dict)
        or type(parsed.get("pid")) is not int
        or not isinstance(parsed.get("host"), str)
    ):
        raise _DamagedError("it names no process")
    if not 0 < parsed["pid"] < 2**32:
        raise _DamagedError(f"no process has the number {parsed['pid']}")
    return parsed


KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISLNK, "a link"), (stat.S_ISFIFO, "a pipe"))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
