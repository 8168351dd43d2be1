"""The cores that this process may use, and files read on all of them."""

import os
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

CGROUP = Path("/sys/fs/cgroup")
MOST = 32  # threads
AT_ONCE = 4096  # files that wait for a thread
LARGE = 8192  # bytes of a file from which on threads are faster
LOOKED_AT = 64  # files, for how large they are and how long they are waited for
WAITING = 2.0  # times as long as a thread is busy, from which on it mostly waits
Result = TypeVar("Result")


def cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its control group where there
    is one.
    """
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        allowed = os.cpu_count() or 1
    quota = _quota(CGROUP)
    return max(min(allowed, allowed if quota is None else round(quota)), 1)


def _quota(root: Path) -> float | None:
    """Cores that the control group may use at once; None where it has no limit."""
    try:
        fields = (root / "cpu.max").read_text(encoding="utf-8").split()
        return None if fields[0] == "max" else int(fields[0]) / int(fields[1])
    except (OSError, ValueError, IndexError, ZeroDivisionError):
        pass
    try:
        quota, period = (
            int((root / "cpu" / f"cpu.cfs_{name}_us").read_text("utf-8"))
            for name in ("quota", "period")
        )
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 and period > 0 else None


def on_all_cores(
    work: Callable[[Path], Result], files: Sequence[Path]
) -> Generator[Result, None, None]:
    """The results of the same work on many files, in their order, by as many threads as cores where
    that is faster. Closing it gives up what waits, so that a signal ends it.

    Decoding lets other threads run, what Python does around it does not: small files are read one
    after the other, unless the first ones were mostly waited for, as on a file server.
    """
    first = 0 if _are_large(files) else LOOKED_AT
    wall, busy = time.perf_counter(), time.thread_time()
    yield from map(work, files[:first])
    wall, busy = time.perf_counter() - wall, time.thread_time() - busy
    files = files[first:]
    if first and wall < WAITING * busy:
        yield from map(work, files)
        return
    pool = ThreadPoolExecutor(min(cores(), MOST))
    try:
        for start in range(0, len(files), AT_ONCE):
            yield from pool.map(work, files[start : start + AT_ONCE])
    finally:
        pool.shutdown(cancel_futures=True)


def _are_large(files: Sequence[Path]) -> bool:
    """Whether the middle one of some files, over the whole list, holds as many bytes as decoding in
    threads is worth.
    """
    sizes = []
    for file in files[:: max(len(files) // LOOKED_AT, 1)]:
        with suppress(OSError):
            sizes.append(file.stat().st_size)
    return bool(sizes) and sorted(sizes)[len(sizes) // 2] >= LARGE
