"""Which tiles of a slide count, and the region that says so."""

# h x w tiles

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softless.errors import UsageError, need
from softless.histology.regions import region_of_mask
from softless.histology.tiling import Tiling
from softless.slides.files import Choice
from softless.slides.lattice import Origin
from softless.slides.masks import (
    HALF,
    Mask,
    is_outlines,
    mask_file,
    mask_of,
    picture_of,
    region_of,
    shares,
)
from softless.slides.tissue import tissue_picture

OTSU, WHOLE = "otsu", "none"


@dataclass(frozen=True)
class Counted:
    """Tiles that count.

    Attributes:
        tiles: (h,w), at least half of each lies in the region and inside the image.
        region: A geometry of shapely, in upright pixels of level 0.
    """

    tiles: Mask
    region: Any


def counted(
    image: str | Path,
    tiling: Tiling,
    tissue: str | Path = WHOLE,
    origin: Origin = "slide",
    choice: Choice | None = None,
) -> Counted:
    """The tiles of an image that count.

    Args:
        image: Its file.
        tiling: Its tiles.
        tissue: "otsu" is what is stained, "none" all of it; or the file of a mask (PNG or GeoJSON).
        origin: Who counts the pixels of a mask.
        choice: What was chosen of a file that holds several things.

    Raises:
        DataError: a mask that cannot be read or leaves no tile; an image that is grey, where tissue
            is looked for.
        MissingExtra: what finds tissue or reads polygons is not installed.
    """
    need("shapely")
    import shapely

    inside, lattice = tiling.inside() >= HALF, tiling.lattice(origin)
    height, width = tiling.size
    if tissue == WHOLE:
        return Counted(inside, shapely.box(0, 0, width, height))
    if tissue == OTSU:
        stained = tissue_picture(image, lattice, choice)
        return _of_picture(stained, tiling, (0.0, 0.0, float(width), float(height)))
    file = mask_file(tissue)
    tiles = mask_of(file, lattice) & inside
    if is_outlines(file):
        return Counted(tiles, region_of(file, lattice))
    return Counted(tiles, _of_picture(picture_of(file, lattice), tiling, lattice.shown).region)


def _of_picture(
    picture: NDArray[np.bool_], tiling: Tiling, shown: tuple[float, float, float, float]
) -> Counted:
    """Of a picture of these corners x0, y0, x1, y1 of level 0."""
    x0, y0, x1, y1 = shown
    scale = (y1 - y0) / picture.shape[0], (x1 - x0) / picture.shape[1]
    rows, columns = (
        (tiling.lattice().spans(axis) - corner) / side
        for axis, corner, side in zip((0, 1), (y0, x0), scale, strict=True)
    )
    tiles = (shares(picture, rows, columns) >= HALF) & (tiling.inside() >= HALF)
    return Counted(tiles, region_of_mask(picture, scale, (y0, x0)))


def check_tissue(tissue: str | Path) -> str | Path:
    """What `--tissue` may be: otsu, none, or a file of a mask.

    Raises:
        UsageError: none of these.
    """
    if tissue in {OTSU, WHOLE}:
        return tissue
    if not Path(tissue).suffix:
        raise UsageError(
            f"--tissue {tissue}: give otsu (what is stained), none (all of it), or a file (PNG or "
            "GeoJSON)"
        )
    return mask_file(tissue)
