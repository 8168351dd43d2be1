"""A folder of bags in the order of a table; and `softless data check` of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import softless
from softless.bags.check import is_bags
from softless.bags.folder import open_bags
from softless.bags.table import BagTable, read_bag_table
from softless.cli.data import data
from softless.cli.main import main
from softless.data.findings import DataCheck
from softless.errors import DataError, Faults, UsageError
from softless.experiment.bag_table import BagTableSpec
from tests.bags import writers
from tests.bags.test_bag_tables import written
from tests.bags.writers import MPP0, tiles
from tests.data.making import class_folders

NAMES = [f"s{n}" for n in range(8)]
ROWS = [(name, f"p{n // 2}", "pos" if n // 2 % 2 else "neg") for n, name in enumerate(NAMES)]


def folder(root: Path, write=writers.trident, **changed: Any) -> Path:
    for number, name in enumerate(NAMES):
        slide = replace(tiles(20 + number, seed=number), slide=name)
        write(root, slide, **changed)
    return root


def table(root: Path, rows=ROWS, header: str = "slide,patient,label", **columns) -> BagTable:
    return read_bag_table(BagTableSpec(path=str(written(root / "t", header, rows)), **columns))


@pytest.mark.parametrize(
    "write", [writers.trident, writers.clam, writers.stamp, writers.slide2vec, writers.mopadi]
)
def test_bags_in_the_order_of_the_table(tmp_path, write):
    (tmp_path / "bags").mkdir()
    root = folder(tmp_path / "bags", write)
    rows = ROWS[::-1]
    samples = open_bags(root, table(tmp_path, rows))
    assert [samples.name(index) for index in range(8)] == NAMES[::-1]
    assert [len(samples.image(index)) for index in range(8)] == list(range(27, 19, -1))
    assert samples.groups is not None
    assert samples.groups.tolist() == [row[1] for row in rows]
    assert [samples.target(index) for index in range(8)] == [int(row[2] == "pos") for row in rows]
    assert samples.width == 16
    part = samples.take([3, 1])
    assert [part.name(index) for index in range(2)] == ["s4", "s6"]


def test_of_clams_two_files_the_one_with_coordinates_is_taken(tmp_path):
    root = folder(tmp_path / "bags", writers.clam)
    assert {bag.path.suffix for bag in open_bags(root).bags if bag.path} == {".h5"}


def test_all_bags_without_a_table(tmp_path):
    samples = open_bags(folder(tmp_path))
    assert sorted(samples.name(index) for index in range(len(samples))) == NAMES
    assert samples.encoder == "uni_v1"


def test_a_column_of_resolutions(tmp_path):
    rows = [(*row, MPP0 * (1 + n / 10)) for n, row in enumerate(ROWS)]
    listed = table(tmp_path, rows, "slide,patient,label,mpp", mpp="mpp")
    samples = open_bags(folder(tmp_path / "bags"), listed)
    assert samples.bags[4].mpp0 == pytest.approx(MPP0 * 1.4)


def test_what_is_not_there_or_not_listed(tmp_path):
    root = folder(tmp_path / "bags")
    with pytest.raises(DataError, match=r"row 10, s99: no file below .* is of this slide"):
        open_bags(root, table(tmp_path, [*ROWS, ("s99", "p99", "neg")]))
    samples = open_bags(root, table(tmp_path, ROWS[:5]))
    assert len(samples) == 5
    with pytest.raises(DataError, match="no folder at"):
        open_bags(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no bags"):
        open_bags(tmp_path / "empty")


def test_two_files_for_one_slide(tmp_path):
    root = folder(tmp_path / "bags")
    writers.trident(root, replace(tiles(), slide="s3"), encoder="conch")
    with pytest.raises(DataError, match=r"s3: 2 files are of this slide \(.*conch/s3.h5, .*uni_v1"):
        open_bags(root, table(tmp_path))
    assert len(open_bags(root / "20x_256px_0px_overlap/features_uni_v1", table(tmp_path))) == 8


def test_a_name_with_folders_tells_two_files_apart(tmp_path):
    for cohort in ("BRCA", "COAD"):
        path = tmp_path / "bags" / cohort
        path.mkdir(parents=True)
        writers.mopadi(path, replace(tiles(30 if cohort == "BRCA" else 40), slide="s0"))
    rows = [("COAD/s0.h5", "p0", "neg"), ("BRCA/s0.h5", "p1", "pos")]
    samples = open_bags(tmp_path / "bags", table(tmp_path, rows))
    assert [len(bag) for bag in samples.bags] == [40, 30]
    assert [bag.slide for bag in samples.bags] == ["COAD/s0", "BRCA/s0"]


def test_other_widths_and_encoders(tmp_path):
    root = folder(tmp_path / "bags")
    listed = [*ROWS, ("w", "p8", "neg"), ("e", "p9", "pos")]
    writers.trident(root, replace(tiles(width=8), slide="w"))
    path = writers.trident(root, replace(tiles(), slide="e"), encoder="conch")
    with pytest.raises(Faults) as caught:
        open_bags(root, table(tmp_path, listed))
    assert "w.h5: it has 8 features a tile, and 9 other bags 16" in str(caught.value)
    assert "e.h5: it has conch as encoder, and 9 other bags uni_v1" in str(caught.value)
    assert path.parent.name == "features_conch"


def test_bags_that_cannot_be_read_are_said_at_once(tmp_path):
    root = folder(tmp_path / "bags")
    features = root / "20x_256px_0px_overlap/features_uni_v1"
    (features / "s2.h5").write_bytes((features / "s2.h5").read_bytes()[:900])
    writers.trident(root, writers.without(replace(tiles(), slide="s5")))
    with pytest.raises(Faults, match="2 faults before the first step") as caught:
        open_bags(root, table(tmp_path))
    assert "s2.h5: it cannot be read as HDF5" in str(caught.value)
    assert "s5.h5: it has no tiles" in str(caught.value)


def many(root: Path, names=("a_1", "a_2", "a_3"), ids=(1, 2, 3)) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    features = np.random.default_rng(0).standard_normal((9, 5)).astype(np.float32)
    np.savez(root / "bags.npz", features=features, offsets=[0, 2, 5, 9], bag_id=list(ids))
    rows = [(name, name, "neg" if n else "pos") for n, name in enumerate(names)]
    written(root, "slide,patient,label", rows)
    return root / "bags.npz"


def test_many_bags_in_one_file(tmp_path):
    path = many(tmp_path)
    rows = np.load(path)["features"]
    listed = read_bag_table(tmp_path / "slides.csv")
    for root in (path, tmp_path):
        samples = open_bags(root, listed)
        assert [bag.slide for bag in samples.bags] == ["a_1", "a_2", "a_3"]
        assert np.array_equal(np.asarray(samples.bags[1].features), rows[2:5])
        assert np.array_equal(samples.bags[2].features[1:3], rows[6:8])


def test_many_bags_whose_names_are_of_others(tmp_path):
    with pytest.raises(DataError, match="'a_3' stands where the file has the bag 2"):
        open_bags(many(tmp_path, names=("a_1", "a_3", "a_2")))
    path = tmp_path / "bags.npz"
    np.savez(path, features=np.zeros((9, 5), np.float32), offsets=[0, 2, 5, 8])
    with pytest.raises(DataError, match="its offsets do not cut its 9 rows"):
        open_bags(path)


def test_ucsb_bags(data_root):
    root = data_root / "ucsb_bags"
    listed = read_bag_table(BagTableSpec(path=str(root / "slides.csv"), fold="fold"))
    samples = open_bags(root, listed)
    stored = np.load(root / "ucsb_bags.npz")
    assert (len(samples), samples.width) == (58, 708)
    assert samples.targets.tolist() == stored["label"].tolist()
    assert listed.folds is not None
    assert listed.folds.tolist() == stored["fold"].tolist()
    for index, (start, stop) in enumerate(
        zip(stored["offsets"], stored["offsets"][1:], strict=False)
    ):
        assert np.array_equal(
            np.asarray(samples.bags[index].features), stored["features"][start:stop]
        )


def test_tcga_features(data_root):
    """One file without coordinates; of the other the unit is asked for."""
    root = data_root / "tcga_features"
    samples = open_bags(root)
    assert {bag.slide[:12]: len(bag) for bag in samples.bags} == {
        "TCGA-3X-AAVA": 180,
        "TCGA-AD-6964": 777,
    }
    path = root / "TCGA-AD-6964-01Z-00-DX1.h5"
    with pytest.raises(softless.CoordinateError, match="unit='um', or unit='px0'"):
        _ = softless.Bag.open(path).coords_um
    bag = softless.Bag.open(path, unit="px0", slide_mpp=0.25, tile=512)
    assert bag.tile_um == 128
    assert np.asarray(bag.features).shape == (777, 512)
    with pytest.raises(softless.CoordinateError, match="stand 512 apart"):
        softless.Bag.open(path, unit="um", tile=256)
    with pytest.raises(softless.CoordinateError, match=r"stand 512 apart, .* 224"):
        softless.Bag.open(path, layout="stamp-historic")


# softless data check


def checked(root: Path, rows=ROWS, header: str = "slide,patient,label", **options) -> DataCheck:
    path = written(root.parent / "t", header, rows)
    return data("check", root, table=path, **options)


def test_a_clean_folder(tmp_path):
    part = ("train", "test")
    rows = [(*row, part[n // 4]) for n, row in enumerate(ROWS)]
    report = checked(folder(tmp_path / "bags"), rows, "slide,patient,label,split")
    assert (report.seen, report.good, report.bad) == (8, 8, ())
    assert report.counts == {"train": {"neg": 2, "pos": 2}, "test": {"neg": 2, "pos": 2}}
    assert "8 slides seen, 8 good" in str(report)
    assert report.by_reason == {}
    assert report.exit_code == 0
    assert [warning.kind for warning in report.warnings] == ["units"]


def test_every_fault_is_named(tmp_path):
    root = folder(tmp_path / "bags")
    features = root / "20x_256px_0px_overlap/features_uni_v1"
    (features / "s2.h5").write_bytes((features / "s2.h5").read_bytes()[:900])
    broken = replace(tiles(30), slide="s4", features=tiles(30).features.copy())
    broken.features[9] = np.inf
    writers.trident(root, broken)
    twice = replace(tiles(30, seed=77), slide="s6", px0=tiles(30).px0.copy())
    twice.px0[5] = twice.px0[4]
    writers.trident(root, twice)
    writers.trident(root, replace(tiles(20, seed=0), slide="s7"))  # the features of s0
    rows = [(*row, "train" if n < 5 else "test") for n, row in enumerate(ROWS)]
    rows.append(("s99", "p99", "neg", "train"))
    report = checked(root, rows, "slide,patient,label,split")
    assert report.exit_code == 1
    reasons = {fault.kind: str(fault) for fault in report.bad}
    assert len(report.bad) == 6
    assert "no file below" in reasons["missing file"]
    assert "patient p2: it is in train (s4) and test (s5)" in reasons["groups"]
    assert "s6: 1 tile of 30 stand where another does" in reasons["duplicate coordinates"]
    assert (
        "s7: its features are those of s0, which is in train and this in test"
        in reasons["equal slides"]
    )
    unreadable = " ".join(str(fault) for fault in report.bad if fault.kind == "unreadable")
    assert "s2.h5: it cannot be read as HDF5" in unreadable
    assert "1 row of its features hold NaN or infinity, first row 9" in unreadable


def test_a_unit_is_given_by_the_recipe(tmp_path):
    (tmp_path / "bags").mkdir()
    root = folder(tmp_path / "bags", writers.mopadi)
    assert [warning.kind for warning in checked(root).warnings] == ["units"]
    options = ["bags.unit=px0", "bags.slide_mpp=0.25", "bags.tile=512"]
    assert checked(root, set=options).warnings == ()
    report = checked(root, set=[*options[:2], "bags.tile=256"])
    assert report.by_reason == {"unreadable": 8}


def test_a_folder_of_bags_is_recognised_and_the_command_ends_with_1(tmp_path, capsys):
    root = folder(tmp_path / "bags")
    assert main(["data", "check", "--path", str(root)]) == 0
    assert "bags of features" in capsys.readouterr().out
    rows = [*ROWS, ("s99", "p99", "neg")]
    path = written(tmp_path / "t", "slide,patient,label", rows)
    assert main(["data", "check", "--path", str(root), "--table", str(path)]) == 1
    assert "not clean: 1 fault" in capsys.readouterr().out


def test_a_file_that_names_another_slide(tmp_path):
    root = folder(tmp_path / "bags")
    features = root / "20x_256px_0px_overlap/features_uni_v1"
    (features / "s3.h5").rename(features / "s33.h5")
    (features / "s2.h5").rename(features / "s3.h5")
    (features / "s33.h5").rename(features / "s2.h5")
    report = checked(root)
    named = [str(warning) for warning in report.warnings if warning.kind == "remarks"]
    assert named == [
        "s2: the file says that it is of the slide 's3'",
        "s3: the file says that it is of the slide 's2'",
    ]


def test_images_with_arrays_beside_them_are_no_bags(tmp_path):
    path = class_folders(tmp_path / "images", {"a": 2, "b": 2})
    for file in list(path.rglob("*.png")):
        np.save(file.with_suffix(".npy"), np.zeros((4, 4), np.float32))
    assert data("check", path).layout == "class folders"
    assert not is_bags(path)
    np.savez(tmp_path / "a.npz", train_images=np.zeros((4, 4)))
    assert not is_bags(tmp_path / "a.npz")
    assert is_bags(writers.trident(tmp_path, tiles()))


def test_files_that_hold_nothing_are_faults_like_others(tmp_path):
    root = folder(tmp_path / "bags")
    (root / "empty.npz").write_bytes(b"")
    (root / "text.h5").write_text("hello")
    report = data("check", root)
    assert [(fault.path, fault.kind) for fault in report.bad] == [
        ("empty.npz", "unreadable"),
        ("text.h5", "unreadable"),
    ]
    assert report.bad[0].reason == "it is empty: write it again"
    assert (report.seen, report.good) == (10, 8)


def test_what_says_nothing_of_bags_is_refused(tmp_path):
    root = folder(tmp_path / "bags")
    with pytest.raises(UsageError, match="min_side=5 is for images"):
        data("check", root, min_side=5)
    with pytest.raises(DataError, match=r"no folder at .*gone"):
        data("check", tmp_path / "gone", recipe="bags")
