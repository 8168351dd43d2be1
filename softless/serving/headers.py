"""What the first bytes of an image file say: its kind, and how many pixels it has.

Read before any decoder sees the file, so that nothing is made of a file that is refused. Three
kinds are taken; their decoders are the ones that every browser trusts.
"""

from typing import NamedTuple

from softless.serving.limits import Limits
from softless.serving.refusal import Refusal

TAKEN = "JPEG, PNG or WebP"
MOST_TEXTS = 16  # packed texts of a PNG: each may unpack to a million bytes
MOST_SCANS = 100  # of a progressive JPEG: each costs a pass over all pixels
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # markers that state a size
_BARE = frozenset({0x01, *range(0xD0, 0xDA)})  # markers without a length
_PACKED = (b"zTXt", b"iTXt", b"iCCP")


class Header(NamedTuple):
    """What a file says of itself."""

    kind: str  # JPEG, PNG or WebP
    width: int
    height: int


def checked(content: bytes | bytearray, limits: Limits) -> Header:
    """The header of an image that may be decoded.

    Raises:
        Refusal: 415 for another kind of file, 413 for too many pixels, 422 for one that is damaged
            or too small.
    """
    header = _read(content)
    width, height = header.width, header.height
    if width * height > limits.pixels or max(width, height) > limits.side:
        raise Refusal(
            413,
            f"the image has {width} x {height} pixels: at most {limits.pixels:,} are taken, and "
            f"{limits.side:,} along a side",
        )
    if min(width, height) < limits.shorter:
        raise Refusal(
            422,
            f"the image has {width} x {height} pixels: both sides must have at least "
            f"{limits.shorter}",
        )
    return header


def _read(content: bytes | bytearray) -> Header:
    if not content:
        raise Refusal(422, "the image is empty (0 bytes)")
    try:
        if content.startswith(PNG):
            return _png(content)
        if content.startswith(JPEG):
            return _jpeg(content)
        if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
            return _webp(content)
    except IndexError:
        raise Refusal(422, "the image ends within its header") from None
    raise Refusal(415, f"this is no image of a kind that is taken: give {TAKEN}")


def _number(content: bytes | bytearray, start: int, size: int, order: str = "big") -> int:
    """A whole number of so many bytes.

    Raises:
        IndexError: the file ends before.
    """
    if start + size > len(content):
        raise IndexError
    return int.from_bytes(content[start : start + size], order)  # type: ignore[arg-type]


def _png(content: bytes | bytearray) -> Header:
    if content[12:16] != b"IHDR":
        raise Refusal(422, "the PNG file does not begin with its header")
    texts, offset = 0, 8
    while offset + 8 <= len(content):
        texts += content[offset + 4 : offset + 8] in _PACKED
        offset += 12 + _number(content, offset, 4)
    if texts > MOST_TEXTS:
        raise Refusal(422, f"the PNG file holds {texts} packed texts: at most {MOST_TEXTS}")
    return Header("PNG", _number(content, 16, 4), _number(content, 20, 4))


def _jpeg(content: bytes | bytearray) -> Header:
    scans = content.count(b"\xff\xda")
    if scans > MOST_SCANS:
        raise Refusal(422, f"the JPEG file has {scans} scans: at most {MOST_SCANS}")
    offset = 2
    while True:
        if _number(content, offset, 1) != 0xFF:
            raise Refusal(422, "the JPEG file is damaged in its header")
        marker = _number(content, offset + 1, 1)
        if marker == 0xFF:  # fill
            offset += 1
        elif marker in _BARE:
            offset += 2
        elif marker in _FRAMES:
            height, width = _number(content, offset + 5, 2), _number(content, offset + 7, 2)
            return Header("JPEG", width, height)
        else:
            if marker in {0xDA, 0xD9}:
                raise Refusal(422, "the JPEG file has no size in its header")
            offset += 2 + max(2, _number(content, offset + 2, 2))


def _webp(content: bytes | bytearray) -> Header:
    kind = content[12:16]
    if kind == b"VP8X":
        width, height = (_number(content, start, 3, "little") + 1 for start in (24, 27))
        return Header("WebP", width, height)
    if kind == b"VP8L":
        bits = _number(content, 21, 4, "little")
        return Header("WebP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8 ":
        sides = (_number(content, start, 2, "little") & 0x3FFF for start in (26, 28))
        width, height = sides
        return Header("WebP", width, height)
    raise Refusal(422, "the WebP file is damaged in its header")
