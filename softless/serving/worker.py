"""One thread that computes, a bounded queue before it, and a way to end what it is at.

A job that takes too long, or that nobody waits for any more, is really ended. Its thread gets an
exception at the next step of Python, between two operators of torch. That thread is then given up
and another begins, with a copy of the model that nothing has touched.
"""

import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

S = TypeVar("S")
ARRIVAL = 5.0  # seconds within which an exception that was sent must have come


class Stopped(BaseException):
    """The job is ended.

    No Exception, so that nobody on the way catches it by accident.
    """


class Died(Exception):
    """The thread ended while it was at the job."""


class Full(Exception):
    """The queue has no room."""


class Turn:
    """Who computes: requests, or a slide between them.

    A long job holds its turn in short stretches, and lets every request that waits go first.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._taken = False
        self._requests = 0  # that wait or are at work

    @contextmanager
    def of_request(self) -> Iterator[None]:
        """The turn of one request."""
        with self._condition:
            self._requests += 1
            try:
                while self._taken:
                    self._condition.wait()
            except BaseException:
                self._requests -= 1
                raise
            self._taken = True
        try:
            yield
        finally:
            with self._condition:
                self._requests -= 1
                self._taken = False
                self._condition.notify_all()

    @contextmanager
    def of_slide(self) -> Iterator[Callable[[], None]]:
        """The turn of a slide; what is yielded is called between its steps, and lets others by."""
        self._take()
        try:
            yield self._let_by
        finally:
            self._give()

    def _take(self) -> None:
        with self._condition:
            while self._taken or self._requests:
                self._condition.wait()
            self._taken = True

    def _give(self) -> None:
        with self._condition:
            self._taken = False
            self._condition.notify_all()

    def _let_by(self) -> None:
        if self._requests:
            self._give()
            self._take()


class Job(Generic[S]):
    """Something to be computed with what the thread holds; `outcome` has the answer."""

    def __init__(self, work: Callable[[S], Any]) -> None:
        self.work = work
        self.outcome: Future[Any] = Future()
        self.submitted = time.monotonic()
        self.began: float | None = None
        self.stopping = self.over = False
        self.outcome.set_running_or_notify_cancel()  # from now on nobody cancels it but by `stop`


class Worker(Generic[S]):
    """A thread that does one job after the other.

    Args:
        make: makes what the jobs are given; called anew whenever a thread begins.
        waiting: jobs that may wait.
        turn: of the computation, shared with slides.
    """

    def __init__(self, make: Callable[[], S], *, waiting: int, turn: Turn | None = None) -> None:
        self._make, self._most, self._turn = make, waiting, turn or Turn()
        self._condition = threading.Condition()
        self._queue: deque[Job[S]] = deque()
        self._current: Job[S] | None = None
        self._ending = False
        self.begun = 0  # threads so far
        self.ready = threading.Event()
        self._begin()

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._queue)

    @property
    def full(self) -> bool:
        """Whether another job would be refused."""
        return len(self._queue) >= self._most

    @property
    def busy(self) -> bool:
        """Whether a job is at work."""
        return self._current is not None

    def submit(self, work: Callable[[S], Any]) -> Job[S]:
        """Put a job into the queue.

        Raises:
            Full: there is no room, or the server is ending.
        """
        job = Job(work)
        with self._condition:
            if self.full or self._ending:
                raise Full
            self._queue.append(job)
            self._condition.notify()
        return job

    def stop(self, job: Job[S]) -> None:
        """End a job, whether it waits or is at work; of one that is done nothing happens."""
        with self._condition:
            if job in self._queue:
                self._queue.remove(job)
                job.outcome.set_exception(Died("ended before its turn"))
            elif job is self._current and not job.stopping and not job.over:
                job.stopping = True
                if job.began is not None:
                    _send(self._thread, Stopped)

    def close(self, seconds: float) -> bool:
        """End all; whether the thread came to its end in time."""
        with self._condition:
            self._ending = True
            for job in self._queue:
                job.outcome.set_exception(Died("the server is ending"))
            self._queue.clear()
            current, thread = self._current, self._thread
            self._condition.notify_all()
        if current is not None:
            self.stop(current)
        thread.join(seconds)
        return not thread.is_alive()

    def _begin(self) -> None:
        self.ready.clear()
        self.begun += 1
        self._thread = threading.Thread(target=self._run, name="softless serve", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        """The life of one thread. It ends with a job that was stopped, or that ended it."""
        error: BaseException | None = None
        try:
            self._loop()
        except BaseException as caught:  # noqa: BLE001 - whatever ends a thread is told to who waits
            error = caught
        with self._condition:
            job, self._current = self._current, None
            if job is not None and not job.outcome.done():
                job.outcome.set_exception(Died("ended at work"))
            if error is not None and not self._ending:
                self._begin()

    def _loop(self) -> None:
        subject = self._make()
        self.ready.set()
        while (job := self._next()) is not None:
            # the turn is held around what may be ended, so that it is given back in any case
            with self._turn.of_request():
                answer, error = self._done(job, subject)
            if error is None:
                job.outcome.set_result(answer)
            else:
                job.outcome.set_exception(error)
            self._current = None
            del job, answer, error

    def _done(self, job: Job[S], subject: S) -> tuple[Any, Exception | None]:
        """The answer of a job, or its error."""
        with self._condition:
            if job.stopping:
                return None, Died("ended before its turn")
            job.began = time.monotonic()
        try:
            answer, error = job.work(subject), None
        except Exception as caught:  # noqa: BLE001 - a failed request is told to who waits
            answer, error = None, caught
        with self._condition:
            job.over = True
            stopping = job.stopping
        if stopping:
            _await_arrival()
        return answer, error

    def _next(self) -> Job[S] | None:
        with self._condition:
            while not self._queue and not self._ending:
                self._condition.wait()
            if self._ending:
                return None
            self._current = self._queue.popleft()
            return self._current


def _send(thread: threading.Thread, kind: type[BaseException]) -> None:
    """Let an exception rise in a thread, at its next step of Python."""
    number = ctypes.c_ulong(thread.ident or 0)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(number, ctypes.py_object(kind))


def _await_arrival() -> None:
    """An exception is on its way to this thread: wait for it here, where nothing is half done."""
    end = time.monotonic() + ARRIVAL
    while time.monotonic() < end:
        time.sleep(0.001)
