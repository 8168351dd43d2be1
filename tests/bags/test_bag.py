"""`softless.Bag` in memory and in files: rows are read when they are asked for, and what cannot be
meant is refused in words.
"""

import pickle

import numpy as np
import pytest
import torch

import softless
from softless.errors import CoordinateError, DataError

GRID = np.array([[256.0 * x, 256.0 * y] for y in range(5) for x in range(6)])
FEATURES = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)


def test_a_bag_in_memory():
    bag = softless.Bag.of(torch.from_numpy(FEATURES), GRID, tile_um=256, mpp0=0.5, slide="a")
    assert len(bag) == 30
    assert bag.features.shape == (30, 8)
    assert bag.features.dtype == np.float32
    bag.features[3:7][:] = 0
    assert np.array_equal(bag.features[3:7], FEATURES[3:7])
    assert np.array_equal(np.asarray(bag.features), FEATURES)
    assert np.array_equal(bag.coords_um, GRID)
    assert np.array_equal(bag.coords_px0, 2 * GRID)
    assert (bag.tile_um, bag.tile_px0, bag.mpp0, bag.slide) == (256, 512, 0.5, "a")


@pytest.mark.parametrize(
    "which",
    [
        slice(2, 9),
        slice(None, None, 3),
        slice(-4, None),
        slice(8, 2),
        [5, 0, 29],
        -1,
        slice(40, 50),
    ],
)
def test_rows_are_those_of_numpy(which):
    assert np.array_equal(softless.Bag.of(FEATURES).features[which], FEATURES[which])
    mask = np.arange(30) % 4 == 1
    assert np.array_equal(softless.Bag.of(FEATURES).features[mask], FEATURES[mask])


def test_without_coordinates():
    bag = softless.Bag.of(FEATURES)
    assert bag.coords_um is None
    assert bag.coords_px0 is None
    assert bag.why_no_um == "it has no coordinates"


def test_types_of_two_bytes():
    assert softless.Bag.of(torch.ones(3, 4, dtype=torch.bfloat16)).features.dtype == np.float32
    assert softless.Bag.of(torch.ones(3, 4, dtype=torch.float16)).features.dtype == np.float16


@pytest.mark.parametrize(
    ("features", "coords", "sentence"),
    [
        (np.zeros((0, 8), np.float32), None, "no tiles"),
        (np.zeros((0,), np.float32), None, "no tiles"),
        (np.zeros((4,), np.float32), None, r"shape \(4,\)"),
        (np.zeros((4, 8), np.int64), None, "features are int64"),
        (np.zeros((4, 8), np.float32), np.zeros((4, 3)), r"shape \(4, 3\)"),
        (np.zeros((4, 8), np.float32), np.zeros((3, 2)), "4 rows of features and 3 coordinates"),
    ],
)
def test_shapes_that_are_no_bag(features, coords, sentence):
    with pytest.raises(DataError, match=sentence):
        softless.Bag.of(features, coords)


def test_a_row_that_is_not_finite_is_refused_where_it_is_read():
    broken = FEATURES.copy()
    broken[[7, 9], 3] = np.nan
    bag = softless.Bag.of(broken)
    assert np.array_equal(bag.features[:7], FEATURES[:7])
    with pytest.raises(DataError, match="2 rows of its features hold NaN or infinity, first row 7"):
        bag.features[5:12]


def test_a_lattice_that_contradicts_the_tile():
    with pytest.raises(CoordinateError, match="stand 256 apart, and tiles of 512 micrometres"):
        softless.Bag.of(FEATURES, GRID, tile_um=512)


def test_a_bag_passes_to_another_process():
    bag = pickle.loads(pickle.dumps(softless.Bag.of(FEATURES, GRID, tile_um=256)))
    assert np.array_equal(bag.features[4:6], FEATURES[4:6])
    assert np.array_equal(bag.coords_um, GRID)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_seen_in_every_type(kind, number):
    features = np.array([[0.0, -0.0, 65504.0, -65504.0]] * 4, dtype=kind)
    assert np.array_equal(np.asarray(softless.Bag.of(features).features), features)
    features[2, 1] = number
    with pytest.raises(DataError, match="first row 2"):
        np.asarray(softless.Bag.of(features).features)
    assert len(softless.Bag.of(features.T.copy().T).features[:2]) == 2


def test_tiles_in_one_place():
    with pytest.raises(CoordinateError, match=r"all 30 tiles stand at \(256, 512\)"):
        softless.Bag.of(FEATURES, np.full((30, 2), (256.0, 512.0)))
