"""What a file that nobody vouches for may ask of its reader."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

from softless.errors import DataError
from softless.words import clipped

DEEPEST = 64  # graphs within graphs
MOST = 4_000_000  # values that are looked at: forty thousand in the ONNX file of a DeiT-Ti
TEXT = 64 << 20  # bytes of a file that is read whole


class Damaged(ValueError):
    """A file is not what its ending says: why, in words that follow a colon."""


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """The bytes of a file, read where they are looked at: weights are not loaded.

    Raises:
        Damaged: it is empty.
    """
    with path.open("rb") as file:
        try:
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise Damaged("it is empty") from error
        with view:
            yield view


class Budget:
    """Counts what is looked at, so that a small file cannot ask for hours."""

    def __init__(self) -> None:
        self.left = MOST

    def spend(self, number: int = 1) -> None:
        self.left -= number
        if self.left < 0:
            raise Damaged("it asks for more work than any model needs")


def beside(path: Path, name: str) -> Path:
    """A file that another one names, in its own folder or below.

    Raises:
        DataError: the name leaves the folder: absolute, with `..`, or a link.
    """
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute()
    if not name or absolute or PureWindowsPath(name).drive or ".." in parts or "\0" in name:
        raise DataError(
            f"{path} names data outside its folder ({clipped(name)}): not opened; export it again"
        )
    folder = path.parent
    for part in PurePosixPath(name).parts:
        folder /= part
        if folder.is_symlink():
            raise DataError(
                f"{path} names data that is a link ({clipped(name)}): not opened; put the file "
                "itself there"
            )
    return folder
