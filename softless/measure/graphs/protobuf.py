"""Protocol buffers read without a schema compiler: the fields of a message, each within bounds.

https://protobuf.dev/programming-guides/encoding
"""

import struct
from collections.abc import Iterator
from mmap import mmap

from softless.measure.graphs.classes import LONGEST
from softless.measure.graphs.limits import Budget, Damaged

VARINT, EIGHT, BYTES, FOUR = 0, 1, 2, 5


class Message:
    """A message from `start` to `end` of a file."""

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

    def __iter__(self) -> Iterator[tuple[int, "Message | int | float"]]:
        """Each field: its number, and a whole number, or the message, text or list it holds."""
        at = self.start
        while at < self.end:
            self.budget.spend()
            key, at = self._varint(at)
            number, wire = key >> 3, key & 7
            if wire == VARINT:
                value, at = self._varint(at)
                yield number, value - (1 << 64) if value >= 1 << 63 else value
            elif wire in {EIGHT, FOUR}:
                width = 8 if wire == EIGHT else 4
                if at + width > self.end:
                    raise Damaged("it is cut short")
                yield number, struct.unpack_from("<d" if width == 8 else "<f", self.view, at)[0]
                at += width
            elif wire == BYTES:
                length, at = self._varint(at)
                if at + length > self.end:
                    raise Damaged("it is cut short, or a part is longer than it")
                yield number, Message(self.view, at, at + length, self.budget)
                at += length
            else:
                raise Damaged("a field is of no known kind")

    def _varint(self, at: int) -> tuple[int, int]:
        value = 0
        for step in range(10):
            if at >= self.end:
                raise Damaged("it is cut short")
            byte = self.view[at]
            at += 1
            value |= (byte & 127) << (7 * step)
            if byte < 128:
                return value, at
        raise Damaged("a number has no end")

    def __len__(self) -> int:
        return self.end - self.start

    def raw(self, most: int = LONGEST) -> bytes:
        return bytes(self.view[self.start : min(self.end, self.start + most)])

    def text(self) -> str:
        """A string, cut where it is longer than anything that is shown."""
        return self.raw().decode(errors="replace")

    def parts(self, *numbers: int) -> "list[Message]":
        """What these fields hold, in their order."""
        wanted = set(numbers)
        return [part for number, part in self if number in wanted and isinstance(part, Message)]

    def part(self, number: int) -> "Message | None":
        """What a field holds; the last of several, as the encoding has it."""
        held = self.parts(number)
        return held[-1] if held else None

    def name(self, number: int) -> str:
        part = self.part(number)
        return part.text() if part is not None else ""

    def integers(self, number: int) -> list[int]:
        """Whole numbers, one by one or packed."""
        values: list[int] = []
        for field, value in self:
            if field != number:
                continue
            if isinstance(value, Message):
                at = value.start
                while at < value.end:
                    self.budget.spend()
                    whole, at = value._varint(at)
                    values.append(whole - (1 << 64) if whole >= 1 << 63 else whole)
            else:
                values.append(int(value))
        return values

    def reals(self, number: int, kind: str = "f") -> list[float]:
        """The first of a list of floats (f) or doubles (d), one by one or packed."""
        for field, value in self:
            if field != number:
                continue
            if not isinstance(value, Message):
                return [float(value)]
            size = struct.calcsize(kind)
            if len(value) == size:
                return list(struct.unpack(f"<{kind}", value.raw(size)))
            return [float("nan")] * max(1, len(value) // size) if len(value) else []
        return []
