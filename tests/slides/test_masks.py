"""Masks from files: a picture or polygons, in whose pixels, and what is no mask of an image."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from softless.data.images import BadImage
from softless.errors import DataError, UsageError
from softless.slides import Lattice, stream
from softless.slides.masks import mask_of, shares
from softless.slides.reader import Placement
from tests.slides.models import vit
from tests.slides.test_reader import pixels

SIZE, PATCH = (330, 250), 16  # 21 x 16 patches, the last ones in part beyond the image
GRID = (21, 16)
WHOLE = Lattice(GRID, (PATCH, PATCH), SIZE)
HOLE = [
    [[32, 48], [208, 48], [208, 288], [32, 288], [32, 48]],
    [[64, 96], [128, 96], [128, 160], [64, 160], [64, 96]],
]
RING = [[10, 20], [90, 20], [90, 100], [10, 100], [10, 20]]
SQUARE = {"type": "Polygon", "coordinates": [RING]}


def drawn(size: tuple[int, int] = SIZE) -> np.ndarray:
    """A disc and a bar, as a mask of a size."""
    y, x = ((np.arange(side) + 0.5) / side for side in size)
    disc = (y[:, None] - 0.4) ** 2 + (x[None] - 0.5) ** 2 < 0.09
    return disc | ((y[:, None] > 0.8) & (x[None] < 0.6))


def by_pixels(mask: np.ndarray, lattice: Lattice = WHOLE) -> np.ndarray:
    """Patches half inside a mask (height, width) of every pixel that is read."""
    rows, columns = np.arange(lattice.size[0]) // PATCH, np.arange(lattice.size[1]) // PATCH
    inside, areas = np.zeros(lattice.grid), np.zeros(lattice.grid)
    np.add.at(inside, (rows[:, None], columns[None]), mask)
    np.add.at(areas, (rows[:, None], columns[None]), 1)
    return inside / areas >= 0.5


def polygons(path: Path, *shapes: Any, kind: str = "collection") -> Path:
    features = [
        shape if "geometry" in shape else {"type": "Feature", "properties": {}, "geometry": shape}
        for shape in shapes
    ]
    content = {
        "collection": {"type": "FeatureCollection", "features": features},
        "list": features,
        "one": features[0],
        "bare": features[0]["geometry"],
    }[kind]
    path.write_text(json.dumps(content))
    return path


def pairs(edges: np.ndarray) -> np.ndarray:
    return np.stack([edges[:-1], edges[1:]], axis=1)


def test_shares_of_rectangles_that_lie_over_one_another() -> None:
    values = np.random.default_rng(1).random((9, 7)) > 0.5
    rows, columns = np.array([[0, 4], [2, 6], [5, 11.0]]), np.array([[0, 7], [1, 2.0]])
    found = shares(values, rows, columns)
    assert found[1, 0] == pytest.approx(values[2:6].mean())
    assert found[2, 1] == pytest.approx(values[5:, 1].sum() / 6)


def test_shares_are_the_means_of_rectangles() -> None:
    values = np.random.default_rng(0).random((14, 23)) > 0.5
    rows, columns = np.array([0, 0.25, 3.5, 3.75, 14]), np.array([-1, 2.5, 20, 25.0])
    fine = np.pad(np.kron(values, np.ones((4, 4))), ((0, 0), (4, 8)))  # a quarter of a pixel each
    for row, column in np.ndindex(4, 3):
        y, x = (
            (rows[row : row + 2] * 4).astype(int),
            (columns[column : column + 2] * 4 + 4).astype(int),
        )
        wanted = fine[y[0] : y[1], x[0] : x[1]].mean()
        means = shares(values, pairs(rows), pairs(columns))
        assert means[row, column] == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("mode", ["L", "1", "P", "one", "RGB"])
def test_a_picture_of_the_same_size_is_the_mask_of_its_pixels(mode: str, tmp_path: Path) -> None:
    values = drawn()
    image = Image.fromarray(values.astype(np.uint8) * (1 if mode == "one" else 255))
    (image if mode == "one" else image.convert(mode)).save(tmp_path / "mask.png")
    assert np.array_equal(mask_of(tmp_path / "mask.png", WHOLE), by_pixels(values))


@pytest.mark.parametrize("size", [(165, 125), (660, 500), (47, 36), (331, 251), (110, 83)])
def test_a_picture_at_another_scale_is_the_same_mask_but_for_its_pixels(
    size: tuple[int, int], tmp_path: Path
) -> None:
    Image.fromarray(drawn(size)).save(tmp_path / "mask.png")
    found, wanted = mask_of(tmp_path / "mask.png", WHOLE), by_pixels(drawn())
    near = np.zeros(GRID, dtype=bool)  # patches at an edge of what was drawn
    whole = drawn()
    for row, column in np.ndindex(GRID):
        part = whole[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
        near[row, column] = part.any() and not part.all()
    assert np.array_equal(found | near, wanted | near)


def test_polygons_count_with_holes_in_pixels_of_level_0(tmp_path: Path) -> None:
    values = np.zeros((660, 500), dtype=bool)
    values[48:288, 32:208] = True
    values[96:160, 64:128] = False
    file = polygons(tmp_path / "mask.geojson", {"type": "Polygon", "coordinates": HOLE})
    at_two = Lattice(
        GRID, (PATCH, PATCH), SIZE, Placement(level=1, scale=(2.0, 2.0), step=(2.0, 2.0))
    )
    wanted = by_pixels(values.reshape(330, 2, 250, 2).mean((1, 3)))
    assert np.array_equal(mask_of(file, at_two), wanted)
    assert wanted.any()


@pytest.mark.parametrize("kind", ["collection", "list", "one", "bare"])
def test_every_form_of_the_file_is_read(kind: str, tmp_path: Path) -> None:
    values = np.zeros(SIZE, dtype=bool)
    values[20:100, 10:90] = True
    found = mask_of(polygons(tmp_path / "mask.json", SQUARE, kind=kind), WHOLE)
    assert np.array_equal(found, by_pixels(values))


def test_several_polygons_join_and_qupaths_ignored_ones_do_not_count(tmp_path: Path) -> None:
    parts = {
        "type": "MultiPolygon",
        "coordinates": [[[[160, 160], [240, 160], [240, 240], [160, 240], [160, 160]]]],
    }
    ignored = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": HOLE},
        "properties": {"classification": {"name": "Ignore*"}},
    }
    values = np.zeros(SIZE, dtype=bool)
    values[20:100, 10:90] = values[160:240, 160:240] = True
    found = mask_of(polygons(tmp_path / "mask.geojson", SQUARE, parts, ignored), WHOLE)
    assert np.array_equal(found, by_pixels(values))


def test_a_slanted_outline_counts_patches_that_lie_half_inside(tmp_path: Path) -> None:
    triangle = {
        "type": "Polygon",
        "coordinates": [[[7.5, 11.25], [241, 90], [60, 322], [7.5, 11.25]]],
    }
    found = mask_of(polygons(tmp_path / "mask.geojson", triangle), WHOLE)
    shapely = pytest.importorskip("shapely")
    region = shapely.from_geojson(json.dumps(triangle))
    for row, column in np.ndindex(GRID):
        x0, y0, x1, y1 = WHOLE.rectangle(row, column, row + 1, column + 1)
        share = region.intersection(shapely.box(x0, y0, x1, y1)).area / ((x1 - x0) * (y1 - y0))
        if abs(share - 0.5) > 0.05:  # of 64 places in a patch
            assert found[row, column] == (share > 0.5), (row, column, share)


BOUNDS = (40, 60, 160, 200)  # x, y, width, height


def test_qupath_counts_from_the_corner_of_the_bounds(tmp_path: Path) -> None:
    place = Placement(bounds=BOUNDS)
    qupath, slide = (
        Lattice(GRID, (PATCH, PATCH), SIZE, place, origin) for origin in ("qupath", "slide")
    )
    moved = {"type": "Polygon", "coordinates": [[[x - 40, y - 60] for x, y in RING]]}
    wanted = mask_of(polygons(tmp_path / "a.geojson", SQUARE), slide)
    assert np.array_equal(mask_of(polygons(tmp_path / "b.geojson", moved), qupath), wanted)
    values = drawn()
    Image.fromarray(values[60:260, 40:200]).save(tmp_path / "shown.png")
    inside = np.zeros_like(values)
    inside[60:260, 40:200] = values[60:260, 40:200]
    assert np.array_equal(mask_of(tmp_path / "shown.png", qupath), by_pixels(inside))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_qupath_does_not_turn_a_picture_by_its_orientation(
    orientation: int, tmp_path: Path
) -> None:
    upright = Lattice(GRID, (PATCH, PATCH), SIZE, Placement(orientation=orientation))
    shown = Lattice(GRID, (PATCH, PATCH), SIZE, Placement(orientation=orientation), "qupath")
    values = drawn()
    stored = next(
        turned
        for turns in range(4)
        for turned in (np.rot90(values, turns), np.rot90(values, turns)[:, ::-1])
        if np.array_equal(shown.turned(turned) if turned.shape[0] in SIZE else turned, values)
    )
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "stored.png")
    assert np.array_equal(mask_of(tmp_path / "stored.png", shown), by_pixels(values))
    points = np.array([[10.0, 20.0], [90.0, 100.0], [249.0, 329.0]])
    for x, y in points:  # a marked pixel of the upright picture is the same pixel of the stored one
        marked = np.zeros(SIZE, dtype=bool)
        marked[int(y), int(x)] = True
        ((across, down),) = shown.counted(np.array([[x + 0.5, y + 0.5]]))
        kept = np.zeros(stored.shape, dtype=bool)
        kept[int(down), int(across)] = True
        assert np.array_equal(shown.turned(kept), marked)
    assert np.allclose(shown.upright(shown.counted(points)), points)
    assert np.array_equal(upright.counted(points), points)


def test_a_masked_answer_from_a_file_is_that_of_the_same_booleans(tmp_path: Path) -> None:
    model, values, mask = vit(), pixels(SIZE), drawn()
    Image.fromarray(mask).save(tmp_path / "mask.png")
    found = stream(model, values, mask=tmp_path / "mask.png")
    wanted = stream(model, values, mask=by_pixels(mask))
    assert torch.equal(found.logits, wanted.logits)
    assert found.mask is not None
    assert found.counted == 1 + int(by_pixels(mask).sum()) == 1 + int(found.mask.sum())
    assert not torch.allclose(found.logits, stream(model, values).logits, rtol=1e-3)


def _grey(path: Path) -> None:
    Image.fromarray(np.arange(330 * 250, dtype=np.uint32).astype(np.uint8).reshape(SIZE)).save(path)


def _other_shape(path: Path) -> None:
    Image.fromarray(drawn((250, 330))).save(path)


def _colours(path: Path) -> None:
    Image.fromarray(pixels(SIZE)).save(path)


def _nothing(path: Path) -> None:
    Image.fromarray(np.zeros(SIZE, dtype=np.uint8)).save(path)


def _one_and_two(path: Path) -> None:
    Image.fromarray((drawn() + 1).astype(np.uint8)).save(path)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (_grey, "has 256 values"),
        (
            _other_shape,
            r"is 330 x 250 pixels, which is not the shape of the image \(250 x 330 at level 0\)",
        ),
        (_colours, "colours"),
        (_nothing, "leaves no patch"),
        (_one_and_two, r"has 2 values \(1, 2\)"),
        (lambda path: path.write_bytes(b"no picture"), "cannot be read|no image|not an image"),
    ],
)
def test_a_picture_that_is_no_mask_is_refused_by_name(
    write: Any, says: str, tmp_path: Path
) -> None:
    write(tmp_path / "mask.png")
    with pytest.raises((DataError, BadImage), match=says):
        mask_of(tmp_path / "mask.png", WHOLE)


POINT = {"type": "Point", "coordinates": [1, 2]}
BOW = {"type": "Polygon", "coordinates": [[[0, 0], [90, 90], [90, 0], [0, 90], [0, 0]]]}
FAR = {"type": "Polygon", "coordinates": [[[9000, 9000], [9900, 9000], [9900, 9900], [9000, 9000]]]}
IGNORED = {
    "type": "Feature",
    "geometry": SQUARE,
    "properties": {"classification": {"name": "Ignore*"}},
}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (json.dumps(POINT), "feature 0 is a Point, and a mask is made of polygons"),
        (json.dumps(BOW), "no simple polygon .Self-intersection"),
        (json.dumps(FAR), "leaves no patch of the image"),
        (json.dumps(IGNORED), "holds no polygon that counts"),
        ("{", "is no GeoJSON: "),
        ("[" * 100_000, "is no GeoJSON: "),
        ("3", "holds a int in place of an object"),
        ('{"type": "FeatureCollection", "features": 3}', "has no list of features"),
        ('{"type": "FeatureCollection", "features": []}', "holds no polygon that counts"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}', "feature 0 cannot be read"),
        ('{"type": "Polygon", "coordinates": "no"}', "feature 0 cannot be read"),
        ('[{"type": "Feature", "geometry": null}]', "feature 0 is a NoneType"),
        (
            json.dumps(SQUARE).replace("10,", "NaN,"),
            "cannot be read|coordinates that are no numbers",
        ),
    ],
)
def test_a_file_of_outlines_that_is_none_is_refused_by_name(
    text: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / "mask.geojson").write_text(text)
    with pytest.raises(DataError, match=says) as caught:
        mask_of(tmp_path / "mask.geojson", WHOLE)
    assert len(str(caught.value).splitlines()) == 1


def test_what_else_a_mask_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no mask at"):
        mask_of(tmp_path / "none.png", WHOLE)
    with pytest.raises(DataError, match="no mask that is read"):
        mask_of(tmp_path / "mask.jpg", WHOLE)
    with pytest.raises(UsageError, match="origin=viewer: give slide"):
        Lattice(GRID, (PATCH, PATCH), SIZE, origin="viewer")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="mask= and tissue=otsu both"):
        stream(vit(depth=1), pixels(SIZE), mask=by_pixels(drawn()), tissue="otsu")
    with pytest.raises(UsageError, match="tissue=all: give otsu"):
        stream(vit(depth=1), pixels(SIZE), tissue="all")
