"""A progress line for whatever takes longer than two seconds: how far, how fast, how long still."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO, TypeVar

from softless.words import visible

Item = TypeVar("Item")
PATIENCE = 2.0  # seconds before the line appears
INTERVAL = 0.2  # seconds between two states of it
Listener = Callable[[str, int, int], None]  # label, how many are done, of how many
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Within the block, and in this thread, a function is told of each step in place of a line on
    the terminal. What it raises ends the work.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def track(
    items: Iterable[Item],
    total: int,
    label: str,
    *,
    size: Callable[[Item], int] = lambda _: 1,
    stream: TextIO | None = None,
) -> Iterator[Item]:
    """Yield the items; after two seconds show `label 120/360  45/s  5 s left` on a terminal, and
    clear it at the end.

    Args:
        total: how many things the items hold together.
        size: how many of them an item holds (a batch holds several).
        stream: where to write, stderr by default; nothing is written to a stream that is not a
            terminal.
    """
    stream, listener = stream or sys.stderr, _listener.get()
    start = last = time.monotonic()
    done, displayed = 0, False
    try:
        for item in items:
            yield item
            done += size(item)
            if listener is not None:
                listener(label, done, total)
                continue
            now = time.monotonic()
            if now - start > PATIENCE and now - last > INTERVAL and stream.isatty():
                last, displayed = now, True
                stream.write("\r" + progress_line(label, done, total, now - start).ljust(78))
                stream.flush()
    finally:
        if displayed:
            stream.write("\r" + " " * 78 + "\r")
            stream.flush()


def progress_line(label: str, done: int, total: int, seconds: float) -> str:
    """One state of the line.

    >>> progress_line("evaluating", 50, 200, 10.0)
    'evaluating 50/200  5.0/s  30 s left'
    """
    rate = done / seconds
    remaining = f"{(total - done) / rate:.0f} s left" if rate else "…"
    return f"{visible(label)} {done}/{total}  {rate:.1f}/s  {remaining}"
