"""The pixels of a TIFF as they are stored, tile by tile or strip by strip, of one level and
upright: one unreadable tile loses that tile and no other.
"""

# h x w pixels, s samples

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from softless.data import tags, tiff_pages
from softless.data.tiff_pages import CIELAB, CMYK, DAMAGED, JPEG, PALETTE, SAMPLES, WHITE_IS_ZERO

CACHE = 2**25  # bytes of decoded tiles that are kept
TO_RGB = {CMYK: "CMYK", CIELAB: "LAB"}  # colours that Pillow turns into RGB, by its names
WHITE = 255  # what a file leaves out on purpose
LARGEST = 2**31  # bytes of one packed tile
ORIENTATION, UPRIGHT = 274, 1  # the tag, and its value where nothing turns the picture
Check = Callable[[int, int, int, int], None]  # of a tile's top, left, height and width


class Damaged(Exception):
    """A tile that cannot be read; the message says why."""


@dataclass(frozen=True)
class LostTile:
    """A tile of a level that cannot be read: its rectangle in the upright level, and why."""

    top: int
    left: int
    bottom: int
    right: int
    reason: str


class Tiles:
    """A level of a picture, read by regions.

    Args:
        file: The open file of tifffile.
        verdict: What becomes of the picture.
        level: Which level.
        values: What becomes of stored numbers, where a range was declared; 8 bits without.
    """

    def __init__(
        self, file: Any, verdict: tags.Verdict, level: int, values: tags.Values | None = None
    ) -> None:
        self.file, self.verdict, self.values = file, verdict, values
        self.pages = verdict.picture.levels[level]
        page = self.pages[0]
        self.page = page
        self.stored = int(page.imagelength), int(page.imagewidth)
        tiled = (
            (int(page.tilelength), int(page.tilewidth))
            if page.is_tiled
            else (int(page.rowsperstrip), self.stored[1])
        )
        self.segment = min(tiled[0], 2**31) or self.stored[0], tiled[1] or self.stored[1]
        self.turn = Turn(oriented(page, oriented(verdict.picture.first)))
        self.size = self.turn.size(self.stored)
        nothing = np.zeros(0, dtype=np.dtype(page.dtype))
        self.dtype = np.dtype(np.uint8) if values is None else values(nothing).dtype
        self.cache: OrderedDict[int, NDArray[Any]] = OrderedDict()
        self.cache_bytes = 0
        # Aperio's empty tiles are a fault of its encoder
        self.sparse = not page.is_svs and page.photometric != PALETTE

    @property
    def samples(self) -> int:
        """How many samples a region has: 1 or 3."""
        if self.verdict.channels is not None:
            return len(self.verdict.channels)
        photometric = int(self.page.photometric)
        return 1 if SAMPLES[photometric] == 1 and photometric != PALETTE else 3

    def read(
        self, top: int, left: int, height: int, width: int, check: Check | None = None
    ) -> tuple[NDArray[Any], list[LostTile]]:
        """A region (h,w,s) of the upright level, and the tiles in it that cannot be read, which are
        left at zero.

        Args:
            top: Of the region.
            left: Of the region.
            height: Of the region.
            width: Of the region.
            check: Called with the rectangle of each tile that is decoded, and raises `Damaged` for
                one that is of no use.
        """
        box = self.turn.stored((top, left, top + height, left + width), self.size)
        region = np.zeros((box[2] - box[0], box[3] - box[1], self.samples), dtype=self.dtype)
        lost = []
        (segment_height, segment_width), across = (
            self.segment,
            -(-self.stored[1] // self.segment[1]),
        )
        for row in range(box[0] // segment_height, -(-box[2] // segment_height)):
            for column in range(box[1] // segment_width, -(-box[3] // segment_width)):
                y, x = row * segment_height, column * segment_width
                end = (
                    min(y + segment_height, self.stored[0]),
                    min(x + segment_width, self.stored[1]),
                )
                try:
                    tile = self._tile(row * across + column, (y, x, *end), check)
                except Damaged as error:
                    lost.append(LostTile(*self.turn.upright((y, x, *end), self.stored), str(error)))
                    continue
                y0, x0, y1, x1 = (
                    max(y, box[0]),
                    max(x, box[1]),
                    min(end[0], box[2]),
                    min(end[1], box[3]),
                )
                region[y0 - box[0] : y1 - box[0], x0 - box[1] : x1 - box[1]] = tile[
                    y0 - y : y1 - y, x0 - x : x1 - x
                ]
        return self.turn.turned(region), lost

    def _tile(
        self, number: int, box: tuple[int, int, int, int], check: Check | None
    ) -> NDArray[Any]:
        """A tile (h,w,s) of the stored level, from those that are kept where it is among them."""
        if number in self.cache:
            self.cache.move_to_end(number)
            return self.cache[number]
        size = box[2] - box[0], box[3] - box[1]
        with tiff_pages.silent():
            tile = self._chosen(number, size)
        if check is not None:
            check(box[0], box[1], *size)
        self.cache[number] = tile
        self.cache_bytes += tile.nbytes
        while self.cache_bytes > CACHE and len(self.cache) > 1:
            self.cache_bytes -= self.cache.popitem(last=False)[1].nbytes
        return tile

    def _chosen(self, number: int, size: tuple[int, int]) -> NDArray[Any]:
        """The channels asked for, or the colours, of a tile."""
        if self.verdict.channels is None:
            return self._coloured(self._planar(self.pages[0], number, size))
        count, parts = int(self.page.samplesperpixel), []
        planes: dict[int, NDArray[Any]] = {}
        for channel in self.verdict.channels:
            plane, sample = divmod(channel, count)
            if plane not in planes:
                planes[plane] = self._widened(self._planar(self.pages[plane], number, size))
            parts.append(planes[plane][..., sample])
        return np.stack(parts, axis=-1)

    def _planar(self, page: Any, number: int, size: tuple[int, int]) -> NDArray[Any]:
        """All samples of a tile, whether they lie together or in tiles of their own."""
        if int(page.planarconfig) == 1 or page.samplesperpixel == 1:
            return unpacked(self.file, page, number, size, self.segment, sparse=self.sparse)
        each = math.prod(
            -(-side // tile) for side, tile in zip(self.stored, self.segment, strict=True)
        )
        parts = [
            unpacked(
                self.file, page, number + each * sample, size, self.segment, sparse=self.sparse
            )
            for sample in range(int(page.samplesperpixel))
        ]
        return np.concatenate(parts, axis=-1)

    def _widened(self, values: NDArray[Any]) -> NDArray[Any]:
        """Samples in 8 bits, those of fewer bits spread over them; or what becomes of stored
        numbers.
        """
        bits, photometric = self.page.bitspersample, int(self.page.photometric)
        if self.values is not None and bits >= 8:
            inverted = photometric == WHITE_IS_ZERO  # of 8 bits: deeper ones are refused
            return self.values(np.uint8(WHITE) - values if inverted else values)
        widened = (
            values.astype(np.uint8)
            if bits == 8
            else values.astype(np.uint8) * np.uint8(255 // (2**bits - 1))
        )
        return np.uint8(WHITE) - widened if photometric == WHITE_IS_ZERO else widened

    def _valued(self, colours: NDArray[np.uint8]) -> NDArray[Any]:
        return colours if self.values is None else self.values(colours)

    def _coloured(self, values: NDArray[Any]) -> NDArray[Any]:
        photometric = int(self.page.photometric)
        if photometric == PALETTE:
            return self._valued(_palette(self.page)[values[..., 0].astype(np.intp)])
        widened = self._widened(values) if photometric not in TO_RGB else values.astype(np.uint8)
        if photometric in TO_RGB:
            own = np.ascontiguousarray(widened[..., : SAMPLES[photometric]])
            mode = TO_RGB[photometric]
            image = Image.frombytes(mode, own.shape[1::-1], own.tobytes(), "raw", mode).convert(
                "RGB"
            )
            return self._valued(np.asarray(image))
        return widened[..., : SAMPLES[photometric]]


def _palette(page: Any) -> NDArray[np.uint8]:
    table = page.colormap
    if table is None:
        raise Damaged("it has no table of colours")
    return (np.asarray(table) // 256).astype(np.uint8).T


# One tile of the file


def unpacked(
    file: Any,
    page: Any,
    number: int,
    size: tuple[int, int],
    segment: tuple[int, int],
    *,
    sparse: bool = True,
) -> NDArray[Any]:
    """A tile of a page (h,w,s), cut to the `size` that lies in the image.

    Args:
        file: The open file.
        page: Of its pages.
        number: Of the page's tiles or strips.
        size: Height and width of what lies in the image.
        segment: Height and width that tiles have, or strips.
        sparse: Whether a tile without bytes was left out on purpose and is white.

    Raises:
        Damaged: it cannot be decoded, or decodes to another size.
    """
    try:
        data = _packed(file, page, number)
        if data is None:
            return _left_out(page, size, sparse=sparse)
        values = _decoded(page, data, number, size, segment)
    except Damaged:
        raise
    except DAMAGED as error:
        raise Damaged(" ".join((str(error) or type(error).__name__).split())) from error
    return values[: size[0], : size[1]]


def _packed(file: Any, page: Any, number: int) -> bytes | None:
    offsets, counts = page.dataoffsets, page.databytecounts
    if number >= len(offsets) or number >= len(counts):
        raise Damaged("the file names no place for it")
    if not counts[number] or not offsets[number]:
        return None
    if counts[number] > LARGEST:
        raise Damaged(f"its size is said to be {counts[number]} bytes")
    file.filehandle.seek(offsets[number])
    data: bytes = file.filehandle.read(counts[number])
    if len(data) < counts[number]:
        raise Damaged("the file ends before it does")
    return data


def _left_out(page: Any, size: tuple[int, int], *, sparse: bool) -> NDArray[Any]:
    if not sparse:
        raise Damaged("the file has no bytes for it")
    samples = 1 if int(page.planarconfig) != 1 else int(page.samplesperpixel)
    white = (
        0 if int(page.photometric) in {WHITE_IS_ZERO, CMYK} else 2 ** int(page.bitspersample) - 1
    )
    return np.full((*size, samples), white, dtype=np.dtype(page.dtype))


def _decoded(
    page: Any, data: bytes, number: int, size: tuple[int, int], segment: tuple[int, int]
) -> NDArray[Any]:
    """What a tile's bytes decode to (h,w,s), at least as large as the part in the image."""
    import tifffile

    compression = int(page.compression)
    if compression == JPEG:
        _refuse_other_size(_jpeg_size(data), size, segment)
        return _of_depth(page, page.decode(data, number, jpegtables=page.jpegtables)[0][0])
    if compression not in tifffile.TIFF.IMAGE_COMPRESSIONS:
        return _of_depth(page, page.decode(data, number)[0][0])
    values = np.asarray(tifffile.TIFF.DECOMPRESSORS[compression](data))
    _refuse_other_size(values.shape[:2], size, segment)
    values = values.reshape(*values.shape[:2], -1)
    samples = 1 if int(page.planarconfig) != 1 else int(page.samplesperpixel)
    if values.shape[-1] == samples - 1 == 3:  # WebP leaves an alpha out that is opaque everywhere
        values = np.concatenate([values, np.full_like(values[..., :1], WHITE)], axis=-1)
    if values.shape[-1] != samples:
        raise Damaged(f"it decodes to {values.shape[-1]} samples a pixel in place of {samples}")
    return _of_depth(page, values)


def _of_depth(page: Any, values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.itemsize != np.dtype(page.dtype).itemsize:
        raise Damaged(f"it decodes to {values.dtype} in place of {page.dtype}")
    return values


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Height and width as a JPEG says; one that ends early is decoded to grey by libjpeg, without a
    word.
    """
    import tifffile

    if data.rstrip(b"\0\xff")[-1:] != b"\xd9" and b"\xff\xd9" not in data[-64:]:
        raise Damaged("its JPEG ends early")
    _, height, width, _ = tifffile.tifffile.jpeg_shape(data)
    return int(height), int(width)


def _refuse_other_size(
    decoded_size: Sequence[int], size: tuple[int, int], segment: tuple[int, int]
) -> None:
    """A tile is as large as its tags say, or as the part of it that lies in the image."""
    fits = all(
        side in {image_side, segment_side}
        for side, image_side, segment_side in zip(decoded_size, size, segment, strict=True)
    )
    if not fits:
        raise Damaged(
            f"it decodes to {decoded_size[1]} x {decoded_size[0]} pixels in place of "
            f"{segment[1]} x {segment[0]}"
        )


def oriented(page: Any, otherwise: int = UPRIGHT) -> int:
    """The Orientation of a page, 1 to 8; `otherwise` where it has no such tag."""
    value = page.tags.valueof(ORIENTATION)
    if value is None:
        return otherwise
    return int(value) if value in range(1, 9) else UPRIGHT


class Turn:
    """What an Orientation of 1 to 8 does to a picture, once and as a whole."""

    def __init__(self, orientation: int) -> None:
        number = orientation if 1 <= orientation <= 8 else UPRIGHT
        self.orientation = number
        self.swaps = number >= 5
        self.rows, self.columns = number in {3, 4, 7, 8}, number in {2, 3, 6, 7}

    def size(self, stored: tuple[int, int]) -> tuple[int, int]:
        return stored[::-1] if self.swaps else stored

    def stored(
        self, box: tuple[int, int, int, int], upright: tuple[int, int]
    ) -> tuple[int, int, int, int]:
        """Where the rectangle (top, left, bottom, right) of an upright picture of this size is
        stored.
        """
        return self._swapped(self._flipped(box, upright))

    def upright(
        self, box: tuple[int, int, int, int], stored: tuple[int, int]
    ) -> tuple[int, int, int, int]:
        """Where a rectangle of the stored picture comes to lie."""
        return self._flipped(self._swapped(box), self.size(stored))

    def turned(self, values: NDArray[Any]) -> NDArray[Any]:
        """Stored pixels (h,w,s) upright."""
        values = values.transpose(1, 0, 2) if self.swaps else values
        return values[:: -1 if self.rows else 1, :: -1 if self.columns else 1]

    def _flipped(
        self, box: tuple[int, int, int, int], size: tuple[int, int]
    ) -> tuple[int, int, int, int]:
        top, left, bottom, right = box
        if self.rows:
            top, bottom = size[0] - bottom, size[0] - top
        if self.columns:
            left, right = size[1] - right, size[1] - left
        return top, left, bottom, right

    def _swapped(self, box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        return (box[1], box[0], box[3], box[2]) if self.swaps else box
