"""The same tiles in the files of eight tools and more are read as the same; what a file does not
say of its units is asked for in words; mistakes of units are errors.
"""

import os
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import softless
from softless.bags.layouts.table import LAYOUTS
from softless.errors import CoordinateError, DataError, UsageError
from tests.bags import writers
from tests.bags.writers import MPP0, SIDE, SIDE_UM, tiles

OVER_ALL = pytest.mark.parametrize("layout", writers.LAYOUTS)


def opened(root: Path, tool: str, **changed: Any) -> softless.Bag:
    write, options = writers.LAYOUTS[tool]
    path = write(root, tiles())
    options = {**options, **changed}
    if "coords" in options:
        options["coords"] = root / options["coords"]
    return softless.Bag.open(path, **options)


@OVER_ALL
def test_the_same_tiles_whatever_wrote_them(tmp_path, layout):
    slide, bag = tiles(), opened(tmp_path, layout)
    assert np.array_equal(np.asarray(bag.features), slide.features)
    assert bag.features.shape == slide.features.shape
    assert bag.coords_um is not None
    assert bag.coords_px0 is not None
    assert np.abs(bag.coords_um - slide.um).max() <= 1e-3
    assert np.abs(bag.coords_px0 - slide.px0).max() <= 1e-3
    assert bag.tile_um == SIDE_UM
    assert bag.tile_px0 == SIDE
    assert bag.mpp0 == MPP0
    assert bag.slide == slide.slide
    assert bag.layout == layout.split()[0].replace("npz", "plain").replace("npy", "plain").replace(
        "pt", "plain"
    ).replace("zarr", "plain").replace("slide2vec plain", "slide2vec")


def test_every_layout_is_written_here():
    tools = {layout.split()[0] for layout in writers.LAYOUTS} - {"npz", "npy", "pt", "zarr"}
    assert tools | {"plain", "stamp-historic"} == LAYOUTS.keys()


@OVER_ALL
def test_some_rows_are_read_alone_and_in_another_process(tmp_path, layout):
    slide, bag = tiles(), pickle.loads(pickle.dumps(opened(tmp_path, layout)))
    rows = bag.features[17:33]
    assert rows.flags.writeable
    rows[:] = 0  # what was read is the reader's own
    assert np.array_equal(bag.features[17:33], slide.features[17:33])
    assert np.array_equal(bag.features[[40, 2]], slide.features[[40, 2]])
    assert bag.features.dtype == (np.float16 if layout.startswith("stamp") else np.float32)


@pytest.mark.parametrize(
    ("layout", "encoder"),
    [
        ("trident", "uni_v1"),
        ("trident pt", "uni_v1"),
        ("clam", None),
        ("stamp", "uni"),
        ("slide2vec", "uni"),
        ("gigapath", "prov-gigapath"),
    ],
)
def test_the_encoder_where_it_is_stored(tmp_path, layout, encoder):
    assert opened(tmp_path, layout).encoder == encoder


def test_an_encoder_that_was_none_is_that_of_the_folder(tmp_path):
    """TRIDENT writes 'None' as text."""
    path = writers.trident(tmp_path, tiles(), encoder=None)
    assert softless.Bag.open(path).encoder == "own"


def test_historic_files_of_stamp_are_read_only_by_name(tmp_path):
    path = writers.stamp_historic(tmp_path, tiles())
    with pytest.raises(CoordinateError, match="does not say what unit"):
        _ = softless.Bag.open(path).coords_um
    bag = softless.Bag.open(path, layout="stamp-historic")
    assert bag.coords_um is not None
    assert np.abs(bag.coords_um - tiles().px0 / SIDE * 256).max() <= 1e-9
    assert bag.tile_um == 256
    with pytest.raises(CoordinateError, match=r"stand 512 apart, and those of .* 224"):
        softless.Bag.open(writers.mopadi(tmp_path, tiles()), layout="stamp-historic")


@pytest.mark.parametrize("write", [writers.kronos, writers.mopadi_names])
def test_files_without_coordinates(tmp_path, write):
    bag = softless.Bag.open(write(tmp_path, tiles()))
    assert np.array_equal(np.asarray(bag.features), tiles().features)
    assert bag.coords_um is None
    assert bag.coords_px0 is None
    assert "no coordinates" in " ".join(bag.remarks)


def test_overlapping_tiles(tmp_path):
    slide = tiles(step=384)
    path = writers.trident(tmp_path, slide, overlap=64)
    bag = softless.Bag.open(path, slide_mpp=MPP0)
    assert (bag.overlap_um, bag.tile_um) == (32, 128)
    with pytest.raises(CoordinateError, match=r"stand 384 apart, and tiles of 512 .* stand 512"):
        softless.Bag.open(writers.trident(tmp_path / "b", slide))
    path = writers.clam(tmp_path / "c", slide)
    with pytest.raises(CoordinateError, match="overlap="):
        softless.Bag.open(path)
    assert softless.Bag.open(path, overlap=128).tile_px0 == 512


def test_what_is_not_known_does_not_keep_features_from_being_read(tmp_path):
    bag = softless.Bag.open(writers.trident(tmp_path, tiles()))
    assert np.array_equal(bag.features[:5], tiles().features[:5])
    assert bag.coords_px0 is not None
    assert bag.tile_um is None
    assert "slide_mpp=" in bag.why_no_um
    with pytest.raises(CoordinateError, match="slide_mpp="):
        _ = bag.coords_um


MISTAKES: dict[str, tuple[str, dict[str, Any], str]] = {
    "micrometres taken for pixels": ("stamp", {"unit": "px0"}, "micrometres .* level-0 pixels"),
    "pixels taken for micrometres": ("trident", {"unit": "um"}, "level-0 pixels .* micrometres"),
    "no unit at all": ("mopadi", {"unit": None, "slide_mpp": None}, "unit='um', or unit='px0'"),
    "pixels of an unknown size": ("mopadi", {"slide_mpp": None}, "give slide_mpp="),
    "a resolution without a unit": ("mopadi", {"unit": None}, "unit of the coordinates"),
    "the tile of another level": ("mopadi", {"tile": 256}, "stand 512 apart, and tiles of 256"),
    "a tile twice as large": ("mopadi", {"tile": 1024}, "stand 512 apart, and tiles of 1024"),
    "a tile in micrometres": ("mopadi", {"tile": 128}, "stand 512 apart, and tiles of 128"),
    "a tile in pixels": ("npz", {"tile": 512}, "stand 128 apart, and tiles of 512"),
    "another tile than the file's": ("stamp", {"tile": 256}, "is 128 .* tile=256"),
    "another resolution than stored": ("slide2vec", {"slide_mpp": 0.5}, "0.25 .* slide_mpp=0.5"),
    "a resolution of another level": (
        "trident",
        {"slide_mpp": 1.0},
        "40 times, .* 0.25 .* slide_mpp=1",
    ),
    "nanometres": ("trident", {"slide_mpp": 250.0}, "between 0.01 and 100"),
    "level 0 for half a micrometre": (
        "gigapath",
        {"layout": None, "unit": "px0", "tile": 512},
        "stand 256 apart, and tiles of 512",
    ),
    "a unit that is none": ("mopadi", {"unit": "px"}, "no unit of coordinates named 'px'"),
    "a side below 0": ("mopadi", {"tile": -1}, "tile=-1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_of_units_are_errors(tmp_path, mistake):
    layout, changed, sentence = MISTAKES[mistake]
    with pytest.raises(UsageError, match=sentence):
        _ = opened(tmp_path, layout, **changed).coords_um


def grid_steps(root):
    return writers.trident(root, writers.replace(tiles(), px0=tiles().px0 // SIDE))


def beyond_the_slide(root):
    return writers.trident(root, tiles(), level0_width=5_000)


def another_magnification(root):
    return writers.trident(root, tiles(), level0_magnification=20)


def pixels_in_stamp(root):
    return writers.stamp(root, writers.replace(tiles(), px0=tiles().px0 * 4))


def another_downsample(root):
    return writers.clam(root, tiles(), downsample=np.array([4.0, 4.0]))


def another_order(root):
    """x and y in turn: the slide is wider than high."""
    slide = tiles(270)
    turned = writers.replace(slide, px0=slide.px0[:, ::-1] + [8000, 0])
    return writers.trident(root, turned, level0_height=9_000, level0_width=15_000)


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (grid_steps, "stand 1 apart, and tiles of 512"),
        (beyond_the_slide, "level 0 has 5000 x 16000 pixels"),
        (another_magnification, "patch_size_level0 is 512, and patch_size 256 .* is 256"),
        (pixels_in_stamp, "stand 512 apart, and tiles of 128 micrometres"),
        (another_downsample, "stand 512 apart, and tiles of 1024"),
        (another_order, "level 0 has 15000 x 9000"),
    ],
)
def test_files_that_contradict_themselves(tmp_path, write, sentence):
    with pytest.raises(CoordinateError, match=sentence):
        softless.Bag.open(write(tmp_path))


def damaged(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


class Harm:
    def __reduce__(self):
        return os.system, ("true",)


def unsafe(root):
    torch.save({"features": Harm()}, root / "a.pt")
    return root / "a.pt"


def objects(root):
    np.save(root / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    return root / "a.npy"


def whole_slide(root):
    return writers.stamp(root, tiles(), feat_type="slide")


def slide_vector(root):
    return writers.slide2vec(root, tiles(), meta={"artifact_type": "slide_embeddings"})


def flat_and_empty(root):
    """TRIDENT's file of a slide without tissue, by an encoder of unknown width."""
    slide = writers.without(tiles())
    return writers.trident(root, writers.replace(slide, features=np.zeros((0,), np.float32)))


def fewer_corners(root):
    return writers.trident(root, writers.replace(tiles(), px0=tiles().px0[:50]))


def other_rows(root):
    path = writers.slide2vec_npz(root, tiles())
    np.savez(path, features=tiles().features, tile_index=np.arange(60)[::-1])
    return path


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda root: writers.trident(root, writers.without(tiles())), "it has no tiles"),
        (flat_and_empty, "it has no tiles"),
        (lambda root: damaged(writers.trident(root, tiles())), "cannot be read as HDF5"),
        (lambda root: damaged(writers.npz(root, tiles())), "cannot be read as npz"),
        (lambda root: damaged(writers.npy(root, tiles())), "cannot be read as npy"),
        (lambda root: damaged(writers.table_of_tensors(root, tiles())), "no plain tensor"),
        (unsafe, "no plain tensor or table of tensors"),
        (objects, "cannot be read as npy"),
        (whole_slide, "one vector of a whole slide"),
        (slide_vector, "holds slide embeddings"),
        (fewer_corners, "60 rows of features and 50 coordinates"),
        (other_rows, "its tile_index is not that of"),
        (lambda root: root / "absent.h5", "no file at"),
        (lambda root: root, "ends in"),
    ],
)
def test_what_is_no_bag(tmp_path, write, sentence):
    with pytest.raises(DataError, match=sentence):
        softless.Bag.open(write(tmp_path))


def test_nothing_in_a_file_is_run(tmp_path, monkeypatch):
    calls: list[str] = []
    monkeypatch.setattr(os, "system", calls.append)
    with pytest.raises(DataError):
        softless.Bag.open(unsafe(tmp_path))
    assert not calls


def test_one_axis_too_many(tmp_path):
    slide = tiles()
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["features"] = slide.features[None]
        file["coords"] = slide.px0[None]
    bag = softless.Bag.open(path, unit="px0", slide_mpp=MPP0, tile=SIDE)
    assert np.array_equal(bag.features[3:9], slide.features[3:9])
    assert bag.coords_um is not None
    assert np.array_equal(bag.coords_um, slide.um)
    assert bag.remarks == ("its features are stored as (1, 60, 16) and read as (60, 16)",)


def test_an_unknown_layout_and_ending(tmp_path):
    path = writers.trident(tmp_path, tiles())
    with pytest.raises(UsageError, match=r"no layout of features named 'tridant'. Did you mean"):
        softless.Bag.open(path, layout="tridant")
    with pytest.raises(
        DataError, match="by its attributes that TRIDENT wrote it, and layout='giga"
    ):
        softless.Bag.open(path, layout="gigapath")
    with pytest.raises(DataError, match="has no 'feats'"):
        softless.Bag.open(writers.gigapath(tmp_path, tiles()), layout="stamp")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"ends in '.txt'"):
        softless.Bag.open(tmp_path / "a.txt")


def test_a_file_that_is_held_open_is_read_alike_and_is_let_go(tmp_path):
    path = writers.trident(tmp_path, tiles())
    bag = softless.Bag.open(path)
    with bag.held_open() as held:
        assert np.array_equal(held.features[3:40], tiles().features[3:40])
        assert np.array_equal(softless.Bag.open(path).features[3:5], tiles().features[3:5])
    writers.trident(tmp_path, tiles(seed=5))  # HDF5 refuses to write a file that is open
    assert np.array_equal(bag.features[:9], tiles(seed=5).features[:9])


def test_a_block_that_is_damaged_is_said_where_it_is_read(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "features", data=tiles().features, chunks=(20, 16), compression="gzip", fletcher32=True
        )
        place = file["features"].id.get_chunk_info(2).byte_offset
    content = bytearray(path.read_bytes())
    content[place : place + 40] = bytes(40)
    path.write_bytes(content)
    bag = softless.Bag.open(path)
    assert np.array_equal(bag.features[:40], tiles().features[:40])
    with pytest.raises(DataError, match=r"'features' cannot be read .* damaged or cut off"):
        bag.features[40:]


def test_clams_files_without_patches_do_not_say_their_unit(tmp_path):
    path = writers.clam(tmp_path, tiles(), patches=False)
    bag = softless.Bag.open(path)
    assert "no patches/" in bag.remarks[0]
    assert bag.coords_px0 is None
    with pytest.raises(CoordinateError, match="unit='um', or unit='px0'"):
        _ = bag.coords_um
    bag = softless.Bag.open(path, unit="px0", tile=SIDE, slide_mpp=MPP0)
    assert bag.coords_um is not None
    assert np.array_equal(bag.coords_um, tiles().um)
    assert softless.Bag.open(path, layout="clam").coords_px0 is not None
    bare = path.parents[1] / "pt_files" / f"{tiles().slide}.pt"
    assert softless.Bag.open(bare, layout="clam").has_coords


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_npz_of_every_kind_is_read_by_rows(tmp_path, write, kind):
    features = tiles().features.astype(kind)
    for name, array in {"rows": features, "columns": np.asfortranarray(features)}.items():
        write(tmp_path / f"{name}.npz", more=np.ones(3), features=array)
        bag = softless.Bag.open(tmp_path / f"{name}.npz")
        assert np.array_equal(bag.features[11:47], features[11:47])
        assert bag.features.dtype == kind


def test_a_compressed_file_is_unpacked_once(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", features=tiles().features)
    bag, load = softless.Bag.open(tmp_path / "a.npz"), np.load
    calls: list[object] = []

    def counting(*args, **options):
        calls.append(args)
        return load(*args, **options)

    monkeypatch.setattr(np, "load", counting)
    parts = [bag.features[start : start + 7] for start in range(0, 60, 7)]
    assert np.array_equal(np.concatenate(parts), tiles().features)
    assert len(calls) == 1
    np.savez_compressed(tmp_path / "a.npz", features=tiles(seed=4).features)
    assert np.array_equal(bag.features[:7], tiles(seed=4).features[:7])
