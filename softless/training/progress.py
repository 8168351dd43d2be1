"""What a person sees of a running training: a bar with rate, remaining time, loss and lr; plain
lines where no terminal is.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

from softless.words import rate

BAR_SECONDS = 0.2  # between two states of the bar
LINE_SECONDS = 20.0  # between two plain lines within a long epoch


class Progress:
    """Shows the steps of all epochs; a context manager.

    Args:
        epochs: of the whole run.
        steps: per epoch.
        first: steps that were done before this process (a resumed run starts later).
        show: False shows nothing.
        stream: stderr by default, so that stdout stays for results.
    """

    def __init__(
        self,
        epochs: int,
        steps: int,
        first: int = 0,
        *,
        show: bool = True,
        stream: TextIO | None = None,
    ) -> None:
        self.epochs, self.steps, self.first = epochs, steps, first
        self.show, self.stream = show, stream or sys.stderr
        self.start = self.last = time.monotonic()
        self.bar: Any = None

    def __enter__(self) -> "Progress":  # noqa: PYI034 - typing.Self is younger than Python 3.10
        if self.show and self.stream.isatty():
            self.bar, self.task = _rich_bar(self.stream, self.epochs * self.steps, self.first)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def step(self, epoch: int, step: int, loss: float, lr: float, images_per_second: float) -> None:
        """One step is done; most calls return at once."""
        now = time.monotonic()
        if not self.show or now - self.last < (BAR_SECONDS if self.bar else LINE_SECONDS):
            return
        self.last = now
        done = epoch * self.steps + step + 1
        text = (
            f"epoch {epoch + 1}/{self.epochs}  loss {loss:.3f}  lr {lr:.1e}  "
            f"{rate(images_per_second)} images/s  {memory()}"
        )
        if self.bar is None:
            self._line(f"{text}  step {step + 1}/{self.steps}  {self._remaining(done)}")
        else:
            self.bar.update(self.task, completed=done, description=text)

    def epoch(self, epoch: int, scores: str) -> None:
        """An epoch, counted from 1, is done and validated: one line that stays."""
        if not self.show:
            return
        self.last = time.monotonic()
        done = epoch * self.steps
        line = f"epoch {epoch:>{len(str(self.epochs))}}/{self.epochs}  {scores}"
        if self.bar is None:
            self._line(f"{line}  {self._remaining(done)}")
        else:
            self.bar.console.print(line, highlight=False, soft_wrap=True)
            self.bar.update(self.task, completed=done)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Give the terminal to another progress line, validation's."""
        if self.bar is not None:
            self.bar.stop()
        yield
        if self.bar is not None:
            self.bar.start()

    def _remaining(self, done: int) -> str:
        passed = done - self.first
        seconds = (self.last - self.start) * (self.epochs * self.steps - done) / max(passed, 1)
        return f"{clock(seconds)} left"

    def _line(self, text: str) -> None:
        self.stream.write(text + "\n")
        self.stream.flush()


def memory() -> str:
    """The most memory that this process has held: on the GPU where there is one, otherwise
    resident.
    """
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB on the GPU"
    try:
        import resource
    except ImportError:  # Windows
        return ""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f} GiB"


def clock(seconds: float) -> str:
    """Seconds as 1:05 or 2:01:05."""
    total = round(seconds)
    hours, minutes, rest = total // 3600, total // 60 % 60, total % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _rich_bar(stream: TextIO, total: int, done: int) -> tuple[Any, Any]:
    """A started bar of rich and its task, or (None, None) where rich is not installed."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Rich
    except ImportError:
        return None, None
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
    )
    bar = Rich(*columns, console=Console(file=stream), transient=True)
    task = bar.add_task("starting", total=total, completed=done)
    bar.start()
    return bar, task
