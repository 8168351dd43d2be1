"""Reading one image file: every failure names the file, and no pixel value is changed in silence."""

import struct
import zlib
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from PIL.Image import Transpose

from softless.data.notices import notice
from softless.errors import DataError

IMAGE_TYPES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
MODES = {1: "L", 3: "RGB"}  # what Pillow calls an 8-bit image of so many channels

# What Pillow's decoders are seen to raise on damaged files; anything else is a bug and keeps its traceback.
_DAMAGED = (
    OSError,
    UnidentifiedImageError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_TURNS = {  # EXIF orientation -> what makes the picture upright
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def read_image(path: Path, channels: int = 3) -> Image.Image:
    """The upright image in mode "RGB" (3 channels) or "L" (1 channel).

    EXIF orientation is applied. Palettes are expanded, an alpha channel is dropped (transparent pixels keep their
    stored colour), CMYK becomes RGB, colour becomes grey by Pillow's ITU-R 601 weights. Of a file with several
    pictures the first is read.

    Raises:
        DataError: the file is unreadable, or has more than 8 bits per channel (Pillow would clip or truncate those).
    """
    try:
        with Image.open(path) as image:
            _refuse_deep_pixels(image, path)
            image.load()
            return _upright(_convert(image, MODES[channels]), image, path)
    except DataError:
        raise
    except _DAMAGED as error:
        raise DataError(f"cannot read the image {path}: {_reason(error)}; replace or remove the file") from error


def _refuse_deep_pixels(image: Image.Image, path: Path) -> None:
    """Pillow clips "I;16" to 255 on conversion and cuts 16-bit colour to its high byte while decoding."""
    tiles = getattr(image, "tile", ())  # how the decoder will read the file: (codec, extents, offset, args)
    args = tiles[0][3] if tiles else ""
    depth = args[1] if image.format == "PPM" and isinstance(args, tuple) else 255
    deep_colour = ";16" in str(args) or (isinstance(depth, int) and depth > 255)
    if image.mode in {"I", "F"} or image.mode.startswith("I;16") or deep_colour:
        kind = {"F": "floating-point", "I": "32-bit integer"}.get(image.mode, "16-bit")
        kind = "16-bit" if deep_colour else kind
        raise DataError(
            f"{path} holds {kind} pixels (mode {image.mode}): only 8-bit images are read; "
            "scale it to 8 bits with the range you mean, for example 0..4095 to 0..255"
        )


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns when a palette with transparent entries goes to RGB directly
    return image.copy() if image.mode == mode else image.convert(mode)


def _upright(converted: Image.Image, original: Image.Image, path: Path) -> Image.Image:
    try:
        orientation = original.getexif().get(0x0112, 1)
    except (*_DAMAGED, KeyError, TypeError):
        notice(f"{path}: its EXIF block cannot be read, so it is taken as upright")
        return converted
    turn = _TURNS.get(orientation)
    return converted if turn is None else converted.transpose(turn)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):
        return "it is empty or no image"
    return str(error) or type(error).__name__
