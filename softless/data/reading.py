"""Reading one image for training, measuring, predicting and checking: `images` reads 8-bit files,
`deep` those with a declared range, `dicom` DICOM.
"""

from dataclasses import replace
from pathlib import Path

from softless.data import deep, dicom, images
from softless.data.images import Decoded
from softless.data.notices import notice
from softless.data.pictures import Picture, with_channels
from softless.errors import UsageError
from softless.experiment.ranges import Range

__all__ = ["Decoded", "decode", "is_image", "read_image", "read_whole"]


def is_image(path: Path) -> bool:
    """Whether a file is taken for an image: by its ending, or a DICOM file without one by how it
    begins.
    """
    return path.suffix.lower() in images.IMAGE_TYPES or dicom.is_dicom(path)


def read_image(
    path: Path, channels: int = 3, scale: Range | None = None, *, page: int = 0
) -> Picture:
    """The upright image: 8-bit in mode "RGB" (3 channels) or "L" (1 channel), or with a range
    float32 (h, w, C) in 0..1.

    What a reader should know of it is a notice.

    Raises:
        BadImage: the file is unreadable, larger or smaller than the limits, or its values are not
            read.
    """
    decoded = decode(path, channels, scale, page=page)
    for remark in decoded.remarks:
        notice(f"{path}: {remark.text}")
    return decoded.image


def decode(
    path: Path,
    channels: int = 3,
    scale: Range | None = None,
    *,
    page: int = 0,
    max_pixels: int | None = None,
    min_side: int | None = None,
) -> Decoded:
    """`read_image` with its remarks returned instead of said.

    Args:
        path: the file.
        channels: 1 or 3.
        scale: the declared range; without it 8-bit images alone are read, and DICOM by its own
            window. With it the image is float32 (h, w, channels) in 0..1.
        page: which frame of a DICOM file.
        max_pixels: refuse more, from the header; SOFTLESS_MAX_PIXELS by default.
        min_side: refuse a shorter side below this; SOFTLESS_MIN_SIDE by default.

    Raises:
        BadImage: as `read_image`.
        UsageError: a page of a file that is no DICOM, or that has no such page.
    """
    if dicom.is_dicom(path):
        return dicom.decode(
            path, channels, scale, page=page, max_pixels=max_pixels, min_side=min_side
        )
    if page:
        raise UsageError(
            f"page={page}: of {path} the first picture is read, and no other; only DICOM files "
            "have pages here"
        )
    if scale is None:
        return images.decode(path, channels, max_pixels=max_pixels, min_side=min_side)
    stored = images.decode(
        path, channels, max_pixels=max_pixels, min_side=min_side, judge=deep.NUMBERS
    )
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
    page: int = 0,
    max_pixels: int | None = None,
    min_side: int | None = None,
) -> Decoded:
    """`decode`, and for a PNG its checksums too: what finds every damage that can be found.

    Raises:
        BadImage: the file cannot be used.
    """
    decoded = decode(path, channels, scale, page=page, max_pixels=max_pixels, min_side=min_side)
    if decoded.format == "PNG":
        images.verify(path)
    return decoded
