"""What a tool that writes features says of its files."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from softless.bags.files import Source
from softless.bags.units import Frame
from softless.errors import DataError
from softless.words import few


@dataclass(frozen=True)
class Coordinates:
    """Corners (N, 2) in a file: one array of pairs, or one for x and one for y."""

    source: Source
    keys: tuple[str, ...]

    @property
    def count(self) -> int:
        shape = self.source.forms[self.keys[0]].shape
        return int(np.prod(shape)) // 2 if len(self.keys) == 1 else shape[0]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Some of them, (m, 2) float64."""
        if len(self.keys) == 2:
            parts = [self.source.read(key, slice(start, stop)) for key in self.keys]
            return np.stack(parts, 1).astype(np.float64)
        boxed = len(self.source.forms[self.keys[0]].shape) == 3
        span = slice(start, stop)
        pairs = self.source.read(self.keys[0], (0, span) if boxed else span)
        return pairs.astype(np.float64)


@dataclass(frozen=True)
class Described:
    """What a layout finds in a file.

    Attributes:
        features: name of the array (N, D).
        coords: where the corners are; None where there are none.
        frame: their unit.
        encoder: that made the features.
        slide: its name; None is the file's.
        remarks: what a reader should know, in sentences.
    """

    features: str
    coords: Coordinates | None = None
    frame: Frame = field(default_factory=Frame)
    encoder: str | None = None
    slide: str | None = None
    remarks: tuple[str, ...] = ()


class Describe(Protocol):
    """What is in a file; `named` tells whether a caller has named the layout."""

    def __call__(self, source: Source, *, named: bool) -> Described: ...


@dataclass(frozen=True)
class Layout:
    """How one tool writes features.

    Attributes:
        name: as `Bag.open(layout=)` takes it.
        tool: as people call it.
        keys: arrays and attributes it is known by, for the table in the documents.
        unit: of its coordinates, in words.
        recognises: whether a file is of this tool beyond doubt.
        describe: what is in such a file.
    """

    name: str
    tool: str
    keys: str
    unit: str
    recognises: Callable[[Source], bool]
    describe: Describe


def pairs(source: Source, key: str) -> Coordinates | None:
    """The corners in an array of pairs.

    Raises:
        DataError: the array has another shape.
    """
    if key not in source.forms:
        return None
    shape, dtype = source.forms[key]
    inner = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
    if len(inner) != 2 or inner[1] != 2 or dtype.kind not in "iuf":
        raise DataError(
            f"{source.called}: '{key}' is {dtype} of shape {shape}, and coordinates are numbers "
            "(N, 2): x and y"
        )
    return Coordinates(source, (key,))


def feature_key(source: Source, *names: str) -> str:
    """The first of these arrays that is there.

    Raises:
        DataError: none is.
    """
    for name in names:
        if name in source.forms:
            return name
    raise DataError(
        f"{source.called} has no '{names[0]}': it has {few(source.forms) or 'no arrays'}"
    )


def beside(source: Source, *places: str) -> Path | None:
    """The first of these paths, seen from the folder of a file, at which a file lies."""
    if source.path is None:
        return None
    paths = (source.path.parent / near for near in places)
    return next((path for path in paths if path.is_file()), None)


def number(value: object) -> float | None:
    """A number of attributes, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        parsed = float(value)
    except ValueError:
        return None
    return parsed if np.isfinite(parsed) else None
