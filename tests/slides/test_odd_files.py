"""Real files of many makers, and small ones whose right answer is known: each is right, or refused
by name.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from softless.data.images import BadImage, decode
from softless.errors import DataError, NothingReadable
from softless.slides import stream
from tests.slides.models import vit
from tests.slides.test_levels import in_regions, opened
from tests.slides.test_reader import pixels

openslide = pytest.importorskip("openslide")
tifffile = pytest.importorskip("tifffile")

WHOLE = [
    "tcga-cr-7395-01a-01-ts1.svs",
    "openslide/boxes.tiff",
    "openslide/small.svs",
    "openslide/boxes_0.dcm",
    "openslide/boxes_1.dcm",
]
REFUSED = {
    "large_image/small_la.tiff": "2 samples a pixel",
    "large_image/test_L_16.png": "16-bit pixels",
    "openslide/unopenable.tiff": "a codec that is not read .compression 52479",
}


@pytest.fixture
def odd(data_root: Path) -> Path:
    return data_root / "slides_odd"


@pytest.mark.parametrize("name", WHOLE)
def test_every_level_is_the_one_that_openslide_reads_whole(name: str, odd: Path) -> None:
    with openslide.OpenSlide(str(odd / name)) as whole:
        for level, (width, height) in enumerate(whole.level_dimensions):
            slide = opened(odd / name, level)
            assert slide.size == (height, width)
            wanted = whole.read_region((0, 0), level, (width, height)).convert("RGB")
            assert np.array_equal(in_regions(slide, 700), np.asarray(wanted))
            slide.close()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_of_8_bits_is_refused_by_name(name: str, odd: Path) -> None:
    with pytest.raises(BadImage, match=REFUSED[name]):
        stream(vit(depth=1), odd / name, saliency=False)


def test_a_slide_whose_only_tile_is_damaged_has_no_answer(odd: Path) -> None:
    with pytest.raises(
        NothingReadable, match=r"unreadable\.svs: none of its 1 tiles .*Bogus marker length"
    ):
        stream(vit(depth=1), odd / "openslide" / "unreadable.svs", saliency=False)


@pytest.mark.parametrize("orientation", range(9))
def test_a_turned_pyramid_is_upright_at_every_level(orientation: int, odd: Path) -> None:
    path = odd / "large_image" / f"test_orient{orientation}.tif"
    with Image.open(path) as image:
        for level in range(3):
            image.seek(level)
            wanted = np.asarray(image.convert("RGB"))
            slide = opened(path, level)
            assert np.array_equal(in_regions(slide, 50), wanted)
            slide.close()
    first = opened(path)
    assert np.array_equal(np.asarray(decode(path).image), first.read(0, 0, *first.size))
    first.close()


def test_alpha_of_a_real_map_is_dropped(odd: Path) -> None:
    path = odd / "large_image" / "rgba_geotiff.tiff"
    stored = tifffile.imread(path)
    slide = opened(path)
    assert np.array_equal(in_regions(slide, 200), stored[..., :3])
    slide.close()
    assert np.array_equal(np.asarray(decode(path).image), stored[..., :3])


SMALL = pixels((240, 320))
TILED: dict[str, Any] = {"tile": (64, 64)}
OME = {
    "axes": "CYX",
    "PhysicalSizeX": 0.5,
    "PhysicalSizeXUnit": "µm",
    "PhysicalSizeY": 0.5,
    "PhysicalSizeYUnit": "µm",
}
KNOWN: dict[
    str, tuple[Any, dict[str, Any], dict[str, Any], str | np.ndarray]
] = {  # what is written and how, how it is looked at, what is right
    "12 bits, tiled": (SMALL.astype(np.uint16) * 16, TILED, {}, "16-bit pixels"),
    "12 bits, strips": (SMALL.astype(np.uint16) * 16, {}, {}, "16-bit pixels"),
    "CT": (SMALL[..., 0].astype(np.int16) - 100, TILED, {}, "signed pixels"),
    "fluorescence, tiled": (np.moveaxis(SMALL, -1, 0), TILED, {}, "3 grey pages of one size"),
    "fluorescence, strips": (np.moveaxis(SMALL, -1, 0), {}, {}, "3 grey pages of one size"),
    "fluorescence, chosen": (np.moveaxis(SMALL, -1, 0), TILED, {"channels": (0, 1, 2)}, SMALL),
    "fluorescence, one": (
        np.moveaxis(SMALL, -1, 0),
        TILED,
        {"page": 2},
        np.repeat(SMALL[..., 2:], 3, -1),
    ),
    "float": (SMALL.astype(np.float32) / 255, TILED, {}, "floating-point pixels"),
    "JPEG 2000": (
        SMALL,
        {**TILED, "compression": "jpeg2000", "compressionargs": {"reversible": True}},
        {},
        SMALL,
    ),
    "OME": (
        np.moveaxis(SMALL, -1, 0),
        {**TILED, "ome": True, "metadata": OME},
        {"mpp": 1.0},
        "3 pages that are the channels",
    ),
    "OME, chosen": (
        np.moveaxis(SMALL, -1, 0),
        {**TILED, "ome": True, "metadata": OME},
        {"mpp": 0.5, "channels": (0, 1, 2)},
        SMALL,
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_file_whose_right_answer_is_known(name: str, tmp_path: Path) -> None:
    values, how, look, right = KNOWN[name]
    path, model = tmp_path / "a.tif", vit(depth=1)
    photometric = "rgb" if values.shape[-1] == 3 else "minisblack"
    tifffile.imwrite(
        path,
        values,
        **{"metadata": None, "photometric": photometric, "compression": "deflate", **how},
    )
    if isinstance(right, str):
        with pytest.raises(DataError, match=rf"a\.tif holds .*{right}|a\.tif holds {right}"):
            stream(model, path, saliency=False, **look)
        return
    found = stream(model, path, saliency=False, **look)
    assert np.array_equal(found.logits.numpy(), stream(model, right, saliency=False).logits.numpy())
