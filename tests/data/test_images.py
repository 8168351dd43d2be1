"""One image file: converted as documented, upright, or refused by name."""

import logging
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from softless.data import notices
from softless.data.dicom import ENDINGS
from softless.data.images import IMAGE_TYPES, BadImage, decode
from softless.data.reading import read_image, read_whole
from softless.errors import DataError
from softless.tasks.segmentation.values import read_values
from tests.data.making import noise


def png(path: Path, width: int, height: int, depth: int, colour: int, rows: bytes) -> Path:
    """A PNG written by hand: Pillow cannot write 16-bit colour, nor a header that lies."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


@pytest.mark.parametrize("ending", sorted(IMAGE_TYPES - ENDINGS))  # DICOM: test_dicom
def test_every_type_is_read(tmp_path, ending):
    image = noise(mode="L" if ending == ".pgm" else "RGB")
    image.save(tmp_path / f"a{ending}")
    read = read_image(tmp_path / f"a{ending}", 1 if ending == ".pgm" else 3)
    assert read.size == image.size
    assert read.mode == image.mode
    if ending in {".png", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}:
        assert np.array_equal(np.asarray(read), np.asarray(image))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    turned = np.zeros((8, 12, 3), np.uint8)
    turned[:4, :6] = 255  # the top left corner of the upright picture is white
    # what a camera held so stores: the inverse of what a viewer does
    stored = {
        1: turned,
        2: turned[:, ::-1],
        3: turned[::-1, ::-1],
        4: turned[::-1],
        5: turned.transpose(1, 0, 2),
        6: np.rot90(turned, 1),
        7: np.rot90(turned, 2).transpose(1, 0, 2),
        8: np.rot90(turned, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), turned)


def test_conversions(tmp_path):
    grey = noise(mode="L")
    grey.save(tmp_path / "grey.png")
    assert np.array_equal(
        np.asarray(read_image(tmp_path / "grey.png", 3)), np.asarray(grey)[..., None].repeat(3, -1)
    )

    colour = noise()
    colour.save(tmp_path / "colour.png")
    assert np.array_equal(
        np.asarray(read_image(tmp_path / "colour.png", 1)), np.asarray(colour.convert("L"))
    )

    alpha = noise(mode="RGBA")
    alpha.save(tmp_path / "alpha.png")
    assert np.array_equal(
        np.asarray(read_image(tmp_path / "alpha.png")), np.asarray(alpha)[..., :3]
    )

    palette = noise().quantize(8)
    palette.save(
        tmp_path / "palette.png", transparency=bytes([0, 128, 255, 255, 255, 255, 255, 255])
    )
    assert np.array_equal(
        np.asarray(read_image(tmp_path / "palette.png")), np.asarray(palette.convert("RGB"))
    )

    bits = noise(mode="L").convert("1")
    bits.save(tmp_path / "bits.png")
    assert set(np.unique(np.asarray(read_image(tmp_path / "bits.png", 1)))) == {0, 255}

    noise().convert("CMYK").save(tmp_path / "cmyk.tif")
    assert read_image(tmp_path / "cmyk.tif").mode == "RGB"


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_a_truncated_file_is_named(tmp_path, ending, share):
    path = tmp_path / f"cut.{ending}"
    noise(64, 64).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=rf"cannot read the image .*cut\.{ending}: .+"):
        read_image(path)


def test_no_image_at_all_is_named(tmp_path):
    (tmp_path / "page.jpg").write_text("<html>not found</html>")
    with pytest.raises(DataError, match=r"page\.jpg: it is empty or no image"):
        read_image(tmp_path / "page.jpg")
    with pytest.raises(DataError, match=r"gone\.jpg: no such file"):
        read_image(tmp_path / "gone.jpg")


def test_deep_pixels_are_refused_not_clipped(tmp_path):
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    Image.fromarray(ramp).save(tmp_path / "grey16.png")
    Image.fromarray(ramp).save(tmp_path / "grey16.tif")
    Image.fromarray(ramp.astype(np.float32) / 65535).save(tmp_path / "float.tif")
    Image.fromarray(ramp.astype(np.int32)).save(tmp_path / "int.tif")
    rows = b"".join(b"\0" + np.full((4, 3), 300, ">u2").tobytes() for _ in range(4))
    png(tmp_path / "colour16.png", 4, 4, 16, 2, rows)
    (tmp_path / "colour16.ppm").write_bytes(
        b"P6 2 2 65535\n" + np.full((2, 2, 3), 300, ">u2").tobytes()
    )
    (tmp_path / "grey10.pgm").write_bytes(b"P5 2 2 1023\n" + np.full((2, 2), 300, ">u2").tobytes())
    for path in sorted(tmp_path.iterdir()):
        kind = (
            "floating-point"
            if "float" in path.name
            else "32-bit"
            if "int" in path.name
            else "16-bit"
        )
        with pytest.raises(
            DataError,
            match=rf"{path.name} holds {kind}.*only 8-bit images are read without a range: "
            r"declare .*data\.range=0\.\.4095",
        ):
            read_image(path)


def test_a_decompression_bomb_is_refused_from_its_header(tmp_path):
    path = png(tmp_path / "bomb.png", 20_000, 20_000, 8, 2, b"\0")
    start = time.process_time()
    with pytest.raises(DataError, match=r"bomb\.png: .*400000000 pixels"):
        read_image(path)
    assert time.process_time() - start < 0.5


def test_a_notice_is_said_once(caplog, monkeypatch):
    monkeypatch.setattr(notices, "_said", set())
    with caplog.at_level(logging.WARNING, "softless.data"):
        notices.notice("three files are not read")
        notices.notice("three files are not read")
    assert caplog.messages == ["three files are not read"]


def test_a_png_with_a_large_profile_or_text_is_a_whole_image(tmp_path):
    """Slide tiles carry the scanner's profile, and generated pictures their workflow: libpng reads
    the pixels, and so is done here.
    """
    image = noise(64, 48)
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 2_000_000, zip=True)
    image.save(tmp_path / "profile.png", icc_profile=b"\0" * 1_500_000)
    image.save(tmp_path / "text.png", pnginfo=text)
    for name in ("profile.png", "text.png"):
        found = decode(tmp_path / name)
        assert np.array_equal(np.asarray(found.image), np.asarray(image))
        assert [remark.kind for remark in found.remarks] == ["large texts"]
        read_whole(tmp_path / name)
        content = bytearray((tmp_path / name).read_bytes())
        content[content.index(b"IDAT") + 20] ^= 1  # a pixel of it
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadImage, match=r"broken data stream|checksum"):
            read_whole(tmp_path / name)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_a_tiff_that_a_tag_turns_has_its_pixels(tmp_path, mode, orientation):
    """Pillow maps grey and RGBA files that are not packed into memory with the sides of the upright
    image, and gives other pixels.
    """
    tifffile = pytest.importorskip("tifffile")
    upright = np.random.default_rng(0).integers(
        0, 256, (24, 20) if mode == "L" else (24, 20, len(mode)), dtype=np.uint8
    )
    stored = {
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, 3),
    }[orientation]
    options = {"extrasamples": ["unassalpha"]} if mode == "RGBA" else {}
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.ascontiguousarray(stored),
        photometric="minisblack" if mode == "L" else "rgb",
        extratags=[(274, "H", 1, orientation, True)],
        **options,
    )
    found = decode(tmp_path / "a.tif", 1 if mode == "L" else 3)
    assert np.array_equal(found.image, upright if mode == "L" else upright[..., :3])
    assert found.turned
    if mode == "L":
        assert np.array_equal(read_values(tmp_path / "a.tif"), upright)
