"""Scaling by an antialiased bicubic filter, as Pillow does it, whose answer does not depend on the
region it is made for.

The weights of a pixel follow from its place in the whole, as whole numbers of 2^-15. Sums of them
over bytes stay below 2^24, so float32 holds them exactly, in whatever order a matrix product adds
them up. (Pillow takes the place of a region in float32, and regions differ by a grey level.)
"""

# h x w pixels, C channels, n pixels along a side

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHARPNESS = -0.5  # of the bicubic filter: Keys' and Pillow's
# of a weight; the second where so many pixels have a part that 2^-15 is too coarse
BITS, FINE_BITS = 15, 30
MANY = 256  # pixels
BLOCK = 32  # pixels made at once
LEAST = 0.05  # of a pixel's weight that must lie on what can be read


@dataclass(frozen=True)
class Axis:
    """A side of so many pixels, brought to another number; or a stretch of it.

    Attributes:
        side: Pixels of it.
        new: New pixels.
        start: Where the first of them begins.
        step: Pixels of the side for each new one; None: all of them for all.
    """

    side: int
    new: int
    start: float = 0.0
    step: float | None = None

    @cached_property
    def by(self) -> float:
        """Pixels of the side for each new one."""
        return self.side / self.new if self.step is None else self.step

    @cached_property
    def _reach(self) -> float:
        return 2 * max(self.by, 1.0)

    @cached_property
    def bits(self) -> int:
        """Of a weight."""
        return BITS if 2 * self._reach < MANY else FINE_BITS

    def _ends(self, at: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """The centres of pixels, and from where to where the side has a part in each."""
        centres = self.start + (at + 0.5) * self.by
        lows = np.maximum(0, (centres - self._reach + 0.5).astype(np.int64))
        highs = np.minimum(self.side, (centres + self._reach + 0.5).astype(np.int64))
        return centres, lows, highs

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """Which pixels of the side the new ones from start to stop are made of."""
        _, lows, highs = self._ends(np.array([start, stop - 1]))
        return int(lows[0]), int(highs[1])

    def matrix(self, start: int, stop: int) -> tuple[int, NDArray[np.float64]]:
        """The first pixel of the side that has a part, and the weights (stop - start, n), whole
        numbers of 2^-bits. Its rows are new pixels.
        """
        centres, lows, highs = self._ends(np.arange(start, stop))
        first = int(lows[0])
        places = np.arange(first, int(highs[-1]))
        weights = _bicubic((places[None] - centres[:, None] + 0.5) / max(self.by, 1.0))
        weights[(places[None] < lows[:, None]) | (places[None] >= highs[:, None])] = 0
        quantised = np.rint(weights / weights.sum(1, keepdims=True) * 2**self.bits)
        rows = np.arange(len(quantised))
        quantised[rows, quantised.argmax(1)] += 2**self.bits - quantised.sum(1)
        return first, quantised


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x, a = np.abs(x), SHARPNESS
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def resampled(
    values: NDArray[Any],
    axes: tuple[Axis, ...],
    corner: tuple[int, int],
    size: tuple[int, int],
    readable: NDArray[np.float64] | None = None,
) -> NDArray[Any]:
    """The region of `size` at `corner` of the new image, from the pixels (h,w,C) of the spans that
    both axes name.

    Args:
        values: The pixels.
        axes: Of the height and the width.
        corner: Top and left of the region.
        size: Height and width of the region.
        readable: (h,w) one where a pixel can be read and zero elsewhere; None: everywhere. New
            pixels are made of what can be read alone.
    """
    down, across = axes
    # rows first, as Pillow does
    narrow = _along(values.swapaxes(0, 1), across, corner[1], size[1]).swapaxes(0, 1)
    pixels = _along(narrow, down, corner[0], size[0])
    return pixels if readable is None else _mended(pixels, values, axes, corner, size, readable)


def _along(values: NDArray[Any], axis: Axis, start: int, count: int) -> NDArray[Any]:
    """The first side brought to its new number of pixels: bytes stay bytes, and floats floats."""
    low, _ = axis.span(start, start + count)
    dtype = np.float32 if axis.bits == BITS else np.float64
    of_bytes = values.dtype == np.uint8
    dtype = dtype if of_bytes else np.float64
    pixels = np.empty((count, *values.shape[1:]), dtype=values.dtype)
    for at in range(0, count, BLOCK):
        stop = min(at + BLOCK, count)
        first, weights = axis.matrix(start + at, start + stop)
        part: NDArray[Any] = (
            values[first - low : first - low + weights.shape[1]]
            .astype(dtype)
            .reshape(weights.shape[1], -1)
        )
        sums: NDArray[Any] = np.matmul(weights.astype(dtype), part)
        sums *= dtype(2.0**-axis.bits)
        pixels[at:stop] = (_rounded(sums) if of_bytes else sums).reshape(
            stop - at, *values.shape[1:]
        )
    return pixels


def _mended(
    pixels: NDArray[Any],
    values: NDArray[Any],
    axes: tuple[Axis, ...],
    corner: tuple[int, int],
    size: tuple[int, int],
    readable: NDArray[np.float64],
) -> NDArray[Any]:
    """Where a pixel that cannot be read has a part in a new one, the others alone make it."""
    (_, rows), (_, columns) = (
        axis.matrix(start, start + count)
        for axis, start, count in zip(axes, corner, size, strict=True)
    )
    touched = (rows != 0).astype(float) @ (1 - readable) @ (columns != 0).astype(float).T > 0.5
    weight = rows @ readable @ columns.T
    sums = np.stack(
        [
            rows @ (values[..., channel] * readable) @ columns.T
            for channel in range(values.shape[-1])
        ],
        axis=-1,
    )
    enough = weight > LEAST * 2.0 ** (axes[0].bits + axes[1].bits)
    means = sums / np.where(enough, weight, 1)[..., None]
    mended = np.where(enough[..., None], _rounded(means) if values.dtype == np.uint8 else means, 0)
    return np.where(touched[..., None], mended.astype(values.dtype), pixels)


def _rounded(values: NDArray[Any]) -> NDArray[Any]:
    """To whole numbers of a byte, halves upwards."""
    return np.floor(values + values.dtype.type(0.5)).clip(0, 255)
