"""A bag laid over its slide: whether both are of one slide, and where its tiles lie."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from softless.bags.bag import Bag
from softless.data.notices import notice
from softless.errors import CoordinateError, DataError
from softless.slides.files import Levels
from softless.slides.lattice import Lattice, Origin
from softless.slides.pixels import Bytes
from softless.slides.reader import SAME, Placement, level0_resolution, pixels_of

FEW = 1e-3  # of a pixel, that rounding may move a place


@dataclass(frozen=True)
class Placed:
    """Where the tiles of a bag lie on a slide.

    Attributes:
        places: (N,2) x and y of their top left corners, in pixels of level 0.
        side: Of a tile, in pixels of level 0.
        step: From one tile to the next.
        lattice: Of the whole slide.
    """

    places: NDArray[np.float64]
    side: float
    step: float
    lattice: Lattice


def placed(bag: Bag, slide: Path, origin: Origin = "slide") -> Placed:
    """The tiles of a bag on its slide.

    Args:
        bag: The tiles, with their places in pixels of level 0.
        slide: The file of the slide, or an image.
        origin: How a viewer counts.

    Raises:
        DataError: the slide cannot be read, or the bag is empty.
        CoordinateError: places or sizes are not known, or are those of another slide.
    """
    called = bag.path or bag.slide
    if not len(bag):
        raise DataError(f"{called} has no tiles, so there is nothing to draw")
    if bag.coords_px0 is None or bag.tile_px0 is None:
        what = "where its tiles lie" if bag.coords_px0 is None else "how large a tile is"
        raise CoordinateError(
            f"{called} does not say {what} in pixels of level 0: give --unit, --tile and "
            "--slide-mpp, as docs/bags.md tells"
        )
    pixels = pixels_of(slide, 3, 0)
    try:
        size, mpp = pixels.size, level0_resolution(pixels, None, str(slide))
        bounds = pixels.bounds if isinstance(pixels, Levels) else None
        orientation = pixels.orientation if isinstance(pixels, Levels | Bytes) else 1
    finally:
        pixels.close()
    places, side = bag.coords_px0, bag.tile_px0
    _check_size(bag, slide, size, mpp)
    if bag.slide and bag.slide not in {slide.stem, slide.name}:
        notice(f"{called} is of the slide {bag.slide}, and it is drawn over {slide.name}")
    if mpp is None and bag.mpp0 is not None:
        mpp = (bag.mpp0, bag.mpp0)
    placement = Placement(mpp=mpp, bounds=bounds, orientation=orientation)
    lattice = Lattice((1, 1), size, size, placement, origin)
    overlap = 0.0 if not bag.overlap_um or not bag.mpp0 else bag.overlap_um / bag.mpp0
    return Placed(np.asarray(places), float(side), float(side - overlap), lattice)


def _check_size(
    bag: Bag, slide: Path, size: tuple[int, int], mpp: tuple[float, float] | None
) -> None:
    """Refuse a bag of another slide, or of another unit.

    Raises:
        CoordinateError: sizes, resolutions or places contradict each other.
    """
    called, (height, width) = bag.path or bag.slide, size
    stored = bag.frame.size
    if stored is not None and tuple(map(int, stored)) != (width, height):
        raise CoordinateError(
            f"{called} was cut from a slide of {stored[0]:g} x {stored[1]:g} pixels, and {slide} "
            f"has {width} x {height}: give the features of this slide"
        )
    if mpp is not None and bag.mpp0 is not None and abs(bag.mpp0 / mpp[1] - 1) > SAME:
        raise CoordinateError(
            f"{called} takes {bag.mpp0:.4g} micrometres for a pixel of level 0, and {slide} says "
            f"{mpp[1]:.4g}: give the features of this slide, or leave --slide-mpp out"
        )
    places = np.asarray(bag.coords_px0)
    (x, y), (x0, y0) = places.max(0), places.min(0)
    if min(x0, y0) < -FEW or x >= width or y >= height:
        raise CoordinateError(
            f"{called} has tiles from ({x0:g}, {y0:g}) to ({x:g}, {y:g}), and {slide} has {width} "
            f"x {height} pixels at level 0: its places are in another unit, or of another slide"
        )
