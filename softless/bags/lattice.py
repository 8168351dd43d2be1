"""Whether coordinates stand as far apart as tiles of a size must.

Tools lay tiles on a lattice whose step is the side of a tile less the overlap. So a wrong unit is
seen in the distances of neighbours, whatever the tissue leaves out.
"""

from dataclasses import dataclass

import numpy as np

from softless.bags.units import Frame
from softless.errors import CoordinateError

ROUND = 2  # decimals to which coordinates of one row are equal
FEW = 4  # gaps; from fewer nothing follows
REACH = 8.5  # steps: rounding adds up over longer gaps
PIXEL, SHARE, MOST = 1.0, 0.004, 0.1  # by how much a gap of so many steps may miss
FITTING = 0.7  # of the gaps: contours of one slide may have lattices of their own
WITHIN = 0.2  # of the gaps must be short
PARTS = 12  # of the usual gap that are tried
COARSE, COARSER = 0.98, 8  # share of gaps that a multiple of the step explains, and which
SURE = 8  # gaps, from which a multiple is no chance


@dataclass(frozen=True)
class Spacing:
    """The gaps between neighbours of a row or a column, above 0."""

    gaps: np.ndarray

    @classmethod
    def of(cls, coords: np.ndarray) -> "Spacing":
        """From (N, 2) corners."""
        rounded = np.round(coords, ROUND)
        pieces = []
        for along, across in ((0, 1), (1, 0)):
            order = np.lexsort((rounded[:, along], rounded[:, across]))
            line, position = rounded[order, across], rounded[order, along]
            pieces.append(np.diff(position)[np.diff(line) == 0])
        gaps = np.concatenate(pieces)
        return cls(gaps[gaps > 0])

    @property
    def usual(self) -> float:
        """The gap that occurs most, the smaller of equals."""
        values, counts = np.unique(np.round(self.gaps, ROUND), return_counts=True)
        return float(values[counts.argmax()])

    @property
    def step(self) -> float | None:
        """The step of the lattice that the gaps show: the usual gap, or a whole part of it where
        few tiles have a neighbour. None where they lie on no lattice.
        """
        near = self.gaps[self.gaps <= REACH * self.usual]
        if len(near) < max(FEW, WITHIN * len(self.gaps)):
            return None
        steps = (self.usual / part for part in range(1, PARTS + 1))
        return next((step for step in steps if _fitting(near, step) >= FITTING), None)

    def contradicts(self, step: float) -> float | None:
        """The usual gap, where a lattice of this step cannot be; None where it can."""
        if len(self.gaps) < FEW:
            return None
        short = self.gaps[self.gaps <= REACH * step]
        if len(short) < max(1, WITHIN * len(self.gaps)) or _fitting(short, step) < FITTING:
            return self.step
        if len(short) >= SURE:
            for multiple in range(COARSER, 1, -1):
                if _fitting(short, multiple * step, slack=step) >= COARSE:
                    return self.step
        return None


def _fitting(gaps: np.ndarray, step: float, slack: float | None = None) -> float:
    """The share of gaps that are whole steps."""
    steps = np.maximum(np.round(gaps / step), 1)
    allowed = np.minimum(PIXEL + SHARE * steps * step, MOST * (slack or step))
    return float((np.abs(gaps - steps * step) <= allowed).mean())


def check_lattice(coords: np.ndarray, frame: Frame, name: str) -> None:
    """Coordinates (N, 2), as stored, against the size of a tile.

    Raises:
        CoordinateError: they contradict each other; both numbers are named.
    """
    if not np.isfinite(coords).all():
        row = int(np.flatnonzero(~np.isfinite(coords).all(1))[0])
        raise CoordinateError(
            f"{name}: the coordinates of tile {row} are not finite: make its coordinates again"
        )
    if len(coords) > 1 and (coords == coords[0]).all():
        raise CoordinateError(
            f"{name}: all {len(coords):,} tiles stand at ({coords[0, 0]:g}, {coords[0, 1]:g}): "
            "make its coordinates again"
        )
    _check_size(coords, frame, name)
    if frame.tile is None:
        return
    step = frame.tile - (frame.overlap or 0.0)
    spacing = Spacing.of(coords).contradicts(step)
    if spacing is None:
        return
    overlap = f", which overlap by {frame.overlap:g}" if frame.overlap else ""
    raise CoordinateError(
        f"{name}: neighbouring tiles stand {spacing:g} apart, and tiles of {frame.tile:g} "
        f"{frame.unit}{overlap} stand {step:g} apart: one of the two is in another unit; give the "
        "right unit=, tile= or overlap="
    )


def _check_size(coords: np.ndarray, frame: Frame, name: str) -> None:
    """No corner lies beyond the slide."""
    if frame.size is None or frame.px0 is None or not len(coords):
        return
    far = coords.max(0) * frame.px0
    if (far >= frame.size).any():
        raise CoordinateError(
            f"{name}: a tile begins at ({far[0]:g}, {far[1]:g}), and level 0 has "
            f"{frame.size[0]:g} x {frame.size[1]:g} pixels: the coordinates are of another level, "
            "slide or order"
        )
