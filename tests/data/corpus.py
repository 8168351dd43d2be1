"""Image files that are broken, hostile or unusual, made with Pillow and by hand; nothing is
stored.
"""

import io
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.data.making import noise

SIDE = 24


@dataclass(frozen=True)
class Bad:
    """A file that must be refused: what is in it, the kind of its fault, and what the reason
    says.
    """

    make: Callable[[Path], None]
    kind: str
    reason: str  # a regular expression
    checked_only: bool = False  # training reads it, the check does not let it pass


@dataclass(frozen=True)
class Odd:
    """A file that must be read: its content, the exact pixels as RGB (None: not compared), and the
    kinds of its remarks.
    """

    content: bytes
    pixels: np.ndarray | None
    remarks: tuple[str, ...] = ()


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, body: bytes, *, crc: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(body))
        + name
        + body
        + struct.pack(">I", zlib.crc32(name + body) if crc is None else crc)
    )


def png(
    width: int, height: int, depth: int, colour: int, rows: bytes, *, crc: int | None = None
) -> bytes:
    """A PNG by hand: Pillow writes neither 16-bit colour nor a header that lies."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(rows), crc=crc)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def tiff(width: int, height: int, data: bytes, tags: dict[int, tuple[int, ...]]) -> bytes:
    """A little-endian TIFF of one strip; `tags` are whole numbers and add to, or replace, those of
    8-bit grey.
    """
    every = {
        256: (width,),
        257: (height,),
        258: (8,),
        259: (1,),
        262: (1,),
        273: (8,),
        277: (1,),
        278: (height,),
        279: (len(data),),
        **tags,
    }
    offset = 8 + len(data) + len(data) % 2  # of the long values; strips lie before them
    long, entries = b"", b""
    for tag, values in sorted(every.items()):
        packed = struct.pack(f"<{len(values)}I", *values)
        entries += struct.pack("<HHI", tag, 4, len(values))
        entries += packed if len(values) == 1 else struct.pack("<I", offset + len(long))
        long += packed if len(values) > 1 else b""
    directory = struct.pack("<H", len(every)) + entries + struct.pack("<I", 0)
    start = offset + len(long)
    return b"II*\0" + struct.pack("<I", start) + data + b"\0" * (len(data) % 2) + long + directory


def webp(width: int, height: int) -> bytes:
    """A lossless WebP's header of any size, and hardly anything behind it."""
    body = b"\x2f" + struct.pack("<I", (width - 1) | ((height - 1) << 14)) + b"\0" * 51
    return (
        b"RIFF"
        + struct.pack("<I", 12 + len(body))
        + b"WEBPVP8L"
        + struct.pack("<I", len(body))
        + body
    )


def jpeg(content: bytes, *, size: tuple[int, int] | None = None, precision: int = 8) -> bytes:
    """A JPEG with another size or precision in its frame header."""
    place = next(
        i for i in range(len(content)) if content[i] == 0xFF and content[i + 1] in {0xC0, 0xC2}
    )
    width, height = size or struct.unpack(">HH", content[place + 5 : place + 9])[::-1]
    return (
        content[: place + 4] + struct.pack(">BHH", precision, height, width) + content[place + 9 :]
    )


def bmp565(pixels: np.ndarray) -> bytes:
    """A BMP of 5, 6 and 5 bits."""
    height, width, _ = pixels.shape
    red, green, blue = (
        pixels[..., c].astype(np.uint16) >> shift for c, shift in enumerate((3, 2, 3))
    )
    rows = (red << 11 | green << 5 | blue)[::-1].astype("<u2").tobytes()
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 16, 3, len(rows), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 14 + 40 + 12 + len(rows), 0, 0, 66) + header + masks + rows


def ramp(dtype: Any = np.uint16) -> np.ndarray:
    return (np.arange(256, dtype=np.float64).reshape(16, 16) * 257).astype(dtype)


def pixels_of(seed: int = 0, mode: str = "RGB") -> np.ndarray:
    return np.asarray(noise(SIDE, SIDE, mode, seed))


IMAGE = noise(SIDE, SIDE)
ENCODED = {
    "jpg": encoded(IMAGE, "JPEG"),
    "png": encoded(IMAGE, "PNG"),
    "tif": encoded(IMAGE, "TIFF"),
    "webp": encoded(IMAGE, "WEBP"),
    "bmp": encoded(IMAGE, "BMP"),
    "ppm": encoded(IMAGE, "PPM"),
    "lzw.tif": encoded(IMAGE, "TIFF", compression="tiff_lzw"),
    "progressive.jpg": encoded(IMAGE, "JPEG", progressive=True),
}
ONE_BIT_ROWS = b"\0" + b"\xaa" * (SIDE // 8)


def put(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def honest_bomb(side: int) -> Callable[[Path], None]:
    """A 1-bit PNG that really has its side squared pixels, in a few kB."""

    def write(path: Path) -> None:
        path.write_bytes(png(side, side, 1, 0, bytes(side * (1 + (side + 7) // 8))))

    return write


def floats(*wrong: float) -> bytes:
    values = np.linspace(0, 1, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)
    values[0, : len(wrong)] = wrong
    return encoded(Image.fromarray(values), "TIFF")


def fault_bytes(content: bytes, begin: int, count: int) -> bytes:
    return content[:begin] + b"\x55" * count + content[begin + count :]


NONE, DAMAGED, LARGE, SMALL, DEEP = (
    "no image",
    "damaged",
    "too many pixels",
    "too small",
    "pixel format",
)
BOMBS = {
    "lie.png": (png(60_000, 60_000, 8, 2, b"\0" * 300), "60000 x 60000 = 3600000000 pixels"),
    "lie.tif": (tiff(60_000, 60_000, b"\0" * 64, {}), "3600000000 pixels"),
    "strips.tif": (
        tiff(40_000, 40_000, b"\0" * 64, {277: (3,), 258: (8, 8, 8), 262: (2,)}),
        "1600000000 pixels",
    ),
    "tile.tif": (
        tiff(
            64, 64, b"\0" * 64, {322: (60_000,), 323: (60_000,), 324: (8,), 325: (64,), 259: (8,)}
        ),
        "one tile of 3600000000 pixels",
    ),
    "lie.webp": (webp(16_383, 16_383), "16383 x 16383 = 268402689 pixels"),
    "lie.jpg": (jpeg(ENCODED["jpg"], size=(65_500, 65_500)), "4290250000 pixels"),
    "progressive.jpg": (
        jpeg(ENCODED["progressive.jpg"], size=(30_000, 30_000)),
        "900000000 pixels",
    ),
    "gif.png": (
        b"GIF89a" + struct.pack("<HHBBB", 65_000, 65_000, 0, 0, 0) + b"\x2c" + b"\0" * 30,
        "4225000000 pixels",
    ),
    "frame.png": (
        # the screen is small and the first picture is not
        b"GIF89a\x18\0\x18\0\0\0\0\x2c"
        + struct.pack("<HHHHB", 0, 0, 60_000, 60_000, 0)
        + b"\x02\x02\x4c\x01\0\x3b",
        "3600000000 pixels",
    ),
    "lie.bmp": (
        ENCODED["bmp"][:18] + struct.pack("<ii", 50_000, 50_000) + ENCODED["bmp"][26:],
        "2500000000 pixels",
    ),
    "lie.ppm": (b"P6 60000 60000 255\n" + b"\0" * 100, "3600000000 pixels"),
}

BAD: dict[str, Bad] = {
    "empty.png": Bad(put(b""), "empty", "it is empty or no image"),
    "page.jpg": Bad(put(b"<html>not found</html>"), NONE, "begins with b'<html>not found<'"),
    "text.png": Bad(put(b"a text\n" * 30), NONE, "no image of the types read"),
    "archive.png": Bad(put(b"PK\x03\x04" + b"\0" * 60), NONE, "begins with b'PK"),
    "paper.tif": Bad(put(b"%PDF-1.7\n" + b"\0" * 60), NONE, "begins with b'%PDF"),
    "script.jpg": Bad(
        put(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 30\n"), NONE, "begins with b'%!PS"
    ),
    "phone.jpg": Bad(put(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 60), NONE, "ftypheic"),
    "zeros.bmp": Bad(put(bytes(500)), NONE, "no image of the types read"),
    "link.png": Bad(
        lambda path: path.symlink_to("nowhere.png"), "missing", "no such file .a link to nothing"
    ),
    "pipe.png": Bad(os.mkfifo, NONE, "it is no file"),
    **{
        f"half.{ending}": Bad(
            put(content[: len(content) // 2]), DAMAGED, "replace or remove|header is damaged"
        )
        for ending, content in ENCODED.items()
    },
    **{
        f"nearly.{ending}": Bad(
            put(content[: int(0.95 * len(content))]), DAMAGED, "replace or remove|header is damaged"
        )
        for ending, content in ENCODED.items()
    },
    **{
        f"begun.{ending}": Bad(put(ENCODED[ending][:14]), DAMAGED, "damaged|replace or remove")
        for ending in ("jpg", "png", "tif", "webp", "bmp")
    },
    "stream.png": Bad(put(fault_bytes(ENCODED["png"], 60, 40)), DAMAGED, "replace or remove"),
    "nothing.png": Bad(put(ENCODED["png"][:33] + chunk(b"IEND", b"")), DAMAGED, "."),
    "crc.png": Bad(
        put(png(SIDE, SIDE, 8, 0, (b"\0" + b"\x55" * SIDE) * SIDE, crc=1)),
        DAMAGED,
        "not those that were stored",
        checked_only=True,
    ),
    "twelve.jpg": Bad(
        put(jpeg(ENCODED["jpg"], precision=12)), DAMAGED, "begins as a JPEG file, but"
    ),
    "headless.jpg": Bad(
        put(b"\xff\xd8\xff\xe0" + ENCODED["jpg"][200:]), DAMAGED, "begins as a JPEG file, but"
    ),
    "bands.tif": Bad(
        put(tiff(16, 16, bytes(256 * 7), {277: (7,), 258: (8,) * 7})),
        DEEP,
        "7 samples a pixel where its colours take 1",
    ),
    **{
        name: Bad(put(content), LARGE, f"its header says .*{says}, and at most")
        for name, (content, says) in BOMBS.items()
    },
    "178.png": Bad(honest_bomb(13_373), LARGE, "178837129 pixels"),
    "400.png": Bad(honest_bomb(20_000), LARGE, "400000000 pixels"),
    "one.png": Bad(
        put(encoded(noise(1, 1), "PNG")), SMALL, "1 x 1 pixels, and both sides must have at least 8"
    ),
    "line.png": Bad(put(encoded(noise(1, 256), "PNG")), SMALL, "1 x 256 pixels"),
    "strip.jpg": Bad(put(encoded(noise(500, 7), "JPEG")), SMALL, "500 x 7 pixels"),
    "grey16.png": Bad(put(encoded(Image.fromarray(ramp()), "PNG")), DEEP, "16-bit pixels"),
    "grey16.tif": Bad(put(encoded(Image.fromarray(ramp()), "TIFF")), DEEP, "16-bit pixels"),
    "alpha16.png": Bad(
        put(png(16, 16, 16, 4, (b"\0" + b"\1\2\3\4" * 16) * 16)), DEEP, "16-bit pixels"
    ),
    "colour16.png": Bad(
        put(png(16, 16, 16, 2, (b"\0" + b"\1\2" * 48) * 16)), DEEP, "16-bit pixels"
    ),
    "colour16.tif": Bad(
        put(tiff(16, 16, bytes(1536), {277: (3,), 258: (16,) * 3, 262: (2,)})),
        DEEP,
        "16-bit pixels",
    ),
    "colour16.ppm": Bad(put(b"P6 16 16 65535\n" + bytes(1536)), DEEP, "16-bit pixels"),
    "grey10.pgm": Bad(put(b"P5 16 16 1023\n" + bytes(512)), DEEP, "16-bit pixels"),
    "int32.tif": Bad(
        put(encoded(Image.fromarray(ramp(np.int32)), "TIFF")), DEEP, "32-bit integer pixels"
    ),
    "signed8.tif": Bad(put(tiff(16, 16, bytes(range(256)), {339: (2,)})), DEEP, "signed pixels"),
    "float.tif": Bad(put(floats()), DEEP, "floating-point pixels .mode F., and only 8-bit"),
    "nan.tif": Bad(put(floats(float("nan"))), "not finite", "1 of them NaN or infinite"),
    "inf.tif": Bad(
        put(floats(float("inf"), float("-inf"), float("nan"))),
        "not finite",
        "3 of them NaN or infinite",
    ),
}


def _stored(pixels: np.ndarray, orientation: int) -> Image.Image:
    """What a camera held so stores: the inverse of what a viewer does."""
    turned = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, 1),
        7: np.rot90(pixels, 2).transpose(1, 0, 2),
        8: np.rot90(pixels, -1),
    }
    return Image.fromarray(np.ascontiguousarray(turned[orientation]))


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


UPRIGHT = np.zeros((32, 48, 3), np.uint8)  # blocks of 16: exact in JPEG too
UPRIGHT[:16, :16] = 255


def _oriented() -> dict[str, Odd]:
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "png": ("PNG", {}),
        "tif": ("TIFF", {}),
        "jpg": ("JPEG", {"quality": 95}),
        "webp": ("WEBP", {"lossless": True}),
    }
    return {
        f"exif{orientation}.{ending}": Odd(
            encoded(_stored(UPRIGHT, orientation), kind, exif=_exif(orientation), **options),
            UPRIGHT,
        )
        for ending, (kind, options) in kinds.items()
        for orientation in range(1, 9)
    }


def _grey(levels: np.ndarray) -> np.ndarray:
    return np.repeat(levels[..., None], 3, -1).astype(np.uint8)


def _unusual() -> dict[str, Odd]:
    colours = np.random.default_rng(1).integers(0, 256, (8, 3), dtype=np.uint8)
    index = np.random.default_rng(2).integers(0, 8, (SIDE, SIDE), dtype=np.uint8)
    palette = Image.fromarray(index)
    palette.putpalette(colours.tobytes())
    rgba, la = pixels_of(3, "RGBA"), pixels_of(4, "LA")
    frames = [noise(SIDE, SIDE, seed=seed) for seed in (5, 6, 7)]
    rest: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
    ink = np.asarray(noise(SIDE, SIDE, "RGBA", 8)).astype(int)
    cmyk = Image.frombytes("CMYK", (SIDE, SIDE), ink.astype(np.uint8).tobytes())
    light = (
        255 - ink[..., 3:] - np.floor(ink[..., :3] * (255 - ink[..., 3:]) / 255 + 0.5).astype(int)
    )
    one = np.unpackbits(np.frombuffer(ONE_BIT_ROWS[1:] * SIDE, np.uint8)).reshape(SIDE, SIDE)
    four = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 16
    packed = b"".join(b"\0" + bytes(row[::2] << 4 | row[1::2]) for row in four.astype(np.uint8))
    first = np.asarray(frames[0])
    shades = noise(SIDE, SIDE, "L", 9)
    film = [Image.fromarray(np.asarray(frame.convert("L"))) for frame in frames]
    several = ("several pictures",)
    green = np.zeros((16, 16, 3), np.uint8)
    green[..., 1] = 255
    return {
        "palette.png": Odd(encoded(palette, "PNG"), colours[index]),
        "clear.png": Odd(encoded(palette, "PNG", transparency=bytes([0, 128])), colours[index]),
        "alpha.png": Odd(encoded(Image.fromarray(rgba), "PNG"), rgba[..., :3]),
        "alpha.tif": Odd(encoded(Image.fromarray(rgba), "TIFF"), rgba[..., :3], ("fourth sample",)),
        "greyalpha.png": Odd(encoded(Image.fromarray(la, "LA"), "PNG"), _grey(la[..., 0])),
        "bits.png": Odd(png(SIDE, SIDE, 1, 0, ONE_BIT_ROWS * SIDE), _grey(255 * one)),
        "four.png": Odd(png(SIDE, SIDE, 4, 0, packed), _grey(17 * four)),
        "fax.tif": Odd(
            encoded(Image.fromarray(255 * one).convert("1"), "TIFF", compression="group4"),
            _grey(255 * one),
        ),
        "negative.tif": Odd(
            tiff(16, 16, bytes(range(256)), {262: (0,)}),
            _grey(255 - np.arange(256).reshape(16, 16)),
        ),
        "tiled.tif": Odd(
            tiff(16, 16, bytes(range(256)), {322: (16,), 323: (16,), 324: (8,), 325: (256,)}),
            _grey(np.arange(256).reshape(16, 16)),
        ),
        "bits565.bmp": Odd(bmp565(green), green),
        "cmyk.tif": Odd(encoded(cmyk, "TIFF"), light),
        "lab.tif": Odd(encoded(Image.new("LAB", (SIDE, SIDE)), "TIFF"), None),
        "cmyk.jpg": Odd(encoded(cmyk, "JPEG"), None),
        "film.png": Odd(
            encoded(film[0], "GIF", save_all=True, append_images=film[1:]),
            None,
            (*several, "wrong ending"),
        ),
        "animated.png": Odd(encoded(frames[0], "PNG", **rest), first, several),
        "animated.webp": Odd(encoded(frames[0], "WEBP", lossless=True, **rest), first, several),
        "pages.tif": Odd(encoded(frames[0], "TIFF", **rest), first, several),
        "stereo.jpg": Odd(encoded(frames[0], "MPO", **rest), None),
        "really.jpg": Odd(encoded(shades, "PNG"), _grey(np.asarray(shades)), ("wrong ending",)),
        "exif.jpg": Odd(
            encoded(IMAGE, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12"), None, ("header",)
        ),
        "capital.PNG": Odd(encoded(IMAGE, "PNG"), np.asarray(IMAGE)),
    }


ODD: dict[str, Odd] = {**_unusual(), **_oriented()}
GOOD: dict[str, bytes] = {f"good.{ending}": content for ending, content in ENCODED.items()}


def put_bad(folder: Path) -> Path:
    """All the bad files in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, bad in BAD.items():
        bad.make(folder / name)
    return folder
