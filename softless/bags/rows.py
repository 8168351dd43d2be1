"""The rows of a bag's features, read when they are asked for."""

import operator
from dataclasses import dataclass
from typing import Any

import numpy as np

from softless.bags.files import Source
from softless.errors import DataError
from softless.words import counted

INFINITY = 0x7C00  # of two bytes without their sign; what is above is NaN
EMPTY = "it has no tiles: leave the slide out, or tile it again"


@dataclass(frozen=True)
class Rows:
    """(N, D) floats of a source. `rows[a:b]` reads these alone, as numpy (b - a, D).

    Attributes:
        source: where they are.
        key: their name there.
        start, stop: which rows of the source they are.
        name: of the slide, for sentences.
        boxed: whether the source holds (1, N, D).
    """

    source: Source
    key: str
    start: int
    stop: int
    name: str
    boxed: bool = False

    @classmethod
    def of(cls, source: Source, key: str, name: str, span: tuple[int, int] | None = None) -> "Rows":
        """All rows of an array, or those of a span.

        Raises:
            DataError: it has no rows, is no table of rows, or holds no floats.
        """
        shape, dtype = source.forms[key]
        boxed = len(shape) == 3 and shape[0] == 1
        shape = shape[1:] if boxed else shape
        if 0 in shape:
            raise DataError(f"{name}: {EMPTY}")
        if len(shape) != 2:
            raise DataError(
                f"{name}: its features have the shape {source.forms[key].shape}, and a bag has "
                "(N, D): a row for each tile"
            )
        if dtype.kind != "f":
            raise DataError(f"{name}: its features are {dtype}, and features are floats")
        start, stop = span or (0, shape[0])
        if stop <= start:
            raise DataError(f"{name}: {EMPTY}")
        return cls(source, key, start, stop, name, boxed)

    @property
    def shape(self) -> tuple[int, int]:
        return self.stop - self.start, int(self.source.forms[self.key].shape[-1])

    @property
    def dtype(self) -> np.dtype:
        return self.source.forms[self.key].dtype

    @property
    def ndim(self) -> int:
        return 2

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, which: Any) -> np.ndarray:
        """Rows of a slice, of positions (m,), or a mask (N,); one row of a number.

        Raises:
            DataError: a row is not finite, or the file is damaged.
            IndexError: there is no such row.
        """
        if isinstance(which, slice):
            first, last, step = which.indices(len(self))
            if step == 1:
                return self._read(first, max(last, first))
            return self[np.arange(first, last, step)]
        if isinstance(which, tuple):
            return self[which[0]][(slice(None), *which[1:])]
        if np.ndim(which) == 0:
            number = operator.index(which)
            if not -len(self) <= number < len(self):
                raise IndexError(f"row {number} of a bag of {counted(len(self), 'tile')}")
            number %= len(self)
            return self._read(number, number + 1)[0]
        places = np.arange(len(self))[np.asarray(which)]
        if not len(places):
            return self._read(0, 0)
        first = int(places.min())
        return self._read(first, int(places.max()) + 1)[places - first]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        rows = self._read(0, len(self))
        return rows if dtype is None else rows.astype(dtype, copy=bool(copy))

    def _read(self, first: int, last: int) -> np.ndarray:
        span = slice(self.start + first, self.start + last)
        rows = self.source.read(self.key, (0, span) if self.boxed else span)
        if not _all_finite(rows):
            bad = np.flatnonzero(~np.isfinite(rows).all(1))
            raise DataError(
                f"{self.name}: {counted(len(bad), 'row')} of its features hold NaN or infinity, "
                f"first row {first + int(bad[0])}: make its features again"
            )
        # torch warns of arrays that are not writable, and what is read is the reader's own
        return rows if rows.flags.owndata and rows.flags.writeable else rows.copy()


def _all_finite(rows: np.ndarray) -> bool:
    """Whether all of (m, D) are; numpy takes ten times as long for two bytes as for four."""
    if rows.dtype != np.float16 or not rows.flags.c_contiguous:
        return bool(np.isfinite(rows).all())
    bits = rows.view(np.uint16) & np.uint16(0x7FFF)
    return not rows.size or int(bits.max()) < INFINITY
