"""Digits and npz files."""

from typing import Any

import numpy as np
import pytest

from softless.data import ArraySamples, open_splits
from softless.data.arrays import MEDMNIST_CLASSES
from softless.errors import DataError, MissingExtra
from softless.experiment.groups import DataSpec
from softless.recipes import get_recipe
from softless.tasks.check import check
from softless.training.own_data import with_data
from tests.data.making import medmnist


def digits(**fields):
    return DataSpec(source="digits", in_chans=1, **fields)


def npz(path, **fields):
    return DataSpec(source="npz", path=str(path), **{"in_chans": 1, **fields})


def test_digits_are_cut_as_anyone_can_cut_them():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    _, test = train_test_split(np.arange(1797), test_size=0.2, stratify=data.target, random_state=0)
    splits = open_splits(digits(), seed=7)
    assert splits.test is not None
    assert [splits.test.name(i) for i in range(360)] == [str(i) for i in test]
    assert splits.test.targets.tolist() == data.target[test].tolist()
    assert np.array_equal(
        np.asarray(splits.test.image(5)), np.rint(data.images[test[5]] * 255 / 16)
    )
    assert len(splits.train) + len(splits.val) == 1437


def test_the_test_split_of_digits_is_the_same_for_every_seed_and_the_validation_split_is_not():
    first, second = (open_splits(digits(), seed=seed) for seed in (0, 1))
    names = [
        [[s.name(i) for i in range(len(s))] for s in (x.val, x.test)]
        for x in (first, second)
        if x.test is not None
    ]
    assert names[0][1] == names[1][1]
    assert names[0][0] != names[1][0]
    held = {first.train.name(i) for i in range(len(first.train))}
    assert not held & set(names[0][1])
    assert not held & set(names[0][0])


def test_digits_without_scikit_learn(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtra, match=r"pip install .*\[train\]"):
        open_splits(digits(), seed=0)


@pytest.mark.parametrize(
    ("stored", "asked", "mode"),
    [(0, 1, "L"), (0, 3, "RGB"), (1, 1, "L"), (3, 3, "RGB"), (3, 1, "L")],
)
def test_npz_grey_and_colour(tmp_path, stored, asked, mode):
    path = medmnist(tmp_path / "toy.npz", channels=stored)
    splits = open_splits(npz(path, in_chans=asked), seed=0)
    assert splits.test is not None
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [12, 6, 9]
    assert splits.classes == ("0", "1", "2")
    assert splits.train.image(0).mode == mode
    assert splits.train.name(3) == "train/3"
    assert len(splits.mean) == asked


def test_npz_of_other_channel_counts(tmp_path):
    path = medmnist(tmp_path / "toy.npz", channels=5)
    image = open_splits(npz(path, in_chans=5), seed=0).train.image(0)
    assert isinstance(image, np.ndarray)
    assert image.shape == (10, 10, 5)
    with pytest.raises(DataError, match=r"5 channels and the model takes 3: set data\.in_chans=5"):
        open_splits(npz(path, in_chans=3), seed=0)


def test_npz_without_val_and_test(tmp_path):
    path = medmnist(tmp_path / "toy.npz", counts={"train": 30})
    splits = open_splits(npz(path, val_fraction=0.2), seed=0)
    assert np.bincount(splits.val.targets).tolist() == [2, 2, 2]
    assert splits.test is None


def test_medmnist_names(tmp_path):
    path = medmnist(
        tmp_path / "octmnist_64.npz",
        train_labels=np.arange(12) % 4,
        val_labels=np.arange(6) % 4,
        test_labels=np.arange(9) % 4,
    )
    assert open_splits(npz(path), seed=0).classes[2] == "drusen"


ONES = np.ones((12, 1), np.uint8)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no_keys": (
        {"counts": {}, "x": np.zeros(3)},
        r"has no train_images and train_labels; it holds x",
    ),
    "no_labels": ({"train_labels": None}, "lacks train_labels"),
    "no_test_images": ({"test_images": None}, "lacks test_images"),
    "deep": (
        {"train_images": np.zeros((12, 10, 10), np.uint16)},
        "are uint16, and only uint8 pixels",
    ),
    "floats": ({"test_images": np.zeros((9, 10, 10))}, "test_images are float64"),
    "flat": ({"train_images": np.zeros((12, 100), np.uint8)}, r"shape \(12, 100\)"),
    "none": ({"val_images": np.zeros((0, 10, 10), np.uint8)}, r"shape \(0, 10, 10\)"),
    "columns": (
        {"train_labels": np.zeros((12, 14), np.uint8)},
        (
            r"val_labels have shape \(6,\) and train_labels \(12, 14\): each image must have as "
            r"many "
            r"labels"
        ),
    ),
    "counts": (
        {"train_labels": np.zeros((11, 1), np.uint8)},
        "12 train_images and 11 train_labels",
    ),
    "fractions": (
        {"train_labels": np.linspace(0, 1, 12)},
        "whole numbers from 0, and they are float64",
    ),
    "negative": (
        {"train_labels": np.append(np.arange(11) % 3, -1)},
        r"1 fault before[\s\S]*train/11: its label is -1",
    ),
    "all_parts": (
        {"train_labels": np.linspace(0, 1, 12), "test_images": None},
        r"train_labels must be whole numbers[\s\S]*lacks test_images",
    ),
    "one_class": ({"train_labels": 0 * ONES}, "only one class"),
    "gap": ({"train_labels": 2 * (np.arange(12) % 2)}, "no training images of class 1"),
    "unknown": ({"test_labels": np.arange(9)}, "unknown to train_labels: 3, 4"),
    "lacking": ({"val_labels": np.arange(6) % 2}, "val_labels lack classes of train_labels: 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_npz(tmp_path, case):
    changes, message = BAD[case]
    changes = dict(changes)
    if changes.pop("counts", None) == {}:
        np.savez(tmp_path / "toy.npz", **changes)
    else:
        medmnist(tmp_path / "toy.npz", **changes)
    with pytest.raises(DataError, match=message) as raised:
        open_splits(npz(tmp_path / "toy.npz"), seed=0)
    assert "toy.npz" in str(raised.value)


def test_images_without_a_class_stop_a_run_or_are_left_out_of_every_split(tmp_path):
    """Some sets mark images that nobody labelled with -1."""
    labels: dict[str, Any] = {
        "train_labels": np.append(np.arange(11) % 3, -1),
        "test_labels": np.append(-1, np.arange(8) % 3),
    }
    path = medmnist(tmp_path / "toy.npz", **labels)
    with pytest.raises(
        DataError,
        match=r"2 faults before the first step; .*data\.faults=skip[\s\S]*train/11: "
        r"[\s\S]*test/0: ",
    ):
        open_splits(npz(path), seed=0)
    splits = open_splits(npz(path, faults="skip"), seed=0)
    assert splits.test is not None
    assert splits.train.targets.tolist() == (np.arange(11) % 3).tolist()
    assert [splits.test.name(i) for i in range(len(splits.test))] == [
        f"test/{i}" for i in range(1, 9)
    ]
    assert isinstance(splits.test, ArraySamples)
    assert np.array_equal(splits.test.images, np.load(path)["test_images"][1:])
    assert [fault.path for fault in splits.left_out["test"]] == ["test/0"]
    assert splits.classes == ("0", "1", "2"), "-1 is no class"
    assert [fault.path for fault in check(path).bad] == ["train/11", "test/0"]


def test_npz_files_that_are_none(tmp_path):
    with pytest.raises(DataError, match=r"no npz file at .*gone\.npz"):
        open_splits(npz(tmp_path / "gone.npz"), seed=0)
    with pytest.raises(DataError, match="must hold exactly one npz file, and it holds none"):
        open_splits(npz(tmp_path), seed=0)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DataError, match=r"cannot read .*text\.npz"):
        open_splits(npz(tmp_path / "text.npz"), seed=0)
    medmnist(tmp_path / "two.npz")
    with pytest.raises(DataError, match=r"it holds text\.npz, two\.npz"):
        open_splits(npz(tmp_path), seed=0)
    content = (tmp_path / "two.npz").read_bytes()
    (tmp_path / "two.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"cannot read .*two\.npz"):
        open_splits(npz(tmp_path / "two.npz"), seed=0)


def test_pickled_objects_are_not_loaded(tmp_path):
    np.savez(
        tmp_path / "pickle.npz",
        train_images=np.array([{}], dtype=object),
        train_labels=np.zeros(1, int),
    )
    with pytest.raises(
        DataError, match=r"cannot read .*pickle\.npz as an npz file of plain arrays"
    ):
        open_splits(npz(tmp_path / "pickle.npz"), seed=0)


def test_pneumoniamnist(data_root):
    splits = open_splits(npz(data_root / "pneumoniamnist"), seed=0)
    assert splits.test is not None
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [4708, 524, 624]
    assert splits.classes == ("normal", "pneumonia")
    assert np.bincount(splits.train.targets).tolist() == [1214, 3494]
    assert isinstance(splits.train, ArraySamples)
    pixels = splits.train.images / 255
    assert splits.mean[0] == pytest.approx(pixels.mean(), abs=1e-5)
    assert splits.std[0] == pytest.approx(pixels.std(), abs=1e-5)


@pytest.mark.parametrize(
    ("channels", "given", "taken"), [(3, {}, 3), (3, {"data.in_chans": 1}, 1), (0, {}, 1)]
)
def test_colour_stays_colour_whatever_the_recipe(tmp_path, caplog, channels, given, taken):
    """The recipe is made for grey files; a colour file makes it a recipe for colour, unless the
    user says otherwise.
    """
    path = medmnist(tmp_path / "bloodlike.npz", channels=channels)
    recipe = with_data(get_recipe("medmnist").with_fields(**given), path, given)
    assert recipe.data.in_chans == taken
    assert open_splits(recipe.data, seed=0).in_chans == taken
    assert ("data.in_chans=3 instead of the recipe's 1" in caplog.text) == (taken == 3)
    assert ("makes them grey; data.in_chans=3 keeps it" in caplog.text) == (
        channels == 3 and taken == 1
    )


@pytest.mark.parametrize("name", sorted(MEDMNIST_CLASSES))
def test_medmnists_own_class_names(tmp_path, name):
    count = len(MEDMNIST_CLASSES[name])
    labels: dict[str, Any] = {
        f"{part}_labels": (np.arange(3 * count) % count)[:, None]
        for part in ("train", "val", "test")
    }
    path = medmnist(
        tmp_path / f"{name}_64.npz",
        counts=dict.fromkeys(("train", "val", "test"), 3 * count),
        **labels,
    )
    assert (
        open_splits(DataSpec("npz", str(path), in_chans=1), seed=0).classes
        == MEDMNIST_CLASSES[name]
    )


def test_volumes_are_no_images_with_many_channels(tmp_path):
    path = medmnist(tmp_path / "organmnist3d.npz", channels=10)
    with pytest.raises(
        DataError, match="train_images are volumes of 10 x 10 x 10, and images are read"
    ):
        open_splits(DataSpec("npz", str(path), in_chans=1), seed=0)
    assert "are volumes of 10 x 10 x 10" in str(check(path))
