"""SIGTERM and SIGINT while a run trains: the state is saved where it stands, then the process ends with the signal's exit code."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

WATCHED = (signal.SIGTERM, signal.SIGINT)


class Stop(BaseException):
    """Raised inside `Signals.interruptible`, where nothing is half done. No Exception, so that nobody on the way catches it by accident."""


class Signals:
    """Remembers the first signal, and ends the process at once on the second; a context manager.

    Between `interruptible` blocks a signal is only noted, and the loop looks at `received` after each step.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._raises = False
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> "Signals":  # noqa: PYI034 - typing.Self is younger than Python 3.10
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in WATCHED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def interruptible(self, *, alone: bool = True) -> Iterator[None]:
        """A stretch in which the run's state is at rest, so that a signal may break it off. With other ranks nothing is broken off."""
        if self.received is not None and alone:
            raise Stop
        self._raises = alone
        try:
            yield
        finally:
            self._raises = False

    def _handle(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked process that has not set its own handlers yet
            os._exit(128 + number)
        if self.received is not None:
            os._exit(128 + number)
        self.received = signal.Signals(number)
        if self._raises:
            raise Stop
