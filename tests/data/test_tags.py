"""One table for TIFFs of every kind: the same for tiles and strips, for images and for slides."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from softless.data.images import BadImage, decode
from softless.data.tags import KINDS
from softless.errors import DataError, UsageError
from softless.slides.files import Choice, slide_of

pytest.importorskip("openslide")
tifffile = pytest.importorskip("tifffile")
RNG = np.random.default_rng(5)
RGB = RNG.integers(0, 256, (96, 112, 3), dtype=np.uint8)
FIVE = RNG.integers(0, 256, (96, 112, 5), dtype=np.uint8)
LAYOUTS: dict[str, dict[str, Any]] = {"tiled": {"tile": (32, 48)}, "strips": {"rowsperstrip": 16}}


def write(path: Path, values: np.ndarray, layout: str, **options: Any) -> Path:
    tifffile.imwrite(
        path,
        values,
        **{
            "metadata": None,
            "photometric": "rgb" if values.shape[-1] >= 3 and values.ndim == 3 else "minisblack",
            **LAYOUTS[layout],
            **options,
        },
    )
    return path


def read(path: Path, chosen: tuple[int, ...] | None = None, page: int | None = None) -> np.ndarray:
    slide = slide_of(path, 0, 3, Choice(chosen, page))
    assert slide is not None
    try:
        return slide.read(0, 0, *slide.size)
    finally:
        slide.close()


def thrice(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, -1)


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "12 bits in 16": (RGB.astype(np.uint16) * 16, {}, "16-bit pixels"),
    "grey of 16 bits": (RGB[..., 0].astype(np.uint16) * 16, {}, "16-bit pixels"),
    "int16": (RGB[..., 0].astype(np.int16) - 100, {}, "(signed|16-bit) pixels"),
    "int8": (RGB.view(np.int8), {}, "signed pixels"),
    "float32": (RGB.astype(np.float32) / 255, {}, "floating-point pixels"),
    "float64": (RGB[..., 0].astype(np.float64), {}, "floating-point pixels"),
    "uint32": (RGB[..., 0].astype(np.uint32), {}, "32-bit integer pixels"),
    "complex": (RGB[..., 0].astype(np.complex64), {}, "complex pixels"),
    "2 samples": (
        FIVE[..., :2],
        {"planarconfig": "contig", "photometric": "minisblack", "extrasamples": ["unassalpha"]},
        "2 samples a pixel",
    ),
    "4 grey samples": (
        FIVE[..., :4],
        {"planarconfig": "contig", "photometric": "minisblack"},
        "4 samples a pixel",
    ),
    "5 samples": (FIVE, {"planarconfig": "contig"}, "5 samples a pixel"),
    "5 planes": (
        np.moveaxis(FIVE, -1, 0),
        {"planarconfig": "separate", "photometric": "rgb"},
        "5 samples a pixel",
    ),
    "channels": (
        np.moveaxis(RGB, -1, 0),
        {"photometric": "minisblack", "metadata": {"axes": "CYX"}},
        "channels of one picture",
    ),
    "grey pages": (
        np.moveaxis(RGB, -1, 0),
        {"photometric": "minisblack"},
        "nothing says whether they are channels",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_has_a_name_in_tiles_and_strips_for_images_and_slides(
    name: str, layout: str, tmp_path: Path
) -> None:
    values, options, says = REFUSED[name]
    path = write(tmp_path / "a.tif", values, layout, **options)
    with pytest.raises(BadImage, match=rf"a\.tif (holds|cannot).*{says}|holds {says}") as image:
        decode(path)
    with pytest.raises(BadImage, match=says) as slide:
        read(path)
    assert image.value.kind == slide.value.kind


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["assocalpha", "unassalpha", "unspecified"])
def test_a_fourth_sample_is_dropped_and_never_blended(
    kind: str, layout: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.tif", FIVE[..., :4], layout, extrasamples=[kind])
    decoded = decode(path)
    assert np.array_equal(np.asarray(decoded.image), FIVE[..., :3])
    assert [remark.kind for remark in decoded.remarks] == ["fourth sample"]
    assert np.array_equal(read(path), FIVE[..., :3])
    slide = slide_of(path, 0, 3)
    assert slide is not None
    assert [remark.text.split(" (")[0] for remark in slide.remarks] == ["it holds a fourth sample"]
    slide.close()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("orientation", range(9))
def test_an_orientation_is_applied_once_to_the_whole_picture(
    orientation: int, layout: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.tif", RGB, layout, extratags=[(274, 3, 1, orientation, True)])
    flips = {0: RGB, 1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1]}
    swapped = RGB.transpose(1, 0, 2)
    flips |= {5: swapped, 6: swapped[:, ::-1], 7: swapped[::-1, ::-1], 8: swapped[::-1]}
    assert np.array_equal(read(path), flips[orientation])
    assert np.array_equal(np.asarray(decode(path).image), flips[orientation])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_channels_and_pages_are_chosen(layout: str, tmp_path: Path) -> None:
    five = write(tmp_path / "five.tif", FIVE, layout, planarconfig="contig")
    assert np.array_equal(read(five, (4, 0, 2)), FIVE[..., [4, 0, 2]])
    assert np.array_equal(read(five, (3,)), thrice(FIVE[..., 3]))
    pages = write(
        tmp_path / "pages.tif", np.moveaxis(FIVE, -1, 0), layout, photometric="minisblack"
    )
    assert np.array_equal(read(pages, (2, 1, 4)), FIVE[..., [2, 1, 4]])
    assert np.array_equal(read(pages, page=3), thrice(FIVE[..., 3]))
    with pytest.raises(UsageError, match=r"pages\.tif: it has no page 5: its pages are 0 to 4"):
        read(pages, page=5)
    with pytest.raises(UsageError, match="it has no channel 5: its channels are 0 to 4"):
        read(five, (0, 1, 5))
    with pytest.raises(UsageError, match="1 or 3 channels are read, and these are 2"):
        read(five, (0, 1))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_stack_is_told_from_channels_by_ome(layout: str, tmp_path: Path) -> None:
    stack = RNG.integers(0, 256, (2, 3, 96, 112), dtype=np.uint8)
    told: dict[str, Any] = {"photometric": "minisblack", **LAYOUTS[layout]}
    for axes in ("ZCYX", "CZYX"):
        path = tmp_path / f"{axes}.ome.tif"
        tifffile.imwrite(path, stack, metadata={"axes": axes}, **told)
        planes = stack if axes == "ZCYX" else stack.swapaxes(0, 1)
        depth, channels = planes.shape[:2]
        with pytest.raises(
            DataError, match=f"{channels} pages that are the channels of one picture"
        ):
            read(path)
        for page in range(depth):
            chosen = (1, 0, 1)
            assert np.array_equal(
                read(path, chosen, page), np.moveaxis(planes[page][list(chosen)], 0, -1)
            )
        with pytest.raises(UsageError, match=f"no page {depth}"):
            read(path, (0,), depth)
    tifffile.imwrite(tmp_path / "z.ome.tif", stack[:, 0], metadata={"axes": "ZYX"}, **told)
    slide = slide_of(tmp_path / "z.ome.tif", 0, 3)
    assert slide is not None
    assert [remark.text for remark in slide.remarks] == [
        "it holds 2 pictures, and only the first is read (planes of a stack; page= chooses another)"
    ]
    assert np.array_equal(slide.read(0, 0, 96, 112), thrice(stack[0, 0]))
    slide.close()
    assert np.array_equal(np.asarray(decode(tmp_path / "z.ome.tif").image), thrice(stack[0, 0]))


def test_channels_of_every_level(tmp_path: Path) -> None:
    """Channels as pages, each with its levels in SubIFDs or behind it."""
    path, coarse = tmp_path / "a.ome.tif", RGB[::2, ::2]
    with tifffile.TiffWriter(path) as file:
        file.write(
            np.moveaxis(RGB, -1, 0),
            subifds=1,
            photometric="minisblack",
            tile=(32, 48),
            metadata={"axes": "CYX"},
        )
        file.write(
            np.moveaxis(coarse, -1, 0), subfiletype=1, photometric="minisblack", tile=(32, 48)
        )
    with tifffile.TiffWriter(tmp_path / "b.tif", ome=False) as file:
        for values in (RGB, coarse):
            for channel in range(3):
                kind = int(values is coarse)
                file.write(
                    values[..., channel],
                    subfiletype=kind,
                    photometric="minisblack",
                    tile=(32, 48),
                    metadata=None,
                )
    for name in ("a.ome.tif", "b.tif"):
        for level, values in enumerate((RGB, coarse)):
            slide = slide_of(tmp_path / name, level, 3, Choice((2, 0, 1)))
            assert slide is not None
            assert slide.sizes == [(96, 112), (48, 56)]
            assert np.array_equal(slide.read(0, 0, *slide.size), values[..., [2, 0, 1]])
            slide.close()


def test_pictures_of_other_sizes_are_no_levels(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for values, kind in ((RGB, 0), (RGB[:48, :56], 0), (RGB[:20, :100], 1)):
            file.write(values, photometric="rgb", tile=(32, 48), metadata=None, subfiletype=kind)
    slide = slide_of(tmp_path / "a.tif", 0, 3)
    assert slide is not None
    assert slide.sizes == [(96, 112)]
    assert [remark.text for remark in slide.remarks] == [
        "it holds 2 pictures, and only the first is read (pictures; page= chooses another)"
    ]
    slide.close()
    assert np.array_equal(read(tmp_path / "a.tif", page=1), RGB[:48, :56])


CODECS: dict[str, dict[str, Any]] = {
    "deflate": {},
    "lzw": {},
    "packbits": {},
    "zstd": {},
    "lerc": {},
    "webp": {"lossless": True},
    "jpeg2000": {"reversible": True},
    "jpegxl": {"lossless": True},
    "png": {},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("codec", CODECS)
def test_codecs_without_loss(codec: str, layout: str, tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.tif", RGB, layout, compression=codec, compressionargs=CODECS[codec] or None
    )
    assert np.array_equal(read(path), RGB)
    assert np.array_equal(np.asarray(decode(path).image), RGB)
    with tifffile.TiffFile(path) as file:
        start, count = file.pages[0].dataoffsets[1], file.pages[0].databytecounts[1]
    content = bytearray(path.read_bytes())
    content[start : start + count] = bytes(count)
    (tmp_path / "spoilt.tif").write_bytes(content)
    with pytest.raises(BadImage):
        decode(tmp_path / "spoilt.tif")


TABLE = (RNG.integers(0, 256, (3, 256)) * 257).astype(np.uint16)
GREY = RGB[..., 0]
COLOURS: dict[str, tuple[np.ndarray, dict[str, Any], np.ndarray]] = {
    "planes": (
        np.moveaxis(RGB, -1, 0).copy(),
        {"photometric": "rgb", "planarconfig": "separate"},
        RGB,
    ),
    "predictor": (RGB, {"compression": "lzw", "predictor": True}, RGB),
    "white is zero": (GREY, {"photometric": "miniswhite"}, thrice(255 - GREY)),
    "palette": (
        GREY,
        {"photometric": "palette", "colormap": TABLE},
        (TABLE // 257).T.astype(np.uint8)[GREY],
    ),
    "one bit": (GREY > 128, {"photometric": "minisblack"}, thrice((GREY > 128) * np.uint8(255))),
    "big-endian BigTIFF": (RGB, {"byteorder": ">", "bigtiff": True}, RGB),
    "JPEG of grey": (
        np.full_like(GREY, 77),
        {"compression": "jpeg"},
        thrice(np.full_like(GREY, 77)),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", COLOURS)
def test_colours_of_other_kinds(name: str, layout: str, tmp_path: Path) -> None:
    values, options, right = COLOURS[name]
    path = write(tmp_path / "a.tif", values, layout, **options)
    assert np.array_equal(read(path), right)
    assert np.array_equal(np.asarray(decode(path).image), right)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("photometric", "compression"), [("separated", None), ("cielab", None), ("rgb", "jpeg")]
)
def test_colours_that_pillow_and_libjpeg_turn_into_rgb(
    photometric: str, compression: str | None, layout: str, tmp_path: Path
) -> None:
    """CMYK, CIELAB and JPEG's YCbCr with fewer colours than grey levels: the same in both
    readers.
    """
    smooth = np.asarray(
        Image.fromarray(FIVE[:12, :14, : 4 if photometric == "separated" else 3]).resize(
            (112, 96), Image.Resampling.BICUBIC
        )
    )
    path = write(
        tmp_path / "a.tif", smooth, layout, photometric=photometric, compression=compression
    )
    assert np.array_equal(read(path), np.asarray(decode(path).image))


def test_ome_that_does_not_say_that_its_samples_are_channels(tmp_path: Path) -> None:
    """As libvips writes it: SizeC is 3, and one page has all three."""
    told = (
        '<?xml version="1.0"?><OME '
        'xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image '
        'ID="Image:0"><Pixels '
        'DimensionOrder="XYCZT" ID="Pixels:0" SizeC="3" SizeT="1" SizeX="112" SizeY="96" '
        'SizeZ="1" Type="uint8"></Pixels></Image></OME>'
    )
    path = write(tmp_path / "a.ome.tif", RGB, "tiled", ome=False, description=told)
    assert np.array_equal(read(path), RGB)


def test_a_tile_that_decodes_to_another_size_is_lost(tmp_path: Path) -> None:
    for codec, options in (
        ("jpeg", {}),
        ("webp", {"lossless": True}),
        ("jpeg2000", {"reversible": True}),
    ):
        paths = []
        for name, tile in (("wide", (32, 64)), ("tall", (64, 32))):
            paths.append(
                write(
                    tmp_path / f"{name}.tif",
                    RGB[:64, :64],
                    "tiled",
                    tile=tile,
                    compression=codec,
                    compressionargs=options or None,
                )
            )
        content = bytearray(paths[0].read_bytes())
        with tifffile.TiffFile(paths[1]) as file:
            other = file.pages[0]
            data = paths[1].read_bytes()[
                other.dataoffsets[0] : other.dataoffsets[0] + other.databytecounts[0]
            ]
        with tifffile.TiffFile(paths[0]) as file:
            offsets, counts = file.pages[0].tags[324], file.pages[0].tags[325]
        content[offsets.valueoffset : offsets.valueoffset + 4] = len(content).to_bytes(4, "little")
        content[counts.valueoffset : counts.valueoffset + 4] = len(data).to_bytes(4, "little")
        (tmp_path / "a.tif").write_bytes(content + data)
        lost: list[Any] = []
        slide = slide_of(tmp_path / "a.tif", 0, 3)
        assert slide is not None
        slide.read(0, 0, 64, 64, lost)
        assert [(one.x, one.y, one.reason) for one in lost] == [
            (0, 0, "it decodes to 32 x 64 pixels in place of 64 x 32")
        ]
        slide.close()


def mutated(content: bytes, spans: list[tuple[int, int]], random: np.random.Generator) -> bytes:
    """A file cut short, or with bytes of its tags or elsewhere changed, or a tag of an absurd
    value.
    """
    found, how, (first, last) = (
        bytearray(content),
        random.integers(4),
        spans[random.integers(len(spans))],
    )
    if how == 0:
        found[random.integers(first, last)] = random.integers(256)
    elif how == 1:
        found = found[: random.integers(8, len(found))]
    elif how == 2:
        tag = first + 2 + 12 * int(random.integers((last - first - 6) // 12))
        found[tag + 8 : tag + 12] = int(random.choice([0, 1, 5, 65535, 2**31, 2**32 - 1])).to_bytes(
            4, "little"
        )
    else:
        for _ in range(5):
            found[random.integers(8, len(found))] = random.integers(256)
    return bytes(found)


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"compression": "lzw", "predictor": True},
        {"compression": "jpeg"},
        {"compression": "jpeg2000"},
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_damaged_file_is_an_error_of_ours_or_loses_tiles(
    layout: str, kind: dict[str, Any], tmp_path: Path, capfd: Any
) -> None:
    path, told = (
        tmp_path / "a.tif",
        {"photometric": "rgb", "metadata": None, **LAYOUTS[layout], **kind},
    )
    with tifffile.TiffWriter(path) as file:
        file.write(RGB, resolution=(20000, 20000), resolutionunit="CENTIMETER", **told)
        file.write(RGB[::2, ::2], subfiletype=1, **told)
    with tifffile.TiffFile(path) as file:
        spans = [(page.offset, page.offset + 2 + 12 * len(page.tags) + 4) for page in file.pages]
    content, random = path.read_bytes(), np.random.default_rng(7)
    outcomes: list[str] = []
    for _ in range(60):
        path.write_bytes(mutated(content, spans, random))
        for look in (lambda: decode(path), lambda: region(path)):
            try:
                look()
                outcomes.append("read")
            except DataError as error:
                outcomes.append("named" if str(path) in str(error) else "not named")
    assert set(outcomes) == {"read", "named"}
    capfd.readouterr()  # libtiff has its own words


def region(path: Path) -> np.ndarray:
    slide = slide_of(path, 0, 3)
    if slide is None:
        raise DataError(f"{path} is no TIFF")
    try:
        return slide.read(0, 0, min(300, slide.size[0]), min(300, slide.size[1]), [])
    finally:
        slide.close()


@pytest.mark.parametrize(
    ("options", "mpp"),
    [
        ({"resolution": (1e4 / 0.5, 1e4 / 0.25), "resolutionunit": "CENTIMETER"}, (0.25, 0.5)),
        ({"resolution": (50800, 50800), "resolutionunit": "INCH"}, (0.5, 0.5)),
        (
            {"resolution": (300, 300), "resolutionunit": "INCH"},
            "300 dpi, which is 84.67 micrometres",
        ),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, "72 dpi, which is 352.8 micrometres"),
        ({"resolution": (2, 2), "resolutionunit": "NONE"}, ""),
        ({}, ""),
        (
            {"description": "Aperio Image Library v1\n112x96 |AppMag = 20|MPP = 0.4990|Left = 1"},
            (0.499, 0.499),
        ),
        (
            {"description": "Aperio Image Library v1\n112x96 |MPP = 4000"},
            "its MPP says 4000 micrometres per pixel, which cannot be",
        ),
        (
            {
                "ome": True,
                "metadata": {
                    "axes": "YXS",
                    "PhysicalSizeX": 500,
                    "PhysicalSizeXUnit": "nm",
                    "PhysicalSizeY": 0.25,
                },
            },
            (0.25, 0.5),
        ),
        (
            {"ome": True, "metadata": {"axes": "YXS", "PhysicalSizeX": 0.0, "PhysicalSizeY": 0.25}},
            "its OME-XML says 0 micrometres",
        ),
    ],
)
def test_a_resolution_is_what_the_file_says(
    options: dict[str, Any], mpp: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.tif", RGB, "tiled", **options)
    slide = slide_of(path, 0, 3)
    assert slide is not None
    slide.close()
    if isinstance(mpp, str):
        assert slide.resolution.mpp is None
        assert mpp in slide.resolution.said
    else:
        assert slide.resolution.mpp == pytest.approx(mpp)


def test_a_philips_slide_without_its_padding(tmp_path: Path) -> None:
    """Its levels are padded to whole tiles, and their pixel spacings say by how much they are
    coarser.
    """
    spacing = "".join(
        '<DataObject ObjectType="PixelDataRepresentation"><Attribute Name="DICOM_PIXEL_SPACING" '
        'Group="0x0028" Element="0x0030" PMSVR="IDoubleArray">'
        f"&quot;{0.00025 * 2**level}&quot; "
        f"&quot;{0.00025 * 2**level}&quot;</Attribute></DataObject>"
        for level in range(2)
    )
    told = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject '
        'ObjectType="DPUfsImport"><Attribute '
        f'Name="x"><Array>{spacing}</Array></Attribute></DataObject>'
    )
    fine, coarse = np.full((128, 128, 3), 255, np.uint8), np.full((64, 64, 3), 255, np.uint8)
    fine[:96, :112], coarse[:48, :56] = RGB, RGB[::2, ::2]
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for values, text in ((RGB, told), (coarse, "")):
            file.write(
                values,
                tile=(32, 32),
                photometric="rgb",
                metadata=None,
                description=text,
                software="Philips DP v1.0",
            )
    slide = slide_of(tmp_path / "a.tif", 1, 3)
    assert slide is not None
    assert slide.sizes == [(96, 112), (48, 56)]
    assert slide.resolution.mpp == pytest.approx((0.25, 0.25))
    assert np.array_equal(slide.read(0, 0, 48, 56), RGB[::2, ::2])
    slide.close()


def test_the_names_of_the_kinds_are_those_of_the_document() -> None:
    document = (Path(__file__).parents[2] / "docs" / "streaming.md").read_text(encoding="utf-8")
    for kind in KINDS:
        assert f"| {kind.name} | {kind.outcome}" in document
