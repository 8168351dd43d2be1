"""The pixels of tiles: each the same whatever it is read with, and each that cannot be read named.

Neighbours of a row are read together and then scaled one by one. A pixel of a tile follows from its
own place alone.
"""

# C channels, h x w pixels of a tile

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softless.histology.tiling import Tiling
from softless.slides.pixels import AT_ONCE, Lost, Pixels
from softless.slides.resampling import Axis, resampled

Box = tuple[float, float, float, float]  # top, left, bottom, right


@dataclass(frozen=True)
class Window:
    """A tile and its pixels.

    Attributes:
        x: Of its top left corner, in pixels of level 0.
        y: Of the same.
        pixels: (h,w,C), those that lie inside the image; None where they cannot be read.
        reason: Why they cannot.
    """

    x: int
    y: int
    pixels: NDArray[Any] | None
    reason: str = ""


def windows(pixels: Pixels, tiling: Tiling, places: NDArray[np.int64]) -> Iterator[Window]:
    """The tiles at places (n,2), in their order.

    Args:
        pixels: Of the level that `tiling` names.
        tiling: What a tile is.
        places: x and y in pixels of level 0; neighbours of a row that follow one another are read
            at once.
    """
    longest = max(1, int(AT_ONCE * tiling.scale[1] / tiling.tile_px0))
    for run in _runs(places, tiling.step_px0, longest):
        yield from _read(pixels, tiling, run)


def _runs(places: NDArray[np.int64], step: int, longest: int) -> Iterator[NDArray[np.int64]]:
    """Neighbours of one row, so many at most."""
    start = 0
    for end in range(1, len(places) + 1):
        follows = end < len(places) and (places[end] - places[end - 1]).tolist() == [step, 0]
        if not follows or end - start == longest:
            yield places[start:end]
            start = end


def _read(pixels: Pixels, tiling: Tiling, run: NDArray[np.int64]) -> Iterator[Window]:
    axes = [_axes(pixels, tiling, int(x), int(y)) for x, y in run]
    spans = [tuple(axis.span(0, axis.new) for axis in pair) for pair in axes]
    (top, bottom), left, right = spans[0][0], spans[0][1][0], spans[-1][1][1]
    lost: list[Lost] = []
    block = pixels.read(top, left, bottom - top, right - left, lost)
    for (x, y), (down, across), ((y0, y1), (x0, x1)) in zip(run, axes, spans, strict=True):
        own = (
            down.start,
            across.start,
            down.start + down.new * down.by,
            across.start + across.new * across.by,
        )
        unreadable = next((tile for tile in lost if _meet(own, tile.box)), None)
        if unreadable is not None:
            yield Window(int(x), int(y), None, unreadable.reason)
            continue
        region = block[y0 - top : y1 - top, x0 - left : x1 - left]
        readable = _readable((y0, x0, y1, x1), lost)
        yield Window(int(x), int(y), _scaled(region, (down, across), readable))


def _axes(pixels: Pixels, tiling: Tiling, x: int, y: int) -> tuple[Axis, Axis]:
    """The stretches of both sides that a tile is made of, where they lie inside the image."""
    down, across = (
        _axis(length, corner / scale, tiling.factor / scale, tiling.cut.tile)
        for length, corner, scale in zip(pixels.size, (y, x), tiling.scale, strict=True)
    )
    return down, across


def _axis(length: int, start: float, step: float, tile: int) -> Axis:
    """A tile's pixels along a side: those whose middle lies inside the image."""
    inside = math.ceil((length - start) / step - 0.5)
    return Axis(length, min(tile, max(1, inside)), start, step)


def _scaled(
    region: NDArray[Any], axes: tuple[Axis, Axis], readable: NDArray[np.float64] | None
) -> NDArray[Any]:
    if all(axis.by == 1 and axis.start == int(axis.start) for axis in axes):
        spans = [axis.span(0, axis.new) for axis in axes]
        down, across = (
            slice(int(axis.start) - low, int(axis.start) - low + axis.new)
            for axis, (low, _) in zip(axes, spans, strict=True)
        )
        return region[down, across]
    return resampled(region, axes, (0, 0), (axes[0].new, axes[1].new), readable)


def _meet(box: Box, other: tuple[int, int, int, int]) -> bool:
    """Whether two rectangles have an area in common."""
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]


def _readable(box: tuple[int, int, int, int], lost: list[Lost]) -> NDArray[np.float64] | None:
    """Which pixels (h,w) of what a tile is made of can be read, where some cannot."""
    near = [tile.box for tile in lost if _meet(box, tile.box)]
    if not near:
        return None
    readable = np.ones((box[2] - box[0], box[3] - box[1]))
    for top, left, bottom, right in near:
        readable[
            max(0, top - box[0]) : max(0, bottom - box[0]),
            max(0, left - box[1]) : max(0, right - box[1]),
        ] = 0
    return readable


def batches(tiles: Iterator[Window], size: int) -> Iterator[list[Window]]:
    """So many tiles at a time; the last ones may be fewer."""
    while batch := list(itertools.islice(tiles, size)):
        yield batch
