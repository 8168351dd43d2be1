"""The most memory that a process has held since a moment, as the system counts it, and a process of
its own to ask.
"""

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softless.errors import SoftlessError

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget() -> int:
    """Bytes that the process holds now; the system's count of its peak begins anew."""
    if not FORGET.exists():
        return peak()
    gc.collect()
    # else what set-up freed is held still, and hides as much of the work
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    FORGET.write_text("5")
    return _stated("VmRSS")


def peak() -> int:
    """Bytes that the process held at most since `forget`."""
    if FORGET.exists():
        return _stated("VmHWM")
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _stated(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def in_own_process(module: str, request: Mapping[str, Any], what: str) -> dict[str, Any]:
    """What a module answers as a process that does nothing else: JSON in its last line.

    Args:
        module: its name; it takes the request as JSON in its first argument.
        request: what it is asked.
        what: what is measured, for the message.

    Raises:
        SoftlessError: the process ended with an error.
    """
    done = subprocess.run(  # noqa: S603  # a module of this package
        [sys.executable, "-m", module, json.dumps(request)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise SoftlessError(f"the process of {what} ended with {done.returncode}: {last[-300:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
