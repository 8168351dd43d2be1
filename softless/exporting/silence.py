"""What tools print while they work: kept from the screen, at hand for the log."""

import ctypes
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from typing import TextIO

LONGEST = 1 << 20  # characters that are kept of a tool's words: its last ones


@dataclass
class Said:
    """What was printed in a `muted` block, once that is left."""

    text: str = field(default="")


@contextmanager
def muted() -> Iterator[Said]:
    """Nothing reaches the screen, neither from Python nor from libraries in C, and no warning is
    shown. What was said stands in the text that is handed out, when the block is left.

    The descriptors of the process itself are exchanged: another thread is silent as well.
    """
    said = Said()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file:
        try:
            with _descriptors(file), redirect_stdout(file), redirect_stderr(file), _no_warnings():
                yield said
        finally:
            file.flush()
            file.seek(0)
            said.text = file.read()[-LONGEST:]


@contextmanager
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _descriptors(file: TextIO) -> Iterator[None]:
    """Descriptors 1 and 2 lead into a file; one that is closed stays so."""
    _flush()
    kept = {}
    for number in (1, 2):
        with suppress(OSError):
            kept[number] = os.dup(number)
    try:
        for number in kept:
            os.dup2(file.fileno(), number)
        yield
    finally:
        _flush()
        for number, own in kept.items():
            os.dup2(own, number)
            os.close(own)


def _flush() -> None:
    """Write out what Python and the C library hold back."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).fflush(None)
