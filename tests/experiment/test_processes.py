"""Whether a process runs is asked without a signal on Windows, where signal 0 is Ctrl-C.

Windows is imitated: nothing here ran on it.
"""

import ctypes
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from softless.experiment.claim import Claim, alive, holder
from softless.experiment.processes import running, started


class Kernel:
    """Windows' answers about three processes: 11 runs, 12 has ended with code 1, 13 may not be
    asked.
    """

    def __init__(self) -> None:
        self.opened: list[int] = []
        self.asked = 0

        def open_process(_rights: int, _inherit: bool, pid: int) -> int | None:
            self.asked = pid
            if pid not in {11, 12}:
                return None
            self.opened.append(pid)
            return pid

        self.OpenProcess = open_process
        self.GetExitCodeProcess = self.code
        self.GetProcessTimes = self.times
        self.CloseHandle = lambda handle: self.opened.remove(handle.value)

    def code(self, handle: Any, code: Any) -> int:
        code._obj.value = 259 if handle.value == 11 else 1
        return 1

    def times(self, _handle: Any, start: Any, *_: Any) -> int:
        start._obj.value = 133_000_000_000_000_000
        return 1


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()

    def kill(*_: Any) -> None:
        raise AssertionError("a signal was sent")

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "kill", kill)
    monkeypatch.setattr(ctypes, "WinDLL", lambda *_, **__: made, raising=False)
    monkeypatch.setattr(
        ctypes, "get_last_error", lambda: 5 if made.asked == 13 else 87, raising=False
    )
    return made


def test_windows_is_asked_and_sent_nothing(kernel: Kernel):
    assert running(11)
    assert started(11) == "133000000000000000"
    assert kernel.opened == []  # every handle was given back
    assert not running(12)
    assert running(13)
    assert started(13) is None
    assert not running(14)


def test_a_lock_of_a_number_that_was_given_out_again(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("socket.gethostname", lambda: "here")
    held = {"host": "here", "pid": 11, "process": "133000000000000000"}
    assert alive(held)
    assert not alive({**held, "process": "1"})
    assert not alive({**held, "pid": 12})
    assert not alive({**held, "pid": "no number"})


def test_here_it_is_asked_of_the_system():
    assert running(os.getpid())
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not running(ended.pid)
    assert not running(2**80)


def test_a_claim_made_with_it(tmp_path):
    claim = Claim.take(tmp_path)
    assert SimpleNamespace(**(holder(tmp_path) or {})).pid == os.getpid()
    claim.end("finished")
