"""Where patches lie: rectangles in pixels of level 0, as the file counts them or as a viewer does.

A viewer counts from the corner of what it shows. QuPath shows a slide's `bounds` alone, and
pictures as they are stored, without turning them by their Orientation.
"""

# h x w patches, n points

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from softless.data.tiff import Turn
from softless.errors import UsageError
from softless.slides.reader import Placement

Origin = Literal["slide", "qupath"]
Corners = tuple[float, float, float, float]  # x and y of the first corner, and of the one across


@dataclass(frozen=True)
class Lattice:
    """A grid of patches over what was read of an image.

    Attributes:
        grid: Rows and columns of patches.
        patch: Height and width of one, in pixels of what was read.
        size: Height and width of what was read, where the last patches end.
        placement: Where it lies in its file.
        origin: Who counts: "slide" from the corner of level 0, or "qupath" from that of `bounds`.

    Raises:
        UsageError: nobody counts like this.
    """

    grid: tuple[int, int]
    patch: tuple[int, int]
    size: tuple[int, int]
    placement: Placement = field(default_factory=Placement)
    origin: Origin = "slide"

    def __post_init__(self) -> None:
        if self.origin not in get_args(Origin):
            raise UsageError(
                f"origin={self.origin}: give slide (pixels of level 0 from the file's corner) or "
                "qupath (from the corner of what QuPath shows)"
            )

    @property
    def extent(self) -> tuple[float, float]:
        """Height and width of what was read, in pixels of level 0."""
        return self.size[0] * self.placement.scale[0], self.size[1] * self.placement.scale[1]

    @property
    def shown(self) -> Corners:
        """What the mask or the picture of such a viewer covers, in upright pixels of level 0."""
        if self.origin == "slide" or self.placement.bounds is None:
            return 0.0, 0.0, self.extent[1], self.extent[0]
        x, y, width, height = self.placement.bounds
        return float(x), float(y), float(x + width), float(y + height)

    def edges(self, axis: int) -> NDArray[np.float64]:
        """Where n patches begin along an axis (0 down, 1 across) and the last one ends, (n + 1,),
        in level 0.
        """
        places = np.arange(self.grid[axis] + 1, dtype=np.float64) * self.patch[axis]
        return np.minimum(places, self.size[axis]) * self.placement.scale[axis]

    def spans(self, axis: int) -> NDArray[np.float64]:
        """Where n patches begin and end along an axis, (n, 2), in level 0."""
        edges = self.edges(axis)
        return np.stack([edges[:-1], edges[1:]], axis=1)

    def rectangle(self, top: int, left: int, bottom: int, right: int) -> Corners:
        """The patches of rows top to bottom and columns left to right, as the viewer counts."""
        down, across = self.edges(0), self.edges(1)
        corners = np.array([[across[left], down[top]], [across[right], down[bottom]]])
        (x0, x1), (y0, y1) = self.counted(corners).T
        return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)

    def counted(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points (n,2) as x and y of upright level 0, as the viewer counts them."""
        coordinates = np.array(points, dtype=np.float64)
        if self.origin == "slide":
            return coordinates
        turn = self._turn
        coordinates = self._flipped(coordinates)
        return (coordinates[:, ::-1] if turn.swaps else coordinates) - self._corner

    def upright(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points (n,2) that a viewer counted, as x and y of upright level 0."""
        coordinates = np.array(points, dtype=np.float64)
        if self.origin == "slide":
            return coordinates
        coordinates = coordinates + self._corner
        return self._flipped(coordinates[:, ::-1].copy() if self._turn.swaps else coordinates)

    def turned(self, values: NDArray[Any]) -> NDArray[Any]:
        """A picture (h,w) as the viewer shows it, upright."""
        return values if self.origin == "slide" else self._turn.turned(values[..., None])[..., 0]

    @property
    def _turn(self) -> Turn:
        return Turn(self.placement.orientation)

    @property
    def _corner(self) -> NDArray[np.float64]:
        return np.array((self.placement.bounds or (0, 0))[:2], dtype=np.float64)

    def _flipped(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        height, width = self.extent
        if self._turn.columns:
            points[:, 0] = width - points[:, 0]
        if self._turn.rows:
            points[:, 1] = height - points[:, 1]
        return points
