"""An image of bytes, or of float32 in 0..1 where a range was declared, region by region: in memory,
in a file, or scaled down. What cannot be read is noted, or is an error.
"""

# C channels, h x w pixels

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from softless.data.images import UPRIGHT, Remark
from softless.data.pictures import with_channels
from softless.slides.resampling import Axis, resampled

AT_ONCE = 4096  # pixels along a side of the fine image that are read at once to be scaled down
EDGE = 1e-6  # of a pixel, by which rounding may move the edge of a tile


class Unreadable(Exception):
    """A region that cannot be read; the message says why."""


@dataclass(frozen=True)
class Lost:
    """A tile that cannot be read: its level, the pixel of that level where it begins, why, and the
    rectangle it covers of what was read.
    """

    level: int
    x: int
    y: int
    reason: str
    box: tuple[int, int, int, int]  # top, left, bottom, right


class Pixels(Protocol):
    """An image of bytes: (height, width), and regions of it (h, w, C)."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""

    @property
    def level(self) -> int:
        """Which level of a slide it is."""

    def read(
        self, top: int, left: int, height: int, width: int, lost: list[Lost] | None = None
    ) -> NDArray[Any]:
        """A region inside the image. Its shape is (height, width, C).

        Args:
            top: Of the region.
            left: Of the region.
            height: Of the region.
            width: Of the region.
            lost: Takes the tiles that cannot be read, whose pixels are then zero; without it such a
                tile is an error.

        Raises:
            Unreadable: a tile of it cannot be read, and there is no `lost`.
        """

    def close(self) -> None:
        """Give the file back."""


@dataclass(frozen=True)
class Bytes:
    """An image that is in memory as bytes (h, w, C)."""

    values: NDArray[Any]
    level: int = 0
    remarks: tuple[Remark, ...] = ()  # what was seen of its file
    orientation: int = UPRIGHT  # 1 to 8 of its file, which was undone

    @property
    def size(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    def read(
        self, top: int, left: int, height: int, width: int, _: list[Lost] | None = None
    ) -> NDArray[Any]:
        """As `Pixels.read`: (height, width, C)."""
        return self.values[top : top + height, left : left + width]

    def close(self) -> None:
        """There is no file."""


class Scaled:
    """Pixels at another resolution.

    A pixel is the same whatever region it is read with: its weights are those of its place in the
    whole.
    """

    def __init__(
        self, fine: Pixels, factors: tuple[float, float], size: tuple[int, int] | None = None
    ) -> None:
        self.fine, self.level = fine, fine.level
        self.size = divided(fine.size, factors) if size is None else size
        self.axes = tuple(Axis(side, new) for side, new in zip(fine.size, self.size, strict=True))

    def read(
        self, top: int, left: int, height: int, width: int, lost: list[Lost] | None = None
    ) -> NDArray[Any]:
        """As `Pixels.read`: (height, width, C)."""
        down, across = (max(1, int(AT_ONCE / axis.by)) for axis in self.axes)
        rows = []
        for row in range(top, top + height, down):
            parts = [
                self._read(
                    row,
                    column,
                    min(down, top + height - row),
                    min(across, left + width - column),
                    lost,
                )
                for column in range(left, left + width, across)
            ]
            rows.append(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1))
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    def _read(
        self, top: int, left: int, height: int, width: int, lost: list[Lost] | None
    ) -> NDArray[Any]:
        spans = [
            axis.span(start, start + length)
            for axis, start, length in zip(self.axes, (top, left), (height, width), strict=True)
        ]
        (y0, y1), (x0, x1) = spans
        unreadable: list[Lost] | None = None if lost is None else []
        values = self.fine.read(y0, x0, y1 - y0, x1 - x0, unreadable)
        readable = None
        if unreadable:
            readable = np.ones(values.shape[:2], dtype=np.float64)
            for tile in unreadable:
                readable[
                    max(0, tile.box[0] - y0) : max(0, tile.box[2] - y0),
                    max(0, tile.box[1] - x0) : max(0, tile.box[3] - x0),
                ] = 0
        if unreadable and lost is not None:
            lost += [
                Lost(tile.level, tile.x, tile.y, tile.reason, self._box(tile.box))
                for tile in unreadable
            ]
        return resampled(values, self.axes, (top, left), (height, width), readable)

    def _box(self, box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        """The rectangle of fine pixels, in pixels of its own: all that have a part in it."""
        lows = [int(np.floor(box[i] / self.axes[i].by + EDGE)) for i in (0, 1)]
        highs = [
            min(self.size[i], int(np.ceil(box[i + 2] / self.axes[i].by - EDGE))) for i in (0, 1)
        ]
        return lows[0], lows[1], highs[0], highs[1]

    def close(self) -> None:
        """Give the file back."""
        self.fine.close()


def divided(sides: tuple[int, int], factors: tuple[float, float]) -> tuple[int, int]:
    """Height and width, scaled down."""
    return max(1, round(sides[0] / factors[0])), max(1, round(sides[1] / factors[1]))


def as_channels(values: NDArray[Any], channels: int) -> NDArray[Any]:
    """Pixels (h,w,1 or 3) with 1 or 3 channels: grey thrice, colour as grey by Pillow's weights."""
    if values.shape[-1] == channels:
        return values
    if values.dtype != np.uint8:
        return with_channels(values, channels)
    if channels == 3:
        return np.repeat(values, 3, axis=-1)
    return np.asarray(Image.fromarray(np.ascontiguousarray(values)).convert("L"))[..., None]
