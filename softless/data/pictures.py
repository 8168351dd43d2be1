"""One image in memory, in the forms that transforms take.

A PIL image (mode "L" or "RGB") of 8 bits; an array (h, w, C) of bytes where the channels are
neither one nor three; and an array (h, w, C) of float32 in 0..1 where a range was declared
(`data.range`): it is never rounded to 8 bits.
"""

from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as F

Picture: TypeAlias = Any
GREY = np.array([299, 587, 114]) / 1000  # ITU-R 601, as Pillow turns colour to grey


def size_of(picture: Picture) -> tuple[int, int]:
    """Width and height in pixels, of a PIL image or of an array (h, w, C)."""
    if isinstance(picture, np.ndarray):
        return picture.shape[1], picture.shape[0]
    width, height = picture.size
    return width, height


def tensor_of(picture: Picture) -> Tensor:
    """(C, h, w), bytes or float32 as the picture is."""
    pixels = np.asarray(picture)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def resized(picture: Picture, width: int, height: int) -> Picture:
    """The picture at another size in pixels, by cubic interpolation; an array (h, w, C) becomes
    (height, width, C).
    """
    if not isinstance(picture, np.ndarray):
        return picture.resize((width, height), Image.Resampling.BICUBIC)
    moved = F.resize(
        tensor_of(picture), [height, width], F.InterpolationMode.BICUBIC, antialias=True
    )
    return moved.permute(1, 2, 0).numpy()


def scaled(tensor: Tensor) -> Tensor:
    """A new float tensor in 0..1 of the same shape, of bytes or of what is in 0..1 already."""
    return tensor.float().div_(255) if tensor.dtype == torch.uint8 else tensor.clone()


def unit(picture: Picture) -> np.ndarray:
    """(h, w) or (h, w, C) float64 in 0..1."""
    pixels = np.asarray(picture)
    return pixels / 255 if pixels.dtype == np.uint8 else pixels.astype(np.float64)


def with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Pixels (h, w, 1 or 3) as (h, w, channels), 1 or 3: grey is repeated, colour is weighted."""
    if pixels.shape[-1] == channels:
        return pixels
    if pixels.shape[-1] == 1:
        return pixels.repeat(channels, -1)
    return (pixels @ GREY)[..., None].astype(pixels.dtype)


def for_people(picture: Picture) -> Image.Image:
    """The picture in 8 bits, to be looked at; of an array (h, w, C) grey where C is 1, else its
    first three channels.
    """
    if not isinstance(picture, np.ndarray):
        image: Image.Image = picture
        return image
    pixels = in_bytes(picture)
    return Image.fromarray(
        np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels[..., :3])
    )


def in_bytes(pixels: np.ndarray) -> np.ndarray:
    """Pixels of bytes, or of float32 in 0..1, as bytes of the same shape, such as (h, w, C)."""
    return (
        pixels if pixels.dtype == np.uint8 else np.rint(255 * pixels).clip(0, 255).astype(np.uint8)
    )
