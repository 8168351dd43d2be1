"""Folders that were walked already: of several ranks that see one folder, one walks it.

Ranks on one machine that mean the same folder see the same files. A folder on another machine, or
another folder, is walked there: that is how other files are found (`training.agreement`).
"""

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

BOOT = Path("/proc/sys/kernel/random/boot_id")  # another of each machine, where Linux runs it
_walks: ContextVar[Mapping[Path, Any] | None] = ContextVar("softless_walks", default=None)


def identity(folder: Path) -> tuple[str, str, int, int] | None:
    """Which folder of which machine this is: equal where two processes see the same files; None of
    a folder that is not there.
    """
    try:
        boot = BOOT.read_text(encoding="ascii") if BOOT.is_file() else ""
        status = folder.stat()
    except OSError:
        return None
    return platform.node(), boot, status.st_dev, status.st_ino


@contextmanager
def walked(listings: Mapping[Path, Any]) -> Iterator[None]:
    """Within it, `listed` finds what was found in these folders (absolute paths)."""
    token = _walks.set(listings)
    try:
        yield
    finally:
        _walks.reset(token)


def listed(folder: Path) -> Any:
    """What a walk found in a folder, or None where it was not walked."""
    return (_walks.get() or {}).get(folder)
