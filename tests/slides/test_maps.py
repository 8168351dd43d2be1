"""What leaves a slide: arrays, polygons for a viewer and a picture with a scale bar, each at its
place.
"""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from softless.errors import UsageError
from softless.slides import Lattice, Map, Maps, files, maps_of, save_maps, stream, thumbnail
from softless.slides.engine import BadTile
from softless.slides.maps import CELLS, as_geojson, drawn, pooled, round_length
from softless.slides.reader import Placement
from tests.slides.models import vit, xcit
from tests.slides.test_reader import TILE, pixels, spoil, write

openslide = pytest.importorskip("openslide")
BOUNDS = {"x": 100, "y": 40, "width": 200, "height": 300}


def features(maps: Maps) -> list[dict[str, Any]]:
    found = json.loads(as_geojson(maps))
    assert found["type"] == "FeatureCollection"
    return list(found["features"])


def corners(feature: dict[str, Any]) -> tuple[float, ...]:
    (ring,) = feature["geometry"]["coordinates"]
    assert ring[0] == ring[-1]
    assert len(ring) == 5
    x, y = zip(*ring, strict=True)
    assert (
        set(ring[0]) | set(ring[2]) == {min(x), min(y), max(x), max(y)} or len(set(x) | set(y)) < 4
    )
    return min(x), min(y), max(x), max(y)


@pytest.mark.parametrize(("level", "factor"), [(0, 1), (1, 2), (2, 4)])
def test_polygons_are_the_patches_in_pixels_of_level_0(
    level: int, factor: int, tmp_path: Path
) -> None:
    path = write(tmp_path / "slide.tif", pixels((400, 600)), levels=3)
    result = stream(vit(depth=1), path, level=level)
    found = features(maps_of(result))
    side, (rows, columns) = 16 * factor, result.grid
    wanted = [
        (x * side, y * side, min((x + 1) * side, 600), min((y + 1) * side, 400))
        for y in range(rows)
        for x in range(columns)
    ]
    assert [corners(one) for one in found] == wanted
    assert result.saliency is not None
    keys = result.saliency.key[0].flatten().tolist()
    told = [one["properties"]["measurements"]["key"] for one in found]
    assert told == pytest.approx(keys, abs=1e-4)


def test_at_another_resolution_corners_meet_and_end_at_the_slide(tmp_path: Path) -> None:
    path = write(tmp_path / "slide.tif", pixels((400, 600)), mpp=0.5)
    result = stream(vit(depth=1), path, mpp=0.85)
    found = [corners(one) for one in features(maps_of(result))]
    assert max(x for _, _, x, _ in found) == 600
    assert max(y for _, _, _, y in found) == 400
    columns = result.grid[1]
    for one, following in itertools.pairwise(found[:columns]):
        assert one[2] == following[0]
    assert found[1][0] == pytest.approx(16 * 0.85 / 0.5, rel=0.01)


def bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read through openslide, and say where they were scanned."""
    told = {f"openslide.bounds-{name}": str(value) for name, value in BOUNDS.items()}
    plain = openslide.OpenSlide.properties.fget
    monkeypatch.setattr(
        openslide.OpenSlide, "properties", property(lambda self: {**plain(self), **told})
    )
    monkeypatch.setattr(files.tiff_pages, "opened", lambda _: None)


def test_qupath_counts_from_the_corner_of_what_was_scanned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "slide.tif", pixels((400, 600)))
    bounded(monkeypatch)
    result = stream(vit(depth=1), path)
    assert result.bounds == tuple(BOUNDS.values())
    slide, qupath = (features(maps_of(result, origin)) for origin in ("slide", "qupath"))
    for one, other in zip(slide, qupath, strict=True):
        x0, y0, x1, y1 = corners(one)
        assert corners(other) == (x0 - 100, y0 - 40, x1 - 100, y1 - 40)


def test_a_marked_tile_lies_where_a_viewer_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The patch whose key is largest, cut out of the file by openslide at the polygon's corners, is
    the marked one.
    """
    values = np.full((400, 600, 3), 240, dtype=np.uint8)
    values[208:224, 352:368] = (90, 30, 120)
    path = write(tmp_path / "slide.tif", values)
    bounded(monkeypatch)
    (marked,) = np.argwhere(np.isclose(values[8::16, 8::16], (90, 30, 120)).all(-1))
    result = stream(vit(depth=1), path)
    keys = np.zeros(result.grid, dtype=np.float32)
    keys[tuple(marked)] = 1
    found = features(Maps([Map("mark", keys)], result.lattice("qupath")))
    (one,) = [feature for feature in found if feature["properties"]["measurements"]["mark"] == 1]
    x0, y0, x1, y1 = (int(side) for side in corners(one))
    with openslide.OpenSlide(str(path)) as viewer:  # which adds the bounds to what QuPath counts
        seen = viewer.read_region(
            (x0 + BOUNDS["x"], y0 + BOUNDS["y"]), 0, (x1 - x0, y1 - y0)
        ).convert("RGB")
    assert (np.asarray(seen) == (90, 30, 120)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_of_a_turned_file_qupath_gets_places_as_they_are_stored(
    orientation: int, tmp_path: Path
) -> None:
    tifffile = pytest.importorskip("tifffile")
    stored = np.full((192, 256, 3), 240, dtype=np.uint8)
    stored[32:48, 160:176] = (90, 30, 120)
    path = tmp_path / "turned.tif"
    tag = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(path, stored, tile=(64, 64), photometric="rgb", extratags=tag, metadata=None)
    result = stream(vit(depth=1), path)
    upright = np.asarray(thumbnail(path, side=1000))
    marks = (
        (upright == (90, 30, 120))
        .all(-1)
        .reshape(result.grid[0], 16, result.grid[1], 16)
        .all((1, 3))
    )
    maps = [
        Maps([Map("mark", marks.astype(np.float32))], result.lattice(origin))
        for origin in ("slide", "qupath")
    ]
    seen = [
        corners(one)
        for found in maps
        for one in features(found)
        if one["properties"]["measurements"]["mark"] == 1
    ]
    x0, y0, x1, y1 = (int(side) for side in seen[0])
    assert (upright[y0:y1, x0:x1] == (90, 30, 120)).all()
    assert seen[1] == (160, 32, 176, 48)


def test_what_does_not_count_is_left_out_and_what_cannot_be_read_is_a_point(tmp_path: Path) -> None:
    path = spoil(write(tmp_path / "slide.tif", pixels((512, 512))), [5])
    mask = np.ones((32, 32), dtype=bool)
    mask[:4] = False
    result = stream(vit(depth=1), path, mask=mask)
    assert result.mask is not None
    lost = np.zeros_like(mask)
    lost[8:16, 8:16] = True
    assert np.array_equal(result.mask.numpy(), mask & ~lost)
    found = features(maps_of(result))
    points = [one for one in found if one["geometry"]["type"] == "Point"]
    assert [one["geometry"]["coordinates"] for one in points] == [[TILE, TILE]]
    assert points[0]["properties"]["classification"]["name"] == "cannot be read"
    places = {corners(one)[:2] for one in found if one not in points}
    assert places == {(16 * x, 16 * y) for y, x in np.argwhere(mask & ~lost)}


def test_there_are_no_more_polygons_than_a_viewer_takes() -> None:
    grid = (301, 407)  # 122,507 patches
    values = np.random.default_rng(0).random(grid).astype(np.float32)
    values[:50] = np.nan
    maps = Maps([Map("query", values)], Lattice(grid, (16, 16), (301 * 16 - 3, 407 * 16 - 5)))
    found = features(maps)
    assert maps.side == 2
    assert CELLS / 4 < len(found) <= CELLS
    first = found[0]
    assert corners(first) == (0, 50 * 16, 32, 52 * 16)
    assert first["properties"]["measurements"]["query"] == pytest.approx(
        values[50:52, :2].mean(), abs=1e-4
    )
    assert corners(found[-1]) == (406 * 16, 300 * 16, 407 * 16 - 5, 301 * 16 - 3)
    assert len(as_geojson(maps)) < 30e6


def test_a_mean_over_a_square_is_of_what_counts() -> None:
    values = np.array([[1, np.nan, 3], [5, 7, np.nan], [np.nan, np.nan, 2]], dtype=np.float32)
    assert np.allclose(pooled(values, 2), [[13 / 3, 3], [np.nan, 2]], equal_nan=True)


def test_classes_are_parts_of_the_range_with_its_colours() -> None:
    size = Map("key", np.array([[0, 0.19, 0.2, 0.99, 1]], dtype=np.float32))
    assert [size.band(value) for value in size.values[0]] == [0, 0, 1, 4, 4]
    assert size.band_name(4) == "key 0.8 to 1"
    signed = replace(size, name="class row", signed=True)
    assert [signed.band(value) for value in (-1, -0.61, 0, 0.59, 1)] == [0, 0, 2, 3, 4]
    assert (signed.band_name(0), signed.band_name(2)) == (
        "class row -1 to -0.6",
        "class row -0.2 to 0.2",
    )
    assert len({tuple(signed.colour(number)) for number in range(5)}) == 5


@pytest.mark.parametrize("make", [vit, xcit], ids=["vit", "xcit"])
def test_files_hold_the_maps(make: Any, tmp_path: Path) -> None:
    values = pixels((330, 250))
    mask = np.ones((21, 16), dtype=bool)
    mask[:, :3] = False
    result = stream(make(depth=1), values, mask=mask)
    assert result.saliency is not None
    assert result.saliency.class_row is not None
    written = save_maps(maps_of(result), Image.fromarray(values), tmp_path, title="a <slide>\n")
    assert [file.name for file in written] == [
        "query.npy",
        "key.npy",
        "class_row.npy",
        "overlay.png",
        "saliency.geojson",
    ]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(file.name for file in written)
    whole = {
        "query": result.saliency.query,
        "key": result.saliency.key,
        "class_row": result.saliency.class_row,
    }
    for name, wanted in whole.items():
        found = np.load(tmp_path / f"{name}.npy")
        assert found.dtype == np.float32
        assert np.isnan(found[:, :3]).all()
        assert np.array_equal(found[:, 3:], wanted[0].numpy()[:, 3:])
    without = stream(make(depth=1), values, saliency=False)
    with pytest.raises(UsageError, match="the answer has no maps"):
        maps_of(without)


def test_the_picture_shows_each_value_on_its_patch() -> None:
    """Four patches, of which one does not count; the last ones reach beyond the image."""
    lattice = Lattice((2, 2), (100, 100), (160, 180))
    values = np.array([[0, 1], [np.nan, 0.5]], dtype=np.float32)
    picture = Image.new("RGB", (720, 640), (120, 90, 140))
    found = np.asarray(drawn(Maps([Map("key", values)], lattice), picture)).astype(int)
    assert found.shape[0] > 640
    assert found.shape[1] == 720
    at = {
        name: found[y, x]
        for name, (y, x) in {
            "low": (20, 20),
            "edge": (399, 399),
            "high": (20, 401),
            "veiled": (420, 200),
            "half": (401, 401),
        }.items()
    }
    assert (at["low"] == at["edge"]).all()
    assert (at["veiled"] > (200, 190, 210)).all()
    assert at["high"][0] > at["low"][0]
    assert len({tuple(colour) for colour in at.values()}) == 4


@pytest.mark.parametrize(
    ("mpp", "scale", "length"),
    [((0.5, 0.5), 1.0, 100), ((0.25, 0.25), 1.0, 50), (None, 1.0, 200), (None, 4.0, 500)],
)
def test_the_scale_bar_has_its_length(mpp: Any, scale: float, length: float) -> None:
    lattice = Lattice((50, 63), (16, 16), (800, 1000), Placement(mpp=mpp, scale=(scale, scale)))
    picture = Image.new("RGB", (2000, 1600), (120, 90, 140))
    found = np.asarray(
        drawn(Maps([Map("key", np.zeros((50, 63), dtype=np.float32))], lattice), picture)
    )
    line = (found[1600 - 18, 16:1500] < 60).all(-1)
    pixels_long = int(np.argmin(line))
    across = 1000 * (mpp[1] if mpp else scale)
    assert pixels_long == pytest.approx(length / across * 2000, abs=1)


def test_a_round_length_is_one_two_or_five() -> None:
    assert [round_length(most) for most in (1, 1.99, 2, 4.9, 5, 9.99, 10, 234, 0.03)] == [
        1,
        1,
        2,
        2,
        5,
        5,
        10,
        200,
        0.02,
    ]


def test_a_hostile_reason_is_text(tmp_path: Path) -> None:
    tile = BadTile(0, 0, 0, 'a "reason"\n</script>\x1b[31m')
    maps = Maps(
        [Map("key", np.zeros((1, 1), dtype=np.float32))],
        Lattice((1, 1), (16, 16), (16, 16)),
        [tile],
    )
    assert "\x1b" not in as_geojson(maps)
    assert len(features(maps)) == 2


def test_the_small_picture_of_an_array_is_its_own(tmp_path: Path) -> None:
    result = stream(vit(depth=1), pixels((100, 120)))
    assert result.mask is None
    assert torch.isfinite(result.logits).all()
