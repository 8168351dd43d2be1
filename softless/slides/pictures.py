"""A small picture of an image of any size, and the maps of a streamed answer over it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from softless.data.pictures import for_people
from softless.saliency import Saliency, figure
from softless.saliency.overlay import enlarge
from softless.slides.files import Choice
from softless.slides.pixels import Lost, Scaled
from softless.slides.reader import pixels_of
from softless.slides.stream import StreamResult

SIDE = 720  # pixels of a picture's longer side
REGION = 1024  # pixels of the image's own that are read at once, along a side
LOST = 200  # grey of what cannot be read


def thumbnail(
    image: str | Path, channels: int = 3, level: int = 0, side: int = SIDE, choice: Choice | None = None
) -> Image.Image:
    """The picture, its longer side of so many pixels at most, from the coarsest level that has them; read region by region.

    Raises:
        DataError: the file is no image that can be read.
    """
    pixels = pixels_of(image, channels, level, coarse=side, choice=choice)
    try:
        factor = max(1.0, max(pixels.size) / side)
        small = Scaled(pixels, (factor, factor))
        height, width = small.size
        step = max(1, int(REGION / factor))
        dtype = np.uint8 if choice is None or choice.scale is None else np.float32
        found, lost = np.empty((height, width, channels), dtype=dtype), list[Lost]()
        for top in range(0, height, step):
            for left in range(0, width, step):
                tall, wide = min(step, height - top), min(step, width - left)
                found[top : top + tall, left : left + wide] = small.read(top, left, tall, wide, lost)
        for one in lost:
            found[one.box[0] : one.box[2], one.box[1] : one.box[3]] = LOST if dtype == np.uint8 else LOST / 255
    finally:
        pixels.close()
    return for_people(found).convert("RGB")


def sheet(small: Image.Image, result: StreamResult, title: str = "") -> Image.Image:
    """The picture beside its maps, which end where the image ends and not where the last patches do."""
    assert result.saliency is not None
    return figure(
        small,
        fitted(result.saliency, result, small.size),
        title=title or result.saliency.caption,
        seen=result.size[::-1],
    )


def fitted(saliency: Saliency, result: StreamResult, size: tuple[int, int]) -> Saliency:
    """The maps at `size` = (width, height), without what the last patches have beyond the image."""
    down, across = (
        grid * patch / side for grid, patch, side in zip(result.grid, result.patch, result.size, strict=True)
    )
    whole = round(size[0] * across), round(size[1] * down)

    def fit(values: Tensor, *, signed: bool = False) -> Tensor:
        return torch.from_numpy(enlarge(values[0].numpy(), whole, signed=signed)[None, : size[1], : size[0]])

    row = saliency.class_row
    return replace(
        saliency,
        query=fit(saliency.query),
        key=fit(saliency.key),
        class_row=None if row is None else fit(row, signed=True),
        grid=(size[1], size[0]),
    )
