"""A map laid over its image."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor

from softless.saliency.colours import colourise


def enlarge(
    values: ArrayLike, size: tuple[int, int], *, signed: bool = False, smooth: bool = True
) -> np.ndarray:
    """The map (h, w) at `size` = (width, height), clipped to its range: bicubic (which overshoots
    at edges), or its own cells where not `smooth`.
    """
    # a float array becomes PIL's mode "F"
    small = Image.fromarray(np.asarray(values, dtype=np.float32))
    large = np.asarray(
        small.resize(size, Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST)
    )
    return np.clip(large, -1.0 if signed else 0.0, 1.0)


def overlay(
    image: Image.Image,
    values: ArrayLike,
    *,
    signed: bool = False,
    smooth: bool = True,
    strength: float = 0.7,
) -> Image.Image:
    """The picture with the map over it: up-sampled bicubically or in its own cells, opaque where it
    is large, so that the image stays readable.

    Args:
        image: any PIL image; the result has its size and mode RGB.
        values: (h, w) in 0..1, or in -1..1 with `signed`.
        smooth: whether the map may look finer than it is; otherwise each of its cells has one
            colour.
        strength: how much more opaque the largest signed value is than none.
    """
    large = enlarge(values, image.size, signed=signed, smooth=smooth)
    # colour belongs to the map alone
    grey = np.asarray(image.convert("L"), dtype=np.float64)[..., None]
    opacity = (0.15 + strength * np.abs(large) if signed else 0.32 + 0.45 * large)[..., None]
    blended = grey * (1 - opacity) + colourise(large, signed=signed) * opacity
    return Image.fromarray(blended.round().astype(np.uint8))


def picture(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """A model's input (C, H, W) back as a picture: scaling undone; three channels in colour, any
    other number as their mean.
    """
    pixels = image.detach().cpu().double().numpy()
    pixels = pixels * np.reshape(std, (-1, 1, 1)) + np.reshape(mean, (-1, 1, 1))
    bytes_HWC = (np.clip(pixels, 0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    if bytes_HWC.shape[-1] == 3:
        return Image.fromarray(bytes_HWC)
    return Image.fromarray(bytes_HWC.mean(-1).round().astype(np.uint8)).convert("RGB")
