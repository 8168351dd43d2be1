"""SIGTERM and SIGINT while a run trains: the state is saved where it stands, then the process ends
with the signal's exit code.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

WATCHED = (signal.SIGTERM, signal.SIGINT)
STANDS = "the last checkpoint stands, and --resume goes on from it"
GRACE = 20.0  # seconds that a rank has to reach the end of its step, and tell the others


class Stop(BaseException):
    """Raised inside `Signals.interruptible`, where nothing is half done.

    No Exception, so that nobody on the way catches it by accident.
    """


class Signals:
    """Remembers the first signal, and ends the process at once on the second; a context manager.

    Between `interruptible` blocks a signal is only noted, and the loop looks at `received` after
    each step. A rank that waits for others hears nothing there, since torch's exchange holds the
    main thread: a thread ends it, if it has not ended by itself.

    Args:
        ranks: Processes of the run.
        stands: What is left where a rank is ended in an exchange, for people.
    """

    def __init__(self, ranks: int = 1, stands: str = STANDS) -> None:
        self.stands = stands
        self.received: signal.Signals | None = None
        self.last_words: Callable[[str], None] = lambda _: None  # called before such a rank ends
        self._watch = Watch(self) if ranks > 1 else None
        self._raises = False
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> "Signals":  # noqa: PYI034 - typing.Self is younger than Python 3.10
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in WATCHED}
            if self._watch is not None:
                self._watch.begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.heard()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def heard(self) -> None:
        """The main thread is at work on what came: nobody has to end it."""
        if self._watch is not None:
            self._watch.end()

    @contextmanager
    def interruptible(self, *, alone: bool = True) -> Iterator[None]:
        """A stretch in which the run's state is at rest, so that a signal may break it off.

        With other ranks nothing is broken off.

        Raises:
            Stop: a signal has come.
        """
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


class Watch:
    """Ends a process whose main thread does not come back from an exchange after a signal: after
    `GRACE`, or at a second one.
    """

    def __init__(self, signals: Signals) -> None:
        self.signals = signals
        self._ends: tuple[socket.socket, socket.socket] | None = None
        self._before = -1

    def begin(self) -> None:
        """Hear signals from now on."""
        self._ends = socket.socketpair()
        self._ends[1].settimeout(0)  # a handler may not wait
        self._before = signal.set_wakeup_fd(self._ends[1].fileno(), warn_on_full_buffer=False)
        threading.Thread(
            target=self._hear, args=(self._ends[0],), name="signals", daemon=True
        ).start()

    def end(self) -> None:
        """Hear none any more."""
        if self._ends is None:
            return
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._before)
        ends, self._ends = self._ends, None
        ends[1].close()  # the thread reads the end of it

    def _hear(self, inbox: socket.socket) -> None:
        with inbox:
            first = _number(inbox)
            if first is None:
                return
            inbox.settimeout(GRACE)
            try:
                if _number(inbox) is None:  # the main thread came back
                    return
            except TimeoutError:
                pass
        name = signal.Signals(first).name
        message = f"{name}: this rank waited for others that did not come; {self.signals.stands}"
        print(f"softless: {message}", file=sys.stderr, flush=True)
        self.signals.last_words(message)
        os._exit(128 + first)


def _number(inbox: socket.socket) -> int | None:
    """The next signal that is watched; None at the end."""
    while received := inbox.recv(1):
        if received[0] in WATCHED:
            return received[0]
    return None
