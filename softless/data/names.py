"""Many names in two arrays: a list of strings is copied by each loading process, since whoever
looks at a string counts it.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

ANY = "surrogatepass"  # names of files need be no text: all come back as they were


class Names(Sequence[str]):
    """Names as their bytes one behind the other, and where each ends. Processes that are forked
    share both arrays.

    Args:
        names: in order.
    """

    def __init__(self, names: Iterable[str]) -> None:
        listed = list(names)
        joined = "".join(listed)
        parts = listed if joined.isascii() else [name.encode("utf-8", ANY) for name in listed]
        self._bytes = np.frombuffer(joined.encode("utf-8", ANY), dtype=np.uint8)
        self._ends = np.zeros(len(listed) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, parts), np.int64, len(listed)), out=self._ends[1:])

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"name {index} of {len(self)}")
        at = int(index) % len(self)
        return self._bytes[self._ends[at] : self._ends[at + 1]].tobytes().decode("utf-8", ANY)

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def __repr__(self) -> str:
        return f"Names({list(self)})"
