"""The numbers that an image file stores, whatever their width: 8, 12 and 16 bits, signed ones, 32
bits and floating point.

Pillow clips, cuts or stretches some of these on the way, so each kind is taken where its numbers
are whole, and refused by name where none gives them.
"""

import re
import sys
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from softless.data.images import (
    DEEP,
    FORMATS,
    SAMPLE_FORMAT,
    SIGNED,
    BadImage,
    Judge,
    bad_image,
    convert,
    heard,
    without_texts,
)
from softless.experiment.ranges import FIELD, Range

PHOTOMETRIC, BITS = 262, 258  # TIFF tags
WHITE_IS_ZERO = 0
# raw modes of 16-bit colours, and the order of their bytes
COLOURS = re.compile(r"(?P<mode>RGBA?);16(?P<order>[LBN])")


class Stored(NamedTuple):
    """Numbers (h, w, 1 or 3) as they are stored, and whether they are those of an 8-bit picture."""

    values: np.ndarray
    bytes: bool = False

    def transpose(self, turn: Image.Transpose) -> "Stored":
        """Turned as `Image.transpose` turns a picture: (h, w, C) to the same, or to (w, h, C)."""
        return self._replace(values=turned(self.values, turn))


Take = Callable[[Image.Image], Stored]  # from an image once it is loaded


def judged(image: Image.Image, path: Path) -> Take:
    """What takes the numbers (h, w, 1 or 3) of an opened image once it is loaded.

    Raises:
        BadImage: numbers that nothing here gives whole.
    """
    # how the decoder will read the file: (codec, extents, offset, args)
    tiles = getattr(image, "tile", ())
    args = tiles[0][3] if tiles else ""
    if image.format == "PNG" and str(args) == "LA;16B":
        return lambda _: Stored(_grey_with_alpha(path))
    if image.format == "PNG" and DEEP.search(str(args)) and image.mode in {"RGB", "RGBA"}:
        mode = image.mode
        return lambda _: Stored(_colours(without_texts(path), mode, "B"))
    if image.format == "PPM":
        return _ppm(image, path, args)
    if image.format == "TIFF":
        return _tiff(image, path, args)
    return lambda loaded: _plain(loaded, path)


def of_tiles(values: np.ndarray) -> Stored:
    """Numbers (h, w, 1 or 3) that were read tile by tile."""
    return Stored(values, bytes=values.dtype == np.uint8)


NUMBERS = Judge(judged, of_tiles)


def _plain(image: Image.Image, path: Path) -> Stored:
    """8-bit pixels, or the one channel of what Pillow holds wider."""
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        return Stored(np.asarray(image)[..., None])
    mode = "L" if image.mode in {"1", "L", "LA"} else "RGB"
    pixels = np.asarray(convert(image, path, mode))
    return Stored(pixels[..., None] if pixels.ndim == 2 else pixels, bytes=True)


def _colours(file: Path | BytesIO, mode: str, order: str) -> np.ndarray:
    """Colours of 16 bits.

    Pillow keeps the byte of each number that it takes for the high one: asked for both, it gives
    both.
    """
    first, second = (_bytes_of(file, mode, f"{mode};16{byte_order}") for byte_order in "BL")
    high, low = (first, second) if order == "B" else (second, first)
    return high.astype(np.uint16) << 8 | low


def _bytes_of(file: Path | BytesIO, mode: str, raw: str) -> np.ndarray:
    """(h, w, 3) bytes of a file decoded with another of Pillow's raw modes; alpha is dropped."""
    with heard([]), Image.open(file, formats=FORMATS) as image:
        image._mode = mode
        image.tile = [tile._replace(args=_with_raw(tile.args, raw)) for tile in image.tile]
        image.load()
        pixels: np.ndarray = np.asarray(image)[..., :3]
        return pixels


def _with_raw(args: Any, raw: str) -> Any:
    return (raw, *args[1:]) if isinstance(args, tuple) else raw


def _grey_with_alpha(path: Path) -> np.ndarray:
    """Grey of 16 bits: its two bytes and those of alpha are the four of a pixel."""
    pixels = _bytes_of(without_texts(path), "RGBA", "RGBA").astype(np.uint16)
    return (pixels[..., 0] << 8 | pixels[..., 1])[..., None]


def _ppm(image: Image.Image, path: Path, args: Any) -> Take:
    """Pillow stretches values up to `maximum` to 255, or of grey above a byte to 65,535: that is
    undone without loss.
    """
    maximum = (
        args[1] if isinstance(args, tuple) and len(args) > 1 and isinstance(args[1], int) else 255
    )
    if image.mode == "RGB" and maximum > 255:
        raise _refused(
            path, "16-bit colours in a PPM file", "save it as PNG or TIFF of one channel, or as npz"
        )
    if image.mode in {"L", "RGB"} and maximum < 255:
        return lambda loaded: Stored(
            np.rint(_plain(loaded, path).values * (maximum / 255)), bytes=True
        )
    if image.mode == "I" and 255 < maximum < 65535:
        return lambda loaded: Stored(np.rint(_plain(loaded, path).values * (maximum / 65535)))
    return lambda loaded: _plain(loaded, path)


def _tiff(image: Image.Image, path: Path, args: Any) -> Take:
    tags: Any = image.tag_v2  # type: ignore[attr-defined]  # TIFF's class has it
    signed = SIGNED in tags.get(SAMPLE_FORMAT, ())
    deep_mode = image.mode in {"I", "F"} or image.mode.startswith("I;16")
    if not signed and (
        deep := COLOURS.fullmatch(str(args[0] if isinstance(args, tuple) else args))
    ):
        order = (
            "B"
            if deep["order"] == "B" or (deep["order"] == "N" and sys.byteorder == "big")
            else "L"
        )
        return lambda _: Stored(_colours(path, deep["mode"], order))
    if DEEP.search(str(args)) and not deep_mode:
        raise _refused(
            path,
            f"16-bit colours of mode {image.mode} in a TIFF file",
            "save it as RGB, as PNG, or as npz",
        )
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO and (deep_mode or signed):
        raise _refused(path, "more than 8 bits in which 0 is white", "save it with 0 as black")
    if signed and image.mode == "L":
        return lambda loaded: Stored(np.asarray(loaded).view(np.int8)[..., None])
    if signed and not deep_mode:
        raise _refused(
            path, f"signed pixels of mode {image.mode}", "save it as TIFF of one channel, or as npz"
        )
    if image.mode == "I" and not signed and max(tags.get(BITS, (16,))) == 32:
        # Pillow's mode is signed
        return lambda loaded: Stored(np.asarray(loaded).view(np.uint32)[..., None])
    return lambda loaded: _plain(loaded, path)


def _refused(path: Path, holds: str, way: str) -> BadImage:
    return bad_image(
        path, "pixel format", f"{holds}, whose values are not read whole: {way}", f"{path} holds "
    )


def in_range(stored: Stored, path: Path, scale: Range) -> np.ndarray:
    """Stored numbers as float32 (h, w, C) in 0..1.

    Raises:
        BadImage: NaN or infinity, or bytes under a range that reaches beyond them.
    """
    if stored.bytes and scale.beyond_bytes:
        raise bad_image(
            path,
            "pixel format",
            f"8-bit pixels, which lie in 0..255, and {scale} reaches beyond: leave it out, or "
            "declare the range that its pixels have",
            f"{path} holds ",
        )
    if stored.values.dtype.kind == "f" and (wrong := int((~np.isfinite(stored.values)).sum())):
        raise bad_image(
            path,
            "not finite",
            f"floating-point pixels, {wrong} of them NaN or infinite: those have no place in "
            f"{FIELD}; mend them",
            f"{path} holds ",
        )
    return scale.applied(stored.values)


def turned(pixels: np.ndarray, turn: Image.Transpose) -> np.ndarray:
    """An array (h, w, C) as `Image.transpose` turns a picture: the same shape, or (w, h, C)."""
    turns: Mapping[Image.Transpose, Callable[[np.ndarray], np.ndarray]] = {
        Image.Transpose.FLIP_LEFT_RIGHT: lambda array: array[:, ::-1],
        Image.Transpose.FLIP_TOP_BOTTOM: lambda array: array[::-1],
        Image.Transpose.ROTATE_90: np.rot90,
        Image.Transpose.ROTATE_180: lambda array: array[::-1, ::-1],
        Image.Transpose.ROTATE_270: lambda array: np.rot90(array, 3),
        Image.Transpose.TRANSPOSE: lambda array: array.swapaxes(0, 1),
        Image.Transpose.TRANSVERSE: lambda array: array[::-1, ::-1].swapaxes(0, 1),
    }
    return np.ascontiguousarray(turns[turn](pixels))
