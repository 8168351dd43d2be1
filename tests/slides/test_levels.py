"""Levels exactly as they are stored, whatever their sizes and factors; scaled once from the right
one; the same whatever the chunk.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from softless.errors import UsageError
from softless.slides import stream
from softless.slides.files import Levels, Slide, slide_of
from softless.slides.pixels import Lost, Scaled
from tests.slides.models import apart, vit
from tests.slides.test_reader import pixels, spoil, write

openslide = pytest.importorskip("openslide")
tifffile = pytest.importorskip("tifffile")

CHUNKS = (32, 100, 2048)
MPPS = (0.5, 0.61, 0.9, 1.37, 2.5)


def opened(path: Path, level: int = 0) -> Levels:
    found = slide_of(path, level, 3)
    assert found is not None
    return found


def in_regions(source: Any, step: int) -> np.ndarray:
    """All pixels, read by squares of `step`."""
    height, width = source.size
    found = np.zeros((height, width, 3), dtype=np.uint8)
    for top in range(0, height, step):
        for left in range(0, width, step):
            tall, wide = min(step, height - top), min(step, width - left)
            found[top : top + tall, left : left + wide] = source.read(top, left, tall, wide)
    return found


def pyramid(path: Path, number: int) -> list[np.ndarray]:
    """One of many pyramids of odd sizes and factors, and its levels as they were written."""
    random = np.random.default_rng(number)
    size = int(random.integers(190, 420)), int(random.integers(190, 420))
    levels = [pixels(size, number)]
    factor = float(random.choice([2, 3, 4, 2.5, 1.7]))
    for level in range(1, int(random.integers(2, 4))):
        height, width = (max(20, int(side / factor**level + random.random())) for side in size)
        levels.append(
            np.asarray(Image.fromarray(levels[0]).resize((width, height), Image.Resampling.BOX))
        )
    tile = [int(side) * 16 for side in random.integers(2, 9, 2)]
    below = len(levels) - 1 if number % 3 == 0 else 0  # in SubIFDs
    told: dict[str, Any] = {"resolution": (1e4 / 0.5, 1e4 / 0.5), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path, bigtiff=number % 2 == 0, byteorder="<>"[number % 2]) as file:
        for level, values in enumerate(levels):
            kind = {"subfiletype": 1} if level else {**told, "subifds": below}
            file.write(
                values, tile=tile, photometric="rgb", compression="deflate", metadata=None, **kind
            )
    return levels


@pytest.mark.parametrize("number", range(20))
def test_a_pyramid_of_odd_sizes(number: int, tmp_path: Path) -> None:
    levels = pyramid(tmp_path / "pyramid.tif", number)
    slide = opened(tmp_path / "pyramid.tif")
    assert slide.sizes == [values.shape[:2] for values in levels]
    for level, values in enumerate(levels):
        slide = slide.at(level)
        for step in (37, 160):
            assert np.array_equal(in_regions(slide, step), values)
    slide.close()


@pytest.mark.parametrize(
    "number", [pytest.param(i, marks=[pytest.mark.soak] if i % 4 else []) for i in range(20)]
)
def test_a_chunk_changes_no_answer_at_any_level_and_resolution(number: int, tmp_path: Path) -> None:
    levels = pyramid(tmp_path / "pyramid.tif", number)
    model = vit(depth=1, dynamic_img_size=True)
    for level, values in enumerate(levels[1:], start=1):
        wanted = stream(model, values, saliency=False, quiet=True).logits
        for chunk in CHUNKS:
            found = stream(
                model,
                tmp_path / "pyramid.tif",
                level=level,
                chunk=chunk,
                saliency=False,
                quiet=True,
            )
            assert apart(found.logits, wanted) <= 1e-6
            assert (found.level, found.size) == (level, values.shape[:2])
    for mpp in MPPS:
        answers = [
            stream(
                model, tmp_path / "pyramid.tif", mpp=mpp, chunk=chunk, saliency=False, quiet=True
            )
            for chunk in CHUNKS
        ]
        assert all(apart(found.logits, answers[-1].logits) <= 1e-6 for found in answers)
        found = answers[0]
        own = levels[found.level]
        wanted_size = tuple(round(side * 0.5 / mpp) for side in levels[0].shape[:2])
        assert np.allclose(found.size, wanted_size, atol=1.01) or found.size == own.shape[:2]
        assert np.allclose(
            found.scale, [a / b for a, b in zip(levels[0].shape, found.size, strict=False)]
        )
        scaled = Image.fromarray(own).resize(found.size[::-1], Image.Resampling.BICUBIC)
        assert (
            apart(
                found.logits, stream(model, np.asarray(scaled), saliency=False, quiet=True).logits
            )
            < 3e-3
        )


@pytest.mark.parametrize("factor", [1.0, 1.31, 2.0, 3.77, 9.1])
def test_a_scaled_region_is_that_of_the_whole_and_pillow_s_to_a_grey_level(
    factor: float, tmp_path: Path
) -> None:
    levels = pyramid(tmp_path / "pyramid.tif", 4)
    slide = opened(tmp_path / "pyramid.tif", 1)
    scaled = Scaled(slide, (factor, factor))
    whole = scaled.read(0, 0, *scaled.size)
    for step in (16, 33):
        assert np.array_equal(in_regions(scaled, step), whole)
    wanted = np.asarray(
        Image.fromarray(levels[1]).resize(scaled.size[::-1], Image.Resampling.BICUBIC)
    )
    assert np.abs(whole.astype(int) - wanted).max() <= 1
    slide.close()


def test_level_1_of_a_real_slide(data_root: Path) -> None:
    """Its downsample is 2.0005, and openslide places regions of it between pixels."""
    path = data_root / "slides_odd" / "tcga-cr-7395-01a-01-ts1.svs"
    slide = opened(path, 1)
    height, width = slide.size
    with openslide.OpenSlide(str(path)) as whole_slide:
        whole = np.asarray(whole_slide.read_region((0, 0), 1, (width, height)).convert("RGB"))
    assert np.array_equal(in_regions(slide, 500), whole)
    slide.close()
    model = vit(depth=1)
    wanted = stream(model, whole, saliency=False).logits
    for chunk in (256, 2048):
        assert (
            apart(stream(model, path, level=1, chunk=chunk, saliency=False).logits, wanted) <= 1e-6
        )


LARGE = ["cmu_wsi/CMU-1-Small-Region.svs", "slides_odd/tcga-cr-7395-01a-01-ts1.svs"]
SMALL = [
    *(f"slides_odd/openslide/{name}" for name in ("boxes.tiff", "small.svs", "boxes_0.dcm")),
    *(f"slides_odd/large_image/{name}" for name in ("test_orient6.tif", "rgba_geotiff.tiff")),
]
REAL = [*(pytest.param(name, marks=pytest.mark.soak) for name in LARGE), *SMALL]


@pytest.mark.parametrize("name", REAL)
def test_a_real_file_at_five_resolutions_by_three_chunks(name: str, data_root: Path) -> None:
    slide = opened(data_root / name)
    said = slide.resolution.mpp
    slide.close()
    told = None if said else 0.25
    model = vit(depth=1)
    for factor in (1.0, 1.3, 2.0, 3.1, 8.0):
        mpp = factor * (said[1] if said else 0.25)
        answers = [
            stream(
                model,
                data_root / name,
                mpp=mpp,
                chunk=chunk,
                saliency=False,
                quiet=True,
                slide_mpp=told,
            )
            for chunk in (200, 1000, 4096)
        ]
        assert all(apart(found.logits, answers[-1].logits) <= 1e-6 for found in answers)


@pytest.mark.parametrize("name", REAL)
def test_a_real_file_answers_at_each_level_as_the_pixels_of_that_level(
    name: str, data_root: Path
) -> None:
    model = vit(depth=1)
    slide = opened(data_root / name)
    count = len(slide.sizes)
    slide.close()
    for level in range(count):
        slide = opened(data_root / name, level)
        whole = slide.read(0, 0, *slide.size)
        slide.close()
        wanted = stream(model, np.ascontiguousarray(whole), saliency=False, quiet=True).logits
        for chunk in (200, 4096):
            found = stream(
                model, data_root / name, level=level, chunk=chunk, saliency=False, quiet=True
            )
            assert found.size == whole.shape[:2]
            assert apart(found.logits, wanted) <= 1e-6


def test_openslide_reads_a_level_whose_places_are_whole_and_refuses_others_by_name(
    tmp_path: Path,
) -> None:
    values = pixels((256, 384))
    with tifffile.TiffWriter(tmp_path / "slide.tif") as file:
        for level, (height, width) in enumerate([(256, 384), (128, 192), (85, 127)]):
            part = np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BOX))
            file.write(
                part,
                tile=(64, 64),
                photometric="rgb",
                compression="deflate",
                metadata=None,
                subfiletype=min(level, 1),
            )
    slide = Slide(tmp_path / "slide.tif", 1, 3)
    assert slide.works == [True, True, False]
    stored = opened(tmp_path / "slide.tif", 1)
    assert np.array_equal(in_regions(slide, 37), stored.read(0, 0, 128, 192))
    stored.close()
    with pytest.raises(
        UsageError,
        match=r"level 2 of .*slide\.tif cannot be read as it is stored.*these levels work: 0, 1",
    ):
        slide.at(2)
    slide.close()


def trestle(path: Path, sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    """A slide of a maker whose TIFFs openslide reads; its levels as libjpeg decodes them."""
    whole = pixels(sizes[0])
    with tifffile.TiffWriter(path) as file:
        for height, width in sizes:
            part = np.asarray(Image.fromarray(whole).resize((width, height), Image.Resampling.BOX))
            told = {
                "software": "MedScan 1",
                "description": "Background Color=FFFFFF;OverlapsXY=0 0",
                "metadata": None,
            }
            file.write(
                part,
                tile=(128, 128),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"outcolorspace": "rgb"},
                **told,
            )
    with tifffile.TiffFile(path) as file:
        return [page.asarray() for page in file.pages]


def test_a_slide_through_openslide_answers_as_its_levels_do(tmp_path: Path) -> None:
    path, model = tmp_path / "slide.tif", vit(depth=1)
    levels = trestle(path, [(640, 768), (320, 384), (160, 192)])
    slide = opened(path)
    assert isinstance(slide, Slide)
    slide.close()
    for level, values in enumerate(levels):
        for chunk in CHUNKS:
            found = stream(model, path, level=level, chunk=chunk, saliency=False)
            assert apart(found.logits, stream(model, values, saliency=False).logits) <= 1e-6
    odd = trestle(tmp_path / "odd.tif", [(641, 769), (320, 384), (160, 192)])
    with pytest.raises(
        UsageError,
        match=r"level 1 of .*odd\.tif cannot be read as it is stored.*these levels work: 0;",
    ):
        stream(model, tmp_path / "odd.tif", level=1)
    # of the finest level, since no other is exact
    scaled = stream(model, tmp_path / "odd.tif", mpp=3.0, saliency=False)
    assert (scaled.level, scaled.size) == (0, (214, 256))
    wanted = np.asarray(Image.fromarray(odd[0]).resize((256, 214), Image.Resampling.BICUBIC))
    assert apart(scaled.logits, stream(model, wanted, saliency=False).logits) < 3e-3
    with pytest.raises(
        UsageError,
        match=r"channels= chooses inside a TIFF, and .*which openslide reads, leaves no choice",
    ):
        stream(model, path, channels=(0, 1, 2))


@pytest.mark.parametrize("mpp", [None, 0.7, 1.0, 2.0])
def test_one_bad_tile_loses_that_tile_at_any_resolution(mpp: float | None, tmp_path: Path) -> None:
    values = pixels((640, 640))
    good = write(tmp_path / "slide.tif", values, mpp=0.5)
    path = spoil(good, [11])  # of five in a row
    model = vit(depth=1)
    found = stream(model, path, mpp=mpp, chunk=64)
    assert [(tile.level, tile.y, tile.x) for tile in found.unreadable] == [(0, 256, 128)]
    factor = 1 if mpp is None else mpp / 0.5
    first, last = (
        np.floor(np.array([256, 128]) / factor / 16),
        np.ceil(np.array([384, 256]) / factor / 16),
    )
    assert found.grid[0] * found.grid[1] + 1 - found.counted == np.prod(last - first)
    for chunk in CHUNKS:
        assert apart(stream(model, path, mpp=mpp, chunk=chunk).logits, found.logits) <= 1e-6
    mask = np.ones(found.grid, dtype=bool)
    mask[int(first[0]) : int(last[0]), int(first[1]) : int(last[1])] = False
    clean = stream(model, good, mpp=mpp, chunk=64, mask=mask)
    # pixels beside the tile are made of those that can be read
    assert apart(found.logits, clean.logits) < 1e-2


def test_pixels_beside_a_bad_tile_are_made_of_good_ones_alone(tmp_path: Path) -> None:
    grey = np.full((256, 256, 3), 200, dtype=np.uint8)
    slide = opened(spoil(write(tmp_path / "slide.tif", grey), [3]))
    scaled = Scaled(slide, (1.7, 1.7))
    lost: list[Lost] = []
    whole = scaled.read(0, 0, *scaled.size, lost)
    assert [(one.x, one.y, one.box) for one in lost] == [(128, 128, (75, 75, 151, 151))]
    whole[75:, 75:] = 200
    assert (whole == 200).all()
    slide.close()


def test_where_an_answer_lies(tmp_path: Path) -> None:
    path = write(tmp_path / "slide.tif", pixels((400, 600)), levels=3, mpp=0.5)
    model = vit(depth=1)
    found = stream(model, path, level=1, saliency=False)
    assert (found.level, found.mpp, found.scale, found.origin, found.bounds) == (
        1,
        (1.0, 1.0),
        (2.0, 2.0),
        (0, 0),
        None,
    )
    found = stream(model, path, mpp=2.4, saliency=False)
    assert found.level == 2
    assert found.mpp == pytest.approx((2.4, 2.4), rel=0.01)
    assert found.scale == (400 / found.size[0], 600 / found.size[1])
    plain = stream(model, pixels((100, 120)), saliency=False)
    assert (plain.level, plain.mpp, plain.scale) == (0, None, (1.0, 1.0))
    shorter = stream(model, path, resize=150, saliency=False)
    assert (shorter.level, shorter.size, shorter.scale) == (2, (100, 150), (4.0, 4.0))


def test_what_was_scanned_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {
        "openslide.bounds-x": "100",
        "openslide.bounds-y": "40",
        "openslide.bounds-width": "200",
        "openslide.bounds-height": "300",
    }
    path = write(tmp_path / "slide.tif", pixels((400, 600)))
    plain = openslide.OpenSlide.properties.fget
    monkeypatch.setattr(
        openslide.OpenSlide, "properties", property(lambda self: {**plain(self), **told})
    )
    slide = Slide(path, 0, 3)
    assert slide.bounds == (100, 40, 200, 300)
    slide.close()


def region(
    path: Path, top: int, left: int, height: int, width: int
) -> tuple[np.ndarray, list[Lost]]:
    lost: list[Lost] = []
    slide = opened(path)
    try:
        return slide.read(top, left, height, width, lost), lost
    finally:
        slide.close()


def test_a_damaged_jpeg_tile_is_lost_and_not_filled_up(tmp_path: Path) -> None:
    """Imagecodecs decodes what is left of it and says nothing; openslide tells."""
    values = np.asarray(
        Image.fromarray(pixels((40, 40))).resize((512, 512), Image.Resampling.BICUBIC)
    )
    path, colours = tmp_path / "slide.tif", {"outcolorspace": "rgb"}
    tifffile.imwrite(
        path,
        values,
        tile=(128, 128),
        photometric="rgb",
        compression="jpeg",
        compressionargs=colours,
        metadata=None,
    )
    with tifffile.TiffFile(path) as file:
        start, count = file.pages[0].dataoffsets[6], file.pages[0].databytecounts[6]
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for _ in range(8):
        content, at = bytearray(whole), start + int(random.integers(count // 3, count - 40))
        content[at : at + 20] = bytes(20)
        (tmp_path / "spoilt.tif").write_bytes(content)
        values, lost = region(tmp_path / "spoilt.tif", 0, 0, 512, 512)
        assert [(one.x, one.y, one.reason.startswith("Corrupt JPEG")) for one in lost] == [
            (256, 128, True)
        ]
        assert not values[128:256, 256:384].any()


def test_what_is_left_out_is_white_and_what_ends_early_is_lost(tmp_path: Path) -> None:
    path = write(tmp_path / "slide.tif", pixels((256, 256)))
    with tifffile.TiffFile(path) as file:
        counts, end = file.pages[0].tags[325], file.pages[0].dataoffsets[3] + 20
    content = bytearray(path.read_bytes())
    content[counts.valueoffset + 4 : counts.valueoffset + 8] = bytes(4)
    (tmp_path / "sparse.tif").write_bytes(content)
    values, lost = region(tmp_path / "sparse.tif", 0, 128, 128, 128)
    assert (values == 255).all()
    assert not lost
    (tmp_path / "cut.tif").write_bytes(path.read_bytes()[:end])
    _, lost = region(tmp_path / "cut.tif", 0, 0, 256, 256)
    assert [(one.x, one.y, one.reason) for one in lost] == [
        (128, 128, "the file ends before it does")
    ]


def test_the_bits_of_a_store_are_of_all_files_of_a_slide(tmp_path: Path) -> None:
    from softless.slides.prints import belonging, image_print

    (tmp_path / "a").mkdir()
    for name in ("a.mrxs", "a/Slidedat.ini", "a/Data0001.dat"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "b.vms").write_text(
        "[Virtual Microscope Specimen]\nImageFile=b-1.jpg\nMapFile=b-map.jpg\n"
    )
    for name in ("b-1.jpg", "b-map.jpg", "other.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    for name in ("c.dcm", "d.dcm"):
        (tmp_path / name).write_bytes(bytes(128) + b"DICM" + name.encode())
    names = {
        name: [other.name for other in belonging(tmp_path / name)]
        for name in ("a.mrxs", "b.vms", "c.dcm", "other.jpg")
    }
    assert names == {
        "a.mrxs": ["Data0001.dat", "Slidedat.ini"],
        "b.vms": ["b-1.jpg", "b-map.jpg"],
        "c.dcm": ["d.dcm"],
        "other.jpg": [],
    }
    for name, other in (("a.mrxs", "a/Data0001.dat"), ("b.vms", "b-map.jpg"), ("c.dcm", "d.dcm")):
        before = image_print(tmp_path / name)
        (tmp_path / other).write_bytes(b"another")
        assert image_print(tmp_path / name) != before


def test_a_store_of_an_older_reader_is_not_continued(tmp_path: Path) -> None:
    import json

    from softless.errors import CheckpointError

    path, model = write(tmp_path / "slide.tif", pixels((160, 176))), vit(depth=1)
    first = stream(model, path, store=tmp_path / "run", saliency=False)
    about = json.loads((tmp_path / "run" / "about.json").read_text())
    (tmp_path / "run" / "about.json").write_text(json.dumps({**about, "version": 2}))
    with pytest.raises(CheckpointError, match="another version"):
        stream(model, path, store=tmp_path / "run", saliency=False)
    (tmp_path / "run" / "about.json").write_text(json.dumps(about))
    assert torch.equal(
        stream(model, path, store=tmp_path / "run", saliency=False).logits, first.logits
    )
