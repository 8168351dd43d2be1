"""The maps of a streamed answer, as large as the image's picture."""

from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from softless.saliency.figure import figure
from softless.saliency.overlay import enlarge
from softless.saliency.saliency import Saliency
from softless.slides.stream import StreamResult


def sheet(small: Image.Image, result: StreamResult, title: str = "") -> Image.Image:
    """The picture beside its maps, which end where the image ends and not where the last patches
    do.
    """
    assert result.saliency is not None
    return figure(
        small,
        fitted(result.saliency, result, small.size),
        title=title or result.saliency.caption,
        seen_size=result.size[::-1],
    )


def fitted(saliency: Saliency, result: StreamResult, size: tuple[int, int]) -> Saliency:
    """The maps at `size` = (width, height), without what the last patches have beyond the image."""
    down, across = (
        grid * patch / side
        for grid, patch, side in zip(result.grid, result.patch, result.size, strict=True)
    )
    full_size = round(size[0] * across), round(size[1] * down)

    def fit(values: Tensor, *, signed: bool = False) -> Tensor:
        return torch.from_numpy(
            enlarge(values[0].numpy(), full_size, signed=signed)[None, : size[1], : size[0]]
        )

    row = saliency.class_row
    return replace(
        saliency,
        query=fit(saliency.query),
        key=fit(saliency.key),
        class_row=None if row is None else fit(row, signed=True),
        grid=(size[1], size[0]),
    )
