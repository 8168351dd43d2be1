"""Where the tiles of a slide lie: squares whose corners are whole pixels of level 0.

So a viewer, another tool and the map of their scores mean the same ones.

A tile of `tile` pixels at the resolution asked for is `tile_px0` pixels of level 0 wide, rounded to
a whole number. So what the encoder sees differs from the resolution asked for by at most half a
pixel of level 0 a tile, and `mpp` says what it is. Where a stored level is within 1 % of it, the
pixels of that level are taken as they are.
"""

# H x W pixels of level 0, h x w tiles

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softless.data.tiff_pages import PLAUSIBLE
from softless.errors import DataError, MissingResolution, UsageError
from softless.slides.files import Levels
from softless.slides.lattice import Lattice, Origin
from softless.slides.pixels import Bytes, Pixels
from softless.slides.reader import SAME, Placement, level0_resolution

MOST = 4096  # pixels along a side of a tile
LEAST = 8


@dataclass(frozen=True)
class Cut:
    """How slides are cut into tiles.

    Attributes:
        mpp: Micrometres per pixel of a tile; None takes the pixels of level 0 as they are.
        tile: Pixels along a side of a tile, as an encoder sees it.
        overlap: Pixels of it that the next tile has too.
        slide_mpp: Micrometres per pixel of level 0, for files that do not say.

    Raises:
        UsageError: a number that cannot be.
    """

    mpp: float | None = None
    tile: int = 224
    overlap: int = 0
    slide_mpp: float | None = None

    def __post_init__(self) -> None:
        if not LEAST <= self.tile <= MOST:
            raise UsageError(f"--tile {self.tile}: give a side of {LEAST} to {MOST:,} pixels")
        if not 0 <= self.overlap < self.tile:
            raise UsageError(
                f"--overlap {self.overlap}: give fewer pixels than --tile {self.tile}, or 0"
            )
        if self.mpp is not None and not PLAUSIBLE[0] <= self.mpp <= PLAUSIBLE[1]:
            raise UsageError(
                f"--mpp {self.mpp:g}: give micrometres per pixel, between {PLAUSIBLE[0]} and "
                f"{PLAUSIBLE[1]}, for example 0.5"
            )


@dataclass(frozen=True)
class Tiles(Lattice):
    """A lattice of square tiles, which may lie over one another and reach beyond the image.

    Attributes:
        step: Pixels of level 0 from one tile to the next, down and across.
    """

    step: tuple[int, int] = (1, 1)

    def spans(self, axis: int) -> NDArray[np.float64]:
        """Where n tiles begin and end along an axis, (n, 2), in level 0; also beyond the image."""
        starts = np.arange(self.grid[axis], dtype=np.float64) * self.step[axis]
        return np.stack([starts, starts + self.patch[axis]], axis=1)


@dataclass(frozen=True)
class Tiling:
    """The tiles of one image.

    Attributes:
        size: Height and width of level 0.
        cut: What was asked for.
        tile_px0: Side of a tile in pixels of level 0.
        step_px0: From one tile to the next, in pixels of level 0.
        level: Whose pixels are read.
        scale: Pixels of level 0 in one of that level, down and across.
        mpp0: Micrometres per pixel of level 0, where that is known.
        bounds: x, y, width and height of what was scanned, where the slide says it.
        orientation: 1 to 8 of the file, which was undone.
    """

    size: tuple[int, int]
    cut: Cut
    tile_px0: int
    step_px0: int
    level: int = 0
    scale: tuple[float, float] = (1.0, 1.0)
    mpp0: float | None = None
    bounds: tuple[int, int, int, int] | None = None
    orientation: int = field(default=1)

    @property
    def factor(self) -> float:
        """Pixels of level 0 in one of a tile."""
        return self.tile_px0 / self.cut.tile

    @property
    def mpp(self) -> float | None:
        """Micrometres per pixel of a tile, exactly."""
        return None if self.mpp0 is None else self.mpp0 * self.factor

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tiles that begin inside the image."""
        return math.ceil(self.size[0] / self.step_px0), math.ceil(self.size[1] / self.step_px0)

    def lattice(self, origin: Origin = "slide") -> Tiles:
        """The tiles as masks and viewers take them."""
        side, step = self.tile_px0, self.step_px0
        mpp = None if self.mpp0 is None else (self.mpp0, self.mpp0)
        placement = Placement(mpp=mpp, bounds=self.bounds, orientation=self.orientation)
        return Tiles(self.grid, (side, side), self.size, placement, origin, (step, step))

    def inside(self) -> NDArray[np.float64]:
        """The share (h,w) of each tile that lies inside the image."""
        down, across = (
            np.minimum(spans[:, 1], length) - spans[:, 0]
            for spans, length in zip(
                (self.lattice().spans(0), self.lattice().spans(1)), self.size, strict=True
            )
        )
        return np.outer(down, across) / self.tile_px0**2

    def places(self, counts: NDArray[np.bool_]) -> NDArray[np.int64]:
        """x and y (n,2) of the top left corner of each tile that counts (h,w), row by row, in
        pixels of level 0.
        """
        rows, columns = np.nonzero(counts)
        return np.stack([columns, rows], axis=1).astype(np.int64) * self.step_px0


def tiling_of(pixels: Pixels, name: str, cut: Cut) -> tuple[Tiling, Pixels]:
    """The tiles of an image, and its pixels at the level they are read from.

    Args:
        pixels: Of level 0.
        name: Of the image, for sentences.
        cut: What is asked for.

    Raises:
        UsageError: a resolution finer than the image's, or other than it says.
        MissingResolution: a resolution is asked for, and the image does not say its own.
        DataError: its pixels are not square.
    """
    mpp0 = _square(level0_resolution(pixels, cut.slide_mpp, name), name)
    factor = 1.0 if cut.mpp is None else _factor(pixels, name, cut.mpp, mpp0)
    steps = _steps(pixels)
    fitting = [level for level, step in steps.items() if max(step) <= factor * (1 + SAME)]
    level = fitting[-1] if fitting else 0
    scale = steps[level]
    if scale[0] == scale[1] == round(scale[0]) and abs(factor / scale[0] - 1) <= SAME:
        factor = scale[0]
    size, bounds, orientation = pixels.size, None, 1
    if isinstance(pixels, Levels):
        bounds = pixels.bounds
    if isinstance(pixels, Levels | Bytes):
        orientation = pixels.orientation
    tile_px0 = round(cut.tile * factor)
    tiling = Tiling(
        size,
        cut,
        tile_px0,
        max(1, tile_px0 - round(cut.overlap * factor)),
        level,
        scale,
        mpp0,
        bounds,
        orientation,
    )
    if isinstance(pixels, Levels) and level != pixels.level:
        return tiling, pixels.at(level)
    return tiling, pixels


def _square(mpp: tuple[float, float] | None, name: str) -> float | None:
    if mpp is None:
        return None
    if abs(mpp[0] / mpp[1] - 1) > SAME:
        raise DataError(
            f"{name} has pixels of {mpp[1]:.4g} x {mpp[0]:.4g} micrometres, and tiles are squares "
            "of square pixels: scan or convert it with square ones"
        )
    return math.sqrt(mpp[0] * mpp[1])


def _factor(pixels: Pixels, name: str, mpp: float, mpp0: float | None) -> float:
    if mpp0 is None:
        reason = pixels.resolution.said if isinstance(pixels, Levels) else ""
        raise MissingResolution(
            f"{name} does not say how large its pixels are{f' ({reason})' if reason else ''}: give "
            "--slide-mpp (micrometres per pixel of level 0), or --mpp none, which takes its pixels "
            "as they are"
        )
    factor = mpp / mpp0
    if factor < 1 - SAME:
        raise UsageError(
            f"--mpp {mpp:g} is finer than {name}, which has {mpp0:.4g} micrometres per pixel: give "
            "a coarser one"
        )
    return max(1.0, factor)


def _steps(pixels: Any) -> dict[int, tuple[float, float]]:
    """Pixels of level 0 in one of each level that can be read."""
    if not isinstance(pixels, Levels):
        return {0: (1.0, 1.0)}
    return {
        level: _whole(pixels.scale(level), pixels.sizes[0], pixels.sizes[level])
        for level in range(len(pixels.sizes))
        if pixels.works[level]
    }


def _whole(
    scale: tuple[float, float], fine: tuple[int, int], coarse: tuple[int, int]
) -> tuple[float, float]:
    """The scale of a level: the whole number whose rounding explains its size, where one does.

    2,221 of 4,443 pixels are every second one, and the last is left out.
    """
    nearest = round(scale[1])
    if all(abs(fine[axis] / nearest - coarse[axis]) <= 1 for axis in (0, 1)):
        return float(nearest), float(nearest)
    return scale
