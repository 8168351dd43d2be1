"""Images in chunks, each made when it is asked for."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import overload

from torch import Tensor


class Chunks(Sequence[Tensor]):
    """A sequence of chunks (b, C, h, w) that are not held; a subclass says how one is made."""

    @abstractmethod
    def made(self, index: int) -> Tensor:
        """The chunk (b, C, h, w) of an index from 0 to the number of chunks less one."""

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.made(index % len(self))
