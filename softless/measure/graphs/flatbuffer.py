"""FlatBuffers read without a schema compiler: tables, vectors and strings, each within bounds.

A table begins with the distance back to its list of fields (vtable), which holds each field's
place, or 0 where it has its default. https://flatbuffers.dev/internals
"""

import struct
from mmap import mmap

from softless.measure.graphs.classes import LONGEST
from softless.measure.graphs.limits import Budget, Damaged

SIZES = {"B": 1, "b": 1, "H": 2, "i": 4, "I": 4, "f": 4, "q": 8, "Q": 8, "d": 8}


class Flat:
    """A buffer from `start` to `end` of a file."""

    def __init__(
        self,
        view: mmap | bytes,
        start: int = 0,
        end: int | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.view, self.start = view, start
        self.end = len(view) if end is None else end
        self.budget = budget or Budget()
        if not 0 <= self.start <= self.end <= len(view):
            raise Damaged("it is cut short")

    @property
    def identifier(self) -> bytes:
        return bytes(self.view[self.start + 4 : min(self.start + 8, self.end)])

    def read(self, kind: str, at: int) -> int:
        return int(self.number(kind, at))

    def number(self, kind: str, at: int) -> float:
        """One number; `kind` is a letter of the module struct, little-endian."""
        if at < self.start or at + SIZES[kind] > self.end:
            raise Damaged("it is cut short, or an offset points outside it")
        self.budget.spend()
        return struct.unpack_from(f"<{kind}", self.view, at)[0]

    def root(self) -> "Table":
        return self.table(self.start)

    def table(self, at: int) -> "Table":
        """The table that an offset at `at` points to."""
        return Table(self, at + self.read("I", at))


class Table:
    """One table, its fields by their number in the schema."""

    def __init__(self, flat: Flat, at: int) -> None:
        self.flat, self.at = flat, at
        self.fields = at - flat.read("i", at)
        self.size = flat.read("H", self.fields)

    def _place(self, field: int) -> int | None:
        slot = 4 + 2 * field
        if slot + 2 > self.size:
            return None
        distance = self.flat.read("H", self.fields + slot)
        return self.at + distance if distance else None

    def integer(self, field: int, kind: str = "i", default: int = 0) -> int:
        place = self._place(field)
        return default if place is None else self.flat.read(kind, place)

    def real(self, field: int, kind: str = "d") -> float:
        place = self._place(field)
        return 0.0 if place is None else self.flat.number(kind, place)

    def table(self, field: int) -> "Table | None":
        place = self._place(field)
        return None if place is None else self.flat.table(place)

    def vector(self, field: int, size: int) -> tuple[int, int]:
        """Where the elements of `size` bytes begin, and how many there are."""
        place = self._place(field)
        if place is None:
            return 0, 0
        start = place + self.flat.read("I", place)
        number = self.flat.read("I", start)
        if start + 4 + number * size > self.flat.end:
            raise Damaged("it is cut short, or a list is longer than it")
        return start + 4, number

    def tables(self, field: int) -> "list[Table]":
        start, number = self.vector(field, 4)
        return [self.flat.table(start + 4 * index) for index in range(number)]

    def integers(self, field: int, kind: str = "i") -> list[int]:
        start, number = self.vector(field, SIZES[kind])
        return [self.flat.read(kind, start + SIZES[kind] * index) for index in range(number)]

    def text(self, field: int) -> str:
        """A string, cut where it is longer than anything that is shown."""
        start, number = self.vector(field, 1)
        return bytes(self.flat.view[start : start + min(number, LONGEST)]).decode(errors="replace")
