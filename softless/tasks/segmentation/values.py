"""The values of one label image, whatever holds them: a picture of any kind, or an array that numpy
wrote.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from softless.data.arrays import NOT_AN_NPZ, why_no_npz
from softless.data.dicom import ENDINGS
from softless.data.images import (
    FORMATS,
    IMAGE_TYPES,
    MAX_PIXELS,
    BadImage,
    bad_image,
    decode,
    limit,
    verify,
)
from softless.tasks.segmentation.names import CLASSES

ARRAYS = frozenset({".npy", ".npz"})  # endings of label images that numpy wrote
WAY = (
    f'name the colours in {CLASSES} as "#ff0000", or write the class of each pixel as 8-bit '
    "grey PNG"
)


def is_label(path: Path) -> bool:
    """Whether a file is taken for a label image, by its ending."""
    return path.suffix.lower() in IMAGE_TYPES | ARRAYS


def read_values(path: Path, colours: Mapping[int, int] | None = None) -> np.ndarray:
    """The values (h, w) of a label image, uint8.

    Of a palette image the indices, of a 1-bit mask and an array of true and false 0 and 1, of grey
    stored as colour the grey.

    Args:
        path: an image, or a numpy file (.npy, or .npz with one array) of true and false or of whole
            numbers in 0..255.
        colours: red << 16 | green << 8 | blue -> value, where colours stand for values.

    Raises:
        BadImage: unreadable, or no image of one 8-bit value per pixel.
    """
    if path.suffix.lower() in ARRAYS:
        return _array(path)
    if path.suffix.lower() in ENDINGS:
        raise _no_label(path, "a DICOM image", "write the class of each pixel as 8-bit grey PNG")
    try:
        decode(path, 1)  # refuses what no image file may be
    except BadImage as error:
        if error.kind == "pixel format":
            raise _no_label(
                path, "more than 8 bits per pixel", "write the same values as 8-bit grey PNG"
            ) from error
        raise
    # by name Pillow maps some, see `images`
    with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
        if colours is not None:
            return _values_of_colours(
                path, np.asarray(image.convert("RGB")).astype(np.int64), colours
            )
        if image.mode in {"RGB", "RGBA", "LA"}:
            pixels = np.asarray(image.convert("RGB"))
            if (pixels == pixels[..., :1]).all():  # as painting programs save black and white
                return pixels[..., 0].copy()
        if image.mode not in {"L", "P", "1"}:
            raise _no_label(path, f"colours (mode {image.mode})", WAY)
        return np.asarray(image).astype(np.uint8)


def read_whole_values(path: Path, colours: Mapping[int, int] | None = None) -> np.ndarray:
    """`read_values`, (h, w) uint8, held against the file's checksums.

    Raises:
        BadImage: unreadable or damaged, or no image of one 8-bit value per pixel.
    """
    values = read_values(path, colours)
    # zip archives are held against theirs while they are read
    if path.suffix.lower() not in ARRAYS:
        verify(path)
    return values


def _array(path: Path) -> np.ndarray:
    try:
        values = _stored(path)
    except FileNotFoundError as error:
        raise bad_image(path, "missing", "no such file") from error
    except NOT_AN_NPZ as error:
        raise bad_image(
            path, "damaged", f"it is no numpy file of plain arrays: {why_no_npz(path, error)}"
        ) from error
    flat = values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values
    if flat.ndim != 2 or not flat.size:
        raise _no_label(path, f"an array of shape {values.shape}", "write (height, width)")
    if flat.dtype.kind not in "biu":
        raise _no_label(
            path, f"an array of {flat.dtype}", "write whole numbers in 0..255, or true and false"
        )
    low, high = int(flat.min()), int(flat.max())
    if low < 0 or high > 255:
        raise _no_label(path, f"the values {low} to {high}", "write whole numbers in 0..255")
    return flat.astype(np.uint8)


def _stored(path: Path) -> np.ndarray:
    """The one array of a file; its header is read first, so that one that claims too much is not
    served.
    """
    with path.open("rb") as file:
        if path.suffix.lower() == ".npy":
            return _plain(path, file)
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if len(names) != 1:
                array_names = ", ".join(name.removesuffix(".npy") for name in names[:10]) or "none"
                raise _no_label(
                    path, f"{len(names)} arrays ({array_names})", "write a file of one array"
                )
            with archive.open(names[0]) as member:
                return _plain(path, member)


def _plain(path: Path, file: IO[bytes]) -> np.ndarray:
    version = np.lib.format.read_magic(file)
    header = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, columns_first, dtype = header(file)
    allowed = limit("SOFTLESS_MAX_PIXELS", MAX_PIXELS)
    count = int(np.prod(shape, dtype=object))
    if count > allowed:
        raise bad_image(
            path,
            "too many pixels",
            f"its header says {count} values, and at most {allowed} are read",
        )
    if dtype.hasobject:
        raise _no_label(
            path, "an array of objects", "write whole numbers in 0..255, or true and false"
        )
    content = file.read(count * dtype.itemsize)
    if len(content) < count * dtype.itemsize:
        raise bad_image(path, "damaged", "it is cut off; replace or remove the file")
    if file.read(1):  # and at the end a zip archive is held against its checksum
        raise bad_image(
            path, "damaged", "it holds more than its header says; replace or remove the file"
        )
    return np.frombuffer(content, dtype).reshape(shape, order="F" if columns_first else "C")


def _values_of_colours(path: Path, pixels: np.ndarray, colours: Mapping[int, int]) -> np.ndarray:
    """(h, w, 3) colours as the values (h, w) that stand for them."""
    packed = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    palette = sorted(colours)
    places = np.searchsorted(palette, packed).clip(max=len(palette) - 1)
    unnamed = np.asarray(palette)[places] != packed
    if unnamed.any():
        strange, counts = np.unique(packed[unnamed], return_counts=True)
        examples = ", ".join(
            f"#{colour:06x} ({count:,} pixels)"
            for colour, count in zip(strange[:10], counts, strict=False)
        )
        raise _no_label(
            path,
            f"colours that {CLASSES} does not name: {examples}",
            "name them, or save label images without compression losses",
        )
    return np.array([colours[colour] for colour in palette], dtype=np.uint8)[places]


def _no_label(path: Path, holds: str, way: str) -> BadImage:
    reason = f"{holds}, and the value of a label image's pixel is its class: {way}"
    return bad_image(path, "pixel format", reason, f"{path} holds ")
