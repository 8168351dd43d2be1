"""A slide in small with the tiles that are taken of it."""

# n tiles

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from softless.histology.tiling import Tiling

VEIL = 0.6  # of white over what is not taken
LINE, LOST = (40, 90, 200), (210, 40, 40)
FINE = 5  # pixels of a tile's side, below which no lines are drawn


def sketch(
    picture: Image.Image, tiling: Tiling, taken: NDArray[np.int64], lost: NDArray[np.int64]
) -> Image.Image:
    """The picture with a veil over what is not taken, and the outlines of tiles.

    Args:
        picture: The whole image at any size.
        tiling: What a tile is.
        taken: x and y (n,2) of tiles in pixels of level 0.
        lost: The same of tiles that could not be read, which are crossed out.
    """
    scale = np.array([picture.width / tiling.size[1], picture.height / tiling.size[0]])
    inside = np.zeros((picture.height, picture.width), dtype=bool)
    boxes, crossed = (_boxes(places, tiling.tile_px0, scale) for places in (taken, lost))
    for x0, y0, x1, y1 in boxes:
        inside[y0:y1, x0:x1] = True
    bare = np.asarray(picture.convert("RGB"), dtype=np.float64)
    veiled = np.where(inside[..., None], bare, bare * (1 - VEIL) + 255 * VEIL)
    drawn = Image.fromarray(veiled.round().astype(np.uint8))
    draw = ImageDraw.Draw(drawn)
    if tiling.tile_px0 * scale.min() >= FINE:
        for x0, y0, x1, y1 in boxes:
            draw.rectangle((x0, y0, x1, y1), outline=LINE)
    for x0, y0, x1, y1 in crossed:
        draw.rectangle((x0, y0, x1, y1), outline=LOST)
        draw.line((x0, y0, x1, y1), fill=LOST)
        draw.line((x0, y1, x1, y0), fill=LOST)
    return drawn


def _boxes(
    places: NDArray[np.int64], side: int, scale: NDArray[np.float64]
) -> list[tuple[int, int, int, int]]:
    corners = np.concatenate([places * scale, (places + side) * scale], axis=1)
    return [(x0, y0, x1, y1) for x0, y0, x1, y1 in np.rint(corners).astype(int).tolist()]
