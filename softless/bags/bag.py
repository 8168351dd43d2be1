"""`softless.Bag`: the features of a slide's tiles and where the tiles lie."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from softless.bags.files import H5, MemorySource, Source, h5_held, source_of
from softless.bags.lattice import check_lattice
from softless.bags.layouts.layout import Coordinates, Described
from softless.bags.layouts.plain import PAIRS
from softless.bags.layouts.table import layout_of
from softless.bags.rows import Rows
from softless.bags.units import Frame, Given
from softless.errors import CoordinateError, DataError, located
from softless.words import counted, few

TRIED = 1024  # tiles whose spacing is looked at when a bag is opened
MEMORY = "memory"  # the layout of a bag that is in no file


@dataclass(frozen=True, repr=False)
class Bag:
    """The tiles of a slide: a row of features for each, and its corner.

    Attributes:
        features: (N, D) floats, read when they are asked for: `features[a:b]` reads these rows.
        slide: its name.
        layout: which tool wrote it, as `softless.bags.layouts.table.LAYOUTS` calls it.
        encoder: that made the features, where the file says it.
        path: the file, where there is one.
        remarks: what a reader should know, in sentences.

    Examples:
        >>> grid = [[256 * x, 256 * y] for x in range(3) for y in range(3)]
        >>> bag = softless.Bag.of(torch.ones(9, 4), grid, tile_um=256, mpp0=0.5)
        >>> len(bag), bag.features[2:5].shape, bag.coords_px0[1], bag.tile_px0
        (9, (3, 4), array([  0., 512.]), 512.0)

    Raises:
        DataError: features that are read are not finite, or the file is damaged.
        CoordinateError: `coords_um` is asked for, and the unit of the coordinates is not known.
    """

    features: Rows
    slide: str
    layout: str
    encoder: str | None = None
    path: Path | None = None
    remarks: tuple[str, ...] = ()
    coordinates: Coordinates | None = field(default=None)
    frame: Frame = field(default_factory=Frame)
    first_tile: int = field(default=0)  # of the file, where several bags share it

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        unit: str | None = None,
        slide_mpp: float | None = None,
        tile: float | None = None,
        overlap: float | None = None,
        layout: str | None = None,
        coords: str | os.PathLike[str] | None = None,
    ) -> "Bag":
        """A bag in a file; docs/bags.md lists the layouts. Features are read when they are asked
        for.

        Args:
            path: the file (.h5, .npz, .npy, .pt, .zarr).
            unit: of the coordinates, where the file does not say it: "um" or "px0".
            slide_mpp: micrometres of a level-0 pixel, where the file does not say it.
            tile: side of a tile in the unit of the coordinates, where the file does not say it.
            overlap: of neighbouring tiles in that unit, likewise.
            layout: the tool that wrote it; recognised without it, but for those whose files look
                like others'.
            coords: a file of coordinates that belong to the rows, where the features' own has none.

        Raises:
            DataError: nothing that can be read is there.
            CoordinateError: units or sizes that contradict each other.
            UsageError: a unit or layout that does not exist.
        """
        hints = Given(unit, slide_mpp, tile, overlap)
        hints.check()
        file = located(os.fspath(path))
        source = source_of(file)
        kind = layout_of(source, layout)
        described = kind.describe(source, named=layout is not None)
        if coords is not None:
            described = _with_coordinates(described, located(os.fspath(coords)))
        return cls._described(
            described, source, hints, described.slide or slide_name(file), kind.name
        )

    @classmethod
    def of(
        cls,
        features: Any,
        coords_um: Any = None,
        *,
        tile_um: float | None = None,
        mpp0: float | None = None,
        slide: str = "",
        encoder: str | None = None,
    ) -> "Bag":
        """A bag of arrays or tensors in memory.

        Args:
            features: (N, D) floats.
            coords_um: (N, 2), x and y of each tile's top left corner in micrometres.
            tile_um: side of a tile in micrometres.
            mpp0: micrometres of a level-0 pixel.
            slide: its name.
            encoder: that made the features.

        Raises:
            DataError: shapes that do not fit.
            CoordinateError: coordinates that contradict the side of a tile.
        """
        arrays = {"features": _array(features)}
        coordinates = None
        if coords_um is not None:
            arrays["coords"] = _array(coords_um).astype(np.float64)
        source = MemorySource(arrays)
        if coords_um is not None:
            coordinates = Coordinates(source, ("coords",))
            if arrays["coords"].ndim != 2 or arrays["coords"].shape[1] != 2:
                raise DataError(
                    f"coordinates have the shape {arrays['coords'].shape}, and they are (N, 2): x "
                    "and y of each tile"
                )
        described = Described("features", coordinates, Frame(um=1.0, tile=tile_um), encoder=encoder)
        hints = Given(slide_mpp=mpp0)
        return cls._described(described, source, hints, slide or "a bag in memory", MEMORY, slide)

    @classmethod
    def _described(
        cls,
        described: Described,
        source: Source,
        hints: Given,
        name: str,
        layout: str,
        slide: str | None = None,
    ) -> "Bag":
        """A bag as a layout describes it, with what the caller says; a first look at its
        coordinates.
        """
        called = name if source.path is None else str(source.path)
        features = Rows.of(source, described.features, called)
        coordinates, remarks = described.coords, list(described.remarks)
        if coordinates is None:
            frame = described.frame
            remarks += _useless(hints)
        else:
            frame = described.frame.with_given(hints, called)
            if coordinates.count != len(features):
                raise DataError(
                    f"{called}: it has {counted(len(features), 'row')} of features and "
                    f"{counted(coordinates.count, 'coordinate')}: each tile has one of both"
                )
            check_lattice(coordinates.read(0, min(len(features), TRIED)), frame, called)
        if features.boxed:
            remarks.append(
                f"its features are stored as {source.forms[described.features].shape} and read as "
                f"{features.shape}"
            )
        return cls(
            features,
            name if slide is None else slide,
            layout,
            described.encoder,
            source.path,
            tuple(remarks),
            coordinates,
            frame,
        )

    def __repr__(self) -> str:
        tiles, width = self.features.shape
        return f"Bag({self.slide!r}, {counted(tiles, 'tile')} of {width}, {self.layout})"

    def __len__(self) -> int:
        return len(self.features)

    @property
    def has_coords(self) -> bool:
        """Whether there are coordinates, in whatever unit."""
        return self.coordinates is not None

    @property
    def why_no_um(self) -> str:
        """What is missing for `coords_um`, in a sentence; nothing where they are there."""
        if self.coordinates is None:
            return "it has no coordinates"
        return self.frame.why_no_um()

    @cached_property
    def coords(self) -> np.ndarray | None:
        """(N, 2) float64 as they are stored, in whatever unit; None where there are none."""
        if self.coordinates is None:
            return None
        stored = self.coordinates.read(self.first_tile, self.first_tile + len(self))
        check_lattice(stored, self.frame, self.features.name)
        stored.flags.writeable = False
        return stored

    @property
    def coords_um(self) -> np.ndarray | None:
        """(N, 2) float64: x and y of each tile's top left corner in micrometres; None where the
        file has no coordinates.

        Raises:
            CoordinateError: it has some, and their unit is not known; how it is given is said.
        """
        stored = self.coords
        if stored is None:
            return None
        if self.frame.um is None:
            raise CoordinateError(f"{self.features.name}: {self.frame.why_no_um()}")
        return stored * self.frame.um

    @property
    def coords_px0(self) -> np.ndarray | None:
        """(N, 2) float64: the same in pixels of level 0; None where that is not known."""
        stored = self.coords
        return None if stored is None or self.frame.px0 is None else stored * self.frame.px0

    @property
    def tile_um(self) -> float | None:
        """Side of a tile in micrometres, where it is known."""
        return self.frame.in_um(self.frame.tile)

    @property
    def tile_px0(self) -> float | None:
        """Side of a tile in pixels of level 0, where it is known."""
        return self.frame.in_px0(self.frame.tile)

    @property
    def overlap_um(self) -> float | None:
        """Overlap of neighbouring tiles in micrometres, where it is known."""
        return self.frame.in_um(self.frame.overlap)

    @property
    def mpp0(self) -> float | None:
        """Micrometres of a level-0 pixel, where they are known."""
        return self.frame.mpp0

    @contextmanager
    def held_open(self) -> Iterator["Bag"]:
        """Within it an HDF5 file stays open in this thread, so that many small reads cost less.

        Outside it no file is open: a bag may be written anew at any time.
        """
        source = self.features.source
        if source.path is None or source.path.suffix.lower() not in H5:
            yield self
            return
        with h5_held(source.path):
            yield self

    def part(self, start: int, stop: int, slide: str) -> "Bag":
        """The rows of a span as a bag of their own: several slides may share a file.

        Raises:
            DataError: the span is empty.
        """
        rows = self.features
        span = (rows.start + start, rows.start + stop)
        name = f"{rows.name}, slide {slide}"
        return replace(
            self,
            features=Rows.of(rows.source, rows.key, name, span),
            slide=slide,
            first_tile=self.first_tile + start,
        )


def slide_name(file: Path) -> str:
    """The name of a slide, from the file of its features."""
    return file.stem


def _array(values: Any) -> np.ndarray:
    """Arrays, tensors and lists as numpy; bfloat16, which numpy lacks, as float32."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (
            values.float() if values.dtype.itemsize == 2 and not _halves(values) else values
        ).numpy()
    return np.asarray(values)


def _halves(values: Tensor) -> bool:
    """Whether numpy has the type of two bytes."""
    return str(values.dtype) in {"torch.float16", "torch.int16", "torch.uint16"}


def _with_coordinates(described: Described, path: Path) -> Described:
    """Coordinates from a file of their own, which says its unit or leaves it open.

    Raises:
        DataError: it has no coordinates.
    """
    source = source_of(path)
    kind = layout_of(source, None)
    if {*PAIRS, "x"} & source.forms.keys():
        key = next((name for name in PAIRS if name in source.forms), None)
        coordinates = Coordinates(source, ("x", "y") if key is None else (key,))
    elif "" in source.forms:
        coordinates = Coordinates(source, ("",))
    else:
        raise DataError(f"{path} has no '{PAIRS[0]}': it has {few(source.forms) or 'no arrays'}")
    shape = source.forms[coordinates.keys[0]].shape
    if len(coordinates.keys) == 1 and (len(shape) != 2 or shape[1] != 2):
        raise DataError(
            f"{path}: its coordinates have the shape {shape}, and they are (N, 2): x and y"
        )
    frame = kind.describe(source, named=False).frame if "features" in source.forms else Frame()
    return replace(described, coords=coordinates, frame=frame)


def _useless(hints: Given) -> list[str]:
    """Remarks on what was said of coordinates that are not there."""
    names = [
        name
        for name in ("unit", "slide_mpp", "tile", "overlap")
        if getattr(hints, name) is not None
    ]
    if hints.unit is not None or hints.tile is not None or hints.overlap is not None:
        return [f"it has no coordinates, so {' and '.join(names)} say nothing"]
    return []
