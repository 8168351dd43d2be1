"""Whether a process runs, and when it started; asked without disturbing it."""

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

QUERY = 0x1000  # PROCESS_QUERY_LIMITED_INFORMATION
STILL_ACTIVE = 259  # what Windows tells as the exit code of a process that runs
ACCESS_DENIED = 5


def running(pid: int) -> bool:
    """Whether a process of this number runs; one that may not be asked does."""
    if sys.platform == "win32":  # signal 0 would be Ctrl-C there
        return _ask_windows(pid) is not None
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return not _ended(pid)


def _ended(pid: int) -> bool:
    """Whether it is a process that has ended, and that its parent has not asked about yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[
            0
        ] in {"Z", "X"}
    except (OSError, IndexError):
        return False


def started(pid: int) -> str | None:
    """When the process started, in the system's ticks: numbers are given out again.

    None where the system does not say.
    """
    if sys.platform == "win32":
        return _ask_windows(pid) or None
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _ask_windows(pid: int) -> str | None:
    """The start in units of 100 ns, or "" where Windows does not say; None where no such process
    runs.
    """
    library: Any = ctypes
    kernel = library.WinDLL("kernel32", use_last_error=True)
    kernel.OpenProcess.restype = ctypes.c_void_p
    handle = kernel.OpenProcess(QUERY, 0, pid)
    if not handle:
        return "" if library.get_last_error() == ACCESS_DENIED else None
    handle = ctypes.c_void_p(handle)
    try:
        code = ctypes.c_ulong()
        if kernel.GetExitCodeProcess(handle, ctypes.byref(code)) and code.value != STILL_ACTIVE:
            return None
        # a FILETIME is 64 bits; the first is the start
        times = [ctypes.c_ulonglong() for _ in range(4)]
        succeeded = kernel.GetProcessTimes(handle, *(ctypes.byref(time) for time in times))
        return str(times[0].value) if succeeded else ""
    finally:
        kernel.CloseHandle(handle)
