"""Who trains in a run folder now, and how the last process there ended."""

import json
import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from softless.errors import UsageError
from softless.models.durable import write_whole
from softless.training.processes import running, started
from softless.training.run_folder import LOCK, STATE

_log = logging.getLogger("softless.training")


@dataclass
class Claim:
    """A run folder held by this process; `end` says how the run ended and gives it back."""

    folder: Path

    @staticmethod
    def take(folder: Path) -> "Claim":
        """Hold the folder.

        Raises:
            UsageError: another process trains in it (its number, host and start are named).
        """
        lock = folder / LOCK
        while True:
            try:
                handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                _clear_away(lock)
                continue
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(json.dumps(_me()))
            claim = Claim(folder)
            claim.note("running")
            return claim

    def note(self, state: str, said: str = "", **more: Any) -> None:
        """Write state.json: how the run stands, for people and for `softless runs`."""
        told = {"state": state, "said": said, "since": _now(), **_me(), **more}
        write_whole(
            self.folder / STATE, lambda path: path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        )

    def end(self, state: str, said: str = "", **more: Any) -> None:
        """Note how the run ended and give the folder back, whatever the disk does."""
        try:
            self.note(state, said, **more)
        except UsageError as error:
            _log.warning("%s", error)
        (self.folder / LOCK).unlink(missing_ok=True)


def holder(folder: Path) -> dict[str, Any] | None:
    """The process that trains in a folder, or None where none does that can be seen from here."""
    found = _read(folder / LOCK)
    return found if found is not None and alive(found) else None


def alive(held: Mapping[str, Any]) -> bool:
    """Whether the process of a lock runs; one of another host counts as running."""
    if held.get("host") != socket.gethostname():
        return True
    try:
        pid = int(held["pid"])
    except (KeyError, ValueError, TypeError):
        return False
    return running(pid) and held.get("process") in {None, started(pid)}


def _clear_away(lock: Path) -> None:
    """Remove the lock of a process that is gone.

    Raises:
        UsageError: it is not gone.
    """
    held = _read(lock)
    if held is None:
        if lock.exists() and not lock.read_bytes():  # a process that was killed between making and writing it
            lock.unlink(missing_ok=True)
        return
    if alive(held):
        elsewhere = "" if held.get("host") == socket.gethostname() else f"; if it is gone, delete {lock}"
        raise UsageError(
            f"run folder {lock.parent} is in use by process {held.get('pid')} on {held.get('host')} since {held.get('started')}: "
            f"wait for it, or choose another --out{elsewhere}"
        )
    aside = lock.with_name(f"{lock.name}.{os.getpid()}")
    try:
        lock.rename(aside)
    except FileNotFoundError:
        return
    if _read(aside) == held:
        _log.warning(
            "process %s, which held %s since %s, is gone: taking over",
            held.get("pid"),
            lock.parent,
            held.get("started"),
        )
        aside.unlink()
    else:  # another process took it over in between
        aside.replace(lock)


def _me() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": _now(), "process": started(os.getpid())}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
