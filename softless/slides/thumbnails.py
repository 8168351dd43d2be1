"""A small picture of an image of any size."""

# C channels, h x w pixels

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from softless.data.pictures import for_people, in_bytes
from softless.slides.files import Choice
from softless.slides.pixels import Lost, Scaled
from softless.slides.reader import pixels_of

SIDE = 720  # pixels of a picture's longer side
LARGE = 2048  # pixels of one that maps are laid over
REGION = 1024  # pixels of the image's own that are read at once, along a side
LOST = 200  # grey of what cannot be read


def thumbnail(
    image: Any, channels: int = 3, level: int = 0, side: int = SIDE, choice: Choice | None = None
) -> Image.Image:
    """The picture, its longer side of so many pixels at most, from the coarsest level that has
    them; read region by region.

    Args:
        image: A path, a PIL image or bytes (H,W,C).
        channels: 1 or 3.
        level: Of a slide, the finest that is looked at.
        side: Pixels of the longer side.
        choice: What was chosen of a file that holds several things.

    Raises:
        DataError: the file is no image that can be read.
    """
    picture, lost = small_picture(image, channels, level, side, choice)
    picture[lost] = LOST
    return for_people(picture).convert("RGB")


def small_picture(
    image: Any, channels: int = 3, level: int = 0, side: int = SIDE, choice: Choice | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The bytes (h,w,C) of `thumbnail`, and which of its pixels (h,w) cannot be read."""
    pixels = pixels_of(image, channels, level, coarse=side, choice=choice)
    try:
        factor = max(1.0, max(pixels.size) / side)
        small = Scaled(pixels, (factor, factor))
        height, width = small.size
        step = max(1, int(REGION / factor))
        picture, lost = np.empty((height, width, channels), dtype=np.uint8), list[Lost]()
        for top in range(0, height, step):
            for left in range(0, width, step):
                region_height, region_width = min(step, height - top), min(step, width - left)
                picture[top : top + region_height, left : left + region_width] = in_bytes(
                    small.read(top, left, region_height, region_width, lost)
                )
    finally:
        pixels.close()
    dark = np.zeros((height, width), dtype=bool)
    for tile in lost:
        dark[tile.box[0] : tile.box[2], tile.box[1] : tile.box[3]] = True
    return picture, dark
