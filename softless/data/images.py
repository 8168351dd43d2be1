"""Reading one image file: every failure names the file, and no pixel value is changed in silence.

Two limits are checked on the header, before a pixel is decoded. Environment variables set them for
every reader, workers included: SOFTLESS_MAX_PIXELS (width x height of the largest image;
89,478,485, where Pillow begins to warn, about 9,459 x 9,459) and SOFTLESS_MIN_SIDE (the shorter
side of the smallest; 8).
"""

import io
import os
import re
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.Image import Transpose

from softless.data.pictures import size_of
from softless.data.tags import Refused
from softless.data.tiff_images import Tagged, read_tiles, read_values, tagged
from softless.errors import DataError, UsageError
from softless.experiment.ranges import WAY
from softless.models.digests import of_file
from softless.words import POINTED, POINTER

IMAGE_TYPES = frozenset({
    ".jpg",
    ".jpeg",
    ".png",
    ".bmp",
    ".webp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".dcm",
    ".dicom",
})
# no others: Pillow hands EPS to another program
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM", "GIF")
MODES = {1: "L", 3: "RGB"}  # what Pillow calls an 8-bit image of so many channels
TURNED = "EXIF"  # the kind of a warning
UPRIGHT = 1  # the orientation of a picture that nothing turns
MAX_PIXELS = 89_478_485
MIN_SIDE = 8

# What Pillow's decoders are seen to raise on damaged files; anything else is a bug and keeps its
# traceback.
DAMAGED = (
    OSError,
    UnidentifiedImageError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    MemoryError,  # sizes inside the file that no allocation serves
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
_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"BM": "BMP",
    b"RIFF": "WebP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"GIF8": "GIF",
}
DEEP = re.compile(r"(?<!BGR);16")  # raw modes with 16 bits per channel; BGR;16 has 16 per pixel
_TILE_SIDES, SAMPLE_FORMAT, SIGNED, _ORIENTATION = (322, 323), 339, 2, 0x0112  # TIFF tags
# whose pixels are the decoder's own; of others Pillow may map the file
_UNPACKED = frozenset({"JPEG", "PNG", "WEBP"})
# in what Pillow says of profiles and texts larger than it reads
_TEXTS = re.compile(r"MAX_TEXT_(CHUNK|MEMORY)")
_ONE = threading.Lock()


class BadImage(DataError):
    """A file that is not read, with why in one word and in one sentence."""

    # missing, empty, no image, damaged, too many pixels, too small, pixel format, not finite
    kind = ""
    reason = ""


class Remark(NamedTuple):
    """What a reader should know of an image that was read."""

    kind: str  # several pictures, EXIF, header
    text: str


@dataclass(frozen=True)
class Decoded:
    """An upright image, and what was seen on the way."""

    image: Any  # of 8 bits as a PIL image; otherwise what `judge` makes of it
    format: str  # as Pillow names it
    stored_size: tuple[int, int]  # width and height before the EXIF orientation
    remarks: tuple[Remark, ...]
    # the format, where nothing in the file tells altered pixels: it has no checksums
    unguarded: str = ""
    outside: tuple[int, int] = (0, 0)  # values below and above a declared range
    orientation: int = UPRIGHT  # 1 to 8, which was undone

    @property
    def turned(self) -> bool:
        """Whether it was turned or mirrored."""
        return self.orientation in _TURNS

    @property
    def silently_turned(self) -> bool:
        """Whether it was turned and its size does not tell: what was drawn on the picture as it is
        stored lies elsewhere.
        """
        return self.turned and self.stored_size == size_of(self.image)


def decode(
    path: Path,
    channels: int = 3,
    *,
    max_pixels: int | None = None,
    min_side: int | None = None,
    judge: "Judge | None" = None,
) -> Decoded:
    """The upright image in mode "RGB" (3 channels) or "L" (1 channel), and what was seen on the
    way.

    EXIF orientation is applied. Palettes are expanded, an alpha channel is dropped (transparent
    pixels keep their stored colour), CMYK becomes RGB, colour becomes grey by Pillow's ITU-R 601
    weights. Of a file with several pictures the first is read, with a remark.

    Args:
        path: the file.
        channels: 1 or 3.
        max_pixels: refuse more, from the header; SOFTLESS_MAX_PIXELS by default.
        min_side: refuse a shorter side below this; SOFTLESS_MIN_SIDE by default.
        judge: in place of 8-bit pixels, gives what takes the stored numbers of the opened image
            once it is loaded (`deep`).

    Raises:
        BadImage: the file is unreadable, larger or smaller than the limits, or has more than 8 bits
            per channel (Pillow would clip or truncate those).
    """
    reading = partial(_decoded, path, channels, max_pixels, min_side, judge)
    try:
        return reading(texts=True)
    except BadImage as error:
        if not _TEXTS.search(error.reason):
            raise
    return reading(texts=False)


class Judge(NamedTuple):
    """What takes stored numbers in place of 8-bit pixels."""

    # of an opened image, once it is loaded
    opened: Callable[[Image.Image, Path], Callable[[Image.Image], Any]]
    # of an upright array (h, w, 1 or 3), where Pillow does not hold them whole
    tiles: Callable[[np.ndarray], Any]


def _decoded(
    path: Path,
    channels: int,
    max_pixels: int | None,
    min_side: int | None,
    judge: Judge | None,
    *,
    texts: bool,
) -> Decoded:
    """`decode`; without its texts a PNG's profile and texts are not looked at."""
    try:
        refuse_no_file(path)
        with _open(path, texts=texts) as (image, remarks):
            refuse_many(
                path, image.size, limit("SOFTLESS_MAX_PIXELS", MAX_PIXELS, max_pixels), _tile(image)
            )
            if judge is None:
                _refuse_deep_pixels(image, path)
            tags = _tagged(path, deep=judge is not None) if image.format == "TIFF" else None
            refuse_small(path, image.size, limit("SOFTLESS_MIN_SIDE", MIN_SIDE, min_side))
            if tags is not None and not tags.as_pillow:
                return _by_tiles(tags, channels, judge)
            take = (
                partial(convert, path=path, mode=MODES[channels])
                if judge is None
                else judge.opened(image, path)
            )
            stored, orientation = _stored_size(image), _tiff_orientation(image)
            _load(image, remarks)
            remaining = _orientation_left(image, remarks)
            upright = take(image)
            upright = upright.transpose(_TURNS[remaining]) if remaining in _TURNS else upright
            if tags is None or tags.single:
                _count_pictures(image, remarks)
            remarks.extend(() if tags is None else (Remark(*remark) for remark in tags.remarks))
            distinct = tuple(dict.fromkeys(remarks))
            turned = orientation if orientation in _TURNS else remaining
            return Decoded(
                upright, image.format or "", stored, distinct, _unguarded(image), orientation=turned
            )
    except BadImage:
        raise
    except DAMAGED as error:
        tags = _tagged(path, deep=judge is not None)
        if tags is None or (tags.as_pillow and not isinstance(error, UnidentifiedImageError)):
            raise unreadable(path, error) from error
    refuse_many(path, tags.stored, limit("SOFTLESS_MAX_PIXELS", MAX_PIXELS, max_pixels))
    refuse_small(path, tags.stored, limit("SOFTLESS_MIN_SIDE", MIN_SIDE, min_side))
    return _by_tiles(tags, channels, judge)


def _tagged(path: Path, *, deep: bool) -> Tagged | None:
    """What the tags say of a TIFF; None for other files."""
    with _named(path):
        return tagged(path, deep=deep)


def _by_tiles(tags: Tagged, channels: int, judge: Judge | None) -> Decoded:
    """A TIFF that Pillow does not read as it is stored."""
    with _named(tags.path):
        if judge is None:
            image, lost = read_tiles(tags.path, channels)
        else:
            values, lost = read_values(tags.path)
            image = judge.tiles(values)
    if lost:
        raise bad_image(tags.path, "damaged", f"{lost}; replace or remove the file")
    remarks = tuple(Remark(*remark) for remark in tags.remarks)
    return Decoded(
        image, "TIFF", tags.stored, remarks, tags.unguarded, orientation=tags.orientation
    )


def _load(image: Image.Image, remarks: list[Remark]) -> None:
    """Decode the pixels.

    Pillow 13 maps a TIFF that is not packed into memory with its sides exchanged or its turn
    undone, where a tag turns it.
    """
    if _tiff_orientation(image) in _TURNS:
        image.filename = ""  # type: ignore[attr-defined]  # without one it reads the file
    # a TIFF's loading reads its tags again
    with heard(remarks) if image.format == "TIFF" else nullcontext():
        image.load()


def said_of_turned(drawn: str) -> str:
    """What is said where an image was turned and its size does not tell
    (`Decoded.silently_turned`).
    """
    return (
        f"its EXIF orientation turns it and leaves its size, so nothing tells whether {drawn} "
        "drawn on the upright image "
        "or on the stored one: look at some"
    )


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What the table refuses, as an error that names the file."""
    try:
        yield
    except Refused as error:
        raise bad_image(path, error.kind, error.text, f"{path} holds ") from error


def content(path: Path) -> int:
    """64 bits of a digest of a file's bytes, pixels and all else.

    Raises:
        BadImage: it cannot be read.
    """
    try:
        return int(of_file(path)[:16], 16)
    except OSError as error:
        raise unreadable(path, error) from error


def verify(path: Path) -> None:
    """Hold a PNG against its checksums, which Pillow's decoder passes over; those of zlib in a TIFF
    it sees; other types have none.

    Raises:
        BadImage: they differ.
    """
    try:
        try:
            _verify(path, texts=True)
        except ValueError as error:
            if not _TEXTS.search(str(error)):
                raise
            _verify(path, texts=False)
    except DAMAGED as error:
        raise bad_image(
            path, "damaged", f"{error}; the pixels are not those that were stored"
        ) from error


def _verify(path: Path, *, texts: bool) -> None:
    with _open(path, texts=texts) as (image, _):
        if image.format == "PNG":
            image.verify()


def limit(variable: str, default: int, value: int | None = None) -> int:
    """A limit as given, else as the environment says, else the default.

    Raises:
        UsageError: it is no whole number, or below 1.
    """
    text = os.environ.get(variable, str(default)) if value is None else str(value)
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise UsageError(f"{variable}={text}: the limit is a whole number of pixels, at least 1")
    return int(text)


@contextmanager
def _open(path: Path, *, texts: bool = True) -> Iterator[tuple[Image.Image, list[Remark]]]:
    """The file opened, no pixel decoded, and what Pillow warned of; without texts a PNG's own are
    passed over, which is said.
    """
    remarks: list[Remark] = (
        []
        if texts
        else [
            Remark(
                "large texts",
                "its colour profile or texts are too large to be read; its pixels are whole",
            )
        ]
    )
    with heard(remarks):
        image = Image.open(path if texts else without_texts(path), formats=FORMATS)
    with image:
        yield image, remarks


def without_texts(path: Path) -> io.BytesIO:
    """A PNG without the chunks that hold its colour profile and texts."""
    content = path.read_bytes()
    chunks, offset = [content[:8]], 8
    while offset + 12 <= len(content):
        end = offset + 12 + int.from_bytes(content[offset : offset + 4], "big")
        if content[offset + 4 : offset + 8] not in {b"iCCP", b"tEXt", b"zTXt", b"iTXt"}:
            chunks.append(content[offset:end])
        offset = end
    return io.BytesIO(b"".join(chunks))


@contextmanager
def heard(remarks: list[Remark]) -> Iterator[None]:
    """Pillow's warnings as remarks, and our limit in the place of its own, which warns up to twice
    its value and names no file.

    Both belong to the process, so one thread at a time is in here.
    """
    with _ONE, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = usual
    remarks += [Remark("header", " ".join(str(warning.message).split())) for warning in caught]


def refuse_no_file(path: Path) -> None:
    """Refuse what is no file, or an empty one.

    Raises:
        BadImage: it is one of these.
        OSError: nothing is there.
    """
    status = path.stat()  # follows links; raises where there is nothing
    if not stat.S_ISREG(status.st_mode):
        raise bad_image(
            path,
            "no image",
            "it is no file" + (" but a folder" if stat.S_ISDIR(status.st_mode) else ""),
        )
    if not status.st_size:
        raise bad_image(
            path, "empty", "it is empty or no image (0 bytes); replace or remove the file"
        )


def _tile(image: Image.Image) -> int:
    """Pixels of a TIFF's tile; 1 where it has none."""
    tile = 1
    for tag in _TILE_SIDES if image.format == "TIFF" else ():
        side = image.tag_v2.get(tag, 1)  # type: ignore[attr-defined]  # TIFF's class has it
        tile *= side if isinstance(side, int) else 1
    return tile


def refuse_many(path: Path, size: tuple[int, int], max_pixels: int, tile: int = 1) -> None:
    """Refuse an image, or one tile of it, of more pixels than the limit; `size` is width and
    height.

    Raises:
        BadImage: there are more.
    """
    width, height = size
    if width * height > max_pixels or tile > max_pixels:
        size_text = (
            f"{width} x {height} = {width * height}"
            if width * height > max_pixels
            else f"one tile of {tile}"
        )
        needed = max(width * height, tile)
        raise bad_image(
            path,
            "too many pixels",
            f"its header says {size_text} pixels, and at most {max_pixels} are decoded; make it "
            f"smaller, or set SOFTLESS_MAX_PIXELS={needed} if you trust it",
        )


def refuse_small(path: Path, size: tuple[int, int], min_side: int) -> None:
    """Refuse an image whose shorter side is below the limit; `size` is width and height in pixels.

    Raises:
        BadImage: it is below.
    """
    width, height = size
    if min(width, height) < min_side:
        raise bad_image(
            path,
            "too small",
            f"it is {width} x {height} pixels, and both sides must have at least {min_side}; "
            "remove it, or set "
            f"SOFTLESS_MIN_SIDE={min(width, height)} to have it enlarged",
        )


def _refuse_deep_pixels(image: Image.Image, path: Path) -> None:
    """Pillow clips "I;16" to 255 on conversion and cuts 16-bit colour to its high byte while
    decoding.
    """
    # how the decoder will read the file: (codec, extents, offset, args)
    tiles = getattr(image, "tile", ())
    args = tiles[0][3] if tiles else ""
    depth = args[1] if image.format == "PPM" and isinstance(args, tuple) else 255
    deep_colour = DEEP.search(str(args)) is not None or (isinstance(depth, int) and depth > 255)
    signed = image.format == "TIFF" and SIGNED in image.tag_v2.get(SAMPLE_FORMAT, ())  # type: ignore[attr-defined]
    if not (image.mode in {"I", "F"} or image.mode.startswith("I;16") or deep_colour or signed):
        return
    if image.mode == "F":
        _refuse_not_finite(image, path)
    kind = {"F": "floating-point", "I": "32-bit integer"}.get(
        image.mode, "signed" if signed else "16-bit"
    )
    kind = "16-bit" if deep_colour else kind
    raise bad_image(
        path,
        "pixel format",
        f"{kind} pixels (mode {image.mode}), and only 8-bit images are read without a range: {WAY}",
        f"{path} holds ",
    )


def _refuse_not_finite(image: Image.Image, path: Path) -> None:
    with heard([]):
        wrong = int((~np.isfinite(np.asarray(image))).sum())
    if wrong:
        raise bad_image(
            path,
            "not finite",
            f"floating-point pixels, {wrong} of them NaN or infinite: mend those, and {WAY}",
            f"{path} holds ",
        )


def convert(image: Image.Image, path: Path, mode: str) -> Image.Image:
    """The image in another 8-bit mode, of the same size; palettes are expanded, alpha is dropped.

    Raises:
        BadImage: Pillow has no way from its mode to this one.
    """
    if image.mode == "P" and "transparency" in image.info:
        # Pillow warns when a palette with transparent entries goes to RGB directly
        image = image.convert("RGBA")
    try:
        if image.mode != mode:
            return image.convert(mode)
        return image if image.format in _UNPACKED else image.copy()
    except ValueError as error:
        raise bad_image(
            path, "pixel format", f"{error}; convert it to RGB with a colour profile first"
        ) from error


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """A TIFF's size is given upright from the start."""
    width, height = image.size
    return (height, width) if _tiff_orientation(image) in {5, 6, 7, 8} else (width, height)


def _tiff_orientation(image: Image.Image) -> Any:
    """The orientation that Pillow will apply to a TIFF while it loads; None where there is none."""
    return image.tag_v2.get(_ORIENTATION) if image.format == "TIFF" else None  # type: ignore[attr-defined]


def _orientation_left(image: Image.Image, remarks: list[Remark]) -> int:
    """The orientation of the loaded image that is still to be undone; Pillow has turned a TIFF
    already.
    """
    try:
        with heard(remarks):
            orientation = image.getexif().get(_ORIENTATION, UPRIGHT)
    except DAMAGED:
        remarks.append(Remark("EXIF", "its EXIF block cannot be read, so it is taken as upright"))
        return UPRIGHT
    return orientation if orientation in _TURNS else UPRIGHT


def _unguarded(image: Image.Image) -> str:
    """The format of a file without checksums over its pixels.

    A PNG has them, and so has what zlib packed in a TIFF.
    """
    packing = str(image.info.get("compression", "raw"))
    if image.format == "PNG" or (image.format == "TIFF" and "deflate" in packing):
        return ""
    return (
        f"TIFF ({packing.removeprefix('tiff_')})" if image.format == "TIFF" else str(image.format)
    )


def _count_pictures(image: Image.Image, remarks: list[Remark]) -> None:
    """An MPO is a photograph with its previews or depth behind it: the first picture is the
    photograph.
    """
    if image.format == "MPO" or not getattr(image, "is_animated", False):
        return
    try:
        with heard([]):
            count = f"{image.n_frames} "  # type: ignore[attr-defined]
    except DAMAGED:
        count = ""  # a later one is damaged
    remarks.append(
        Remark("several pictures", f"it holds {count}pictures, and only the first is read")
    )


def unreadable(path: Path, error: Exception) -> BadImage:
    """The error for a file that a decoder, or the operating system, does not give."""
    if isinstance(error, FileNotFoundError):
        return bad_image(
            path, "missing", "no such file" + (" (a link to nothing)" if path.is_symlink() else "")
        )
    if isinstance(error, UnidentifiedImageError):
        return bad_image(path, *_unknown_type(path))
    if isinstance(error, OSError) and error.errno:
        return bad_image(
            path, "unreadable", f"{error.strerror}; its rights or the disk stand in the way"
        )
    return bad_image(
        path, "damaged", f"{str(error) or type(error).__name__}; replace or remove the file"
    )


def _unknown_type(path: Path) -> tuple[str, str]:
    with path.open("rb") as file:
        begins = file.read(16)
    if begins and POINTER.startswith(begins):
        return "no image", f"it is {POINTED}"
    for magic, name in _MAGIC.items():
        if begins.startswith(magic):
            return (
                "damaged",
                (
                    f"it begins as a {name} file, but its header is damaged or of a kind that "
                    "Pillow "
                    "cannot read"
                ),
            )
    types = ", ".join(sorted(IMAGE_TYPES))
    return (
        "no image",
        f"it is empty or no image of the types read ({types}): it begins with {begins!r}",
    )


def bad_image(path: Path, kind: str, reason: str, opening: str = "") -> BadImage:
    """The error for a file that is not read: why in a word, and in a sentence that `opening` may
    begin in place of ours.
    """
    # torch raises an error of a worker again with its message alone, so the constructor takes
    # nothing else
    error = BadImage((opening or f"cannot read the image {path}: ") + reason)
    error.kind, error.reason = kind, (f"it holds {reason}" if opening else reason)
    return error
