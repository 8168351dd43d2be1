"""Reading one image for training, measuring, predicting and checking: `images` reads 8-bit files, `deep` those with a declared range."""

from dataclasses import replace
from pathlib import Path

from softless.data import deep, images
from softless.data.images import Decoded
from softless.data.notices import notice
from softless.data.pictures import Picture, with_channels
from softless.data.ranges import Range

__all__ = ["Decoded", "decode", "read_image", "read_whole"]


def read_image(path: Path, channels: int = 3, scale: Range | None = None) -> Picture:
    """The upright image: 8-bit in mode "RGB" (3 channels) or "L" (1 channel), or with a range float32 (h, w, C) in 0..1.

    What a reader should know of it is a notice.

    Raises:
        BadImage: the file is unreadable, larger or smaller than the limits, or its values are not read.
    """
    decoded = decode(path, channels, scale)
    for remark in decoded.remarks:
        notice(f"{path}: {remark.text}")
    return decoded.image


def decode(
    path: Path,
    channels: int = 3,
    scale: Range | None = None,
    *,
    max_pixels: int | None = None,
    min_side: int | None = None,
) -> Decoded:
    """`read_image` with its remarks returned instead of said.

    Args:
        path: the file.
        channels: 1 or 3.
        scale: the declared range; without it 8-bit images alone are read.
        max_pixels: refuse more, from the header; SOFTLESS_MAX_PIXELS by default.
        min_side: refuse a shorter side below this; SOFTLESS_MIN_SIDE by default.
    """
    if scale is None:
        return images.decode(path, channels, max_pixels=max_pixels, min_side=min_side)
    stored = images.decode(path, channels, max_pixels=max_pixels, min_side=min_side, judge=deep.judged)
    return _within(stored, path, channels, scale)


def _within(stored: Decoded, path: Path, channels: int, scale: Range) -> Decoded:
    """Stored numbers in their range, with how many lie outside."""
    pixels = with_channels(deep.in_range(stored.image, path, scale), channels)
    return replace(stored, image=pixels, outside=scale.outside(stored.image.values))


def read_whole(
    path: Path,
    channels: int = 3,
    scale: Range | None = None,
    *,
    max_pixels: int | None = None,
    min_side: int | None = None,
) -> Decoded:
    """`decode`, and for a PNG its checksums too: what finds every damage that can be found.

    Raises:
        BadImage: the file cannot be used.
    """
    decoded = decode(path, channels, scale, max_pixels=max_pixels, min_side=min_side)
    if decoded.format == "PNG":
        images.verify(path)
    return decoded
