"""The most memory that this process has held since a moment, as the system counts it."""

import ctypes
import gc
from pathlib import Path

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
