"""Cutting, thinning, measuring and fingerprinting."""

import numpy as np
import pytest

from softless.data import ArraySamples, datasets, open_splits
from softless.data.datasets import open_parts, pixel_statistics, stratified_cut
from softless.errors import DataError, UsageError
from softless.experiment.groups import DataSpec
from tests.data.making import class_folders, medmnist


def npz(path, **fields):
    return DataSpec(source="npz", path=str(path), **{"in_chans": 1, **fields})


def test_a_cut_keeps_the_shares_and_repeats_itself():
    targets = np.array([0] * 40 + [1] * 20 + [2])
    kept, cut = stratified_cut(targets, 0.25, seed=1)
    # the only image of class 2 stays
    assert np.bincount(targets[cut], minlength=3).tolist() == [10, 5, 0]
    assert sorted([*kept, *cut]) == list(range(61))
    again = stratified_cut(targets, 0.25, seed=1)[1]
    other = stratified_cut(targets, 0.25, seed=2)[1]
    assert np.array_equal(cut, again)
    assert not np.array_equal(cut, other)


def test_one_image_of_each_class_always_stays():
    kept, cut = stratified_cut(np.array([0, 0, 1, 1]), 0.99, seed=0)
    assert len(kept) == len(cut) == 2


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.2, 15.0])
def test_a_fraction_outside_0_and_1(fraction):
    with pytest.raises(UsageError, match=rf"data\.val_fraction={fraction}"):
        stratified_cut(np.array([0, 0, 1, 1]), fraction, seed=0)


def test_too_few_images_to_cut():
    with pytest.raises(DataError, match="2 training images in 2 classes leave none for validation"):
        stratified_cut(np.array([0, 1]), 0.1, seed=0)


def test_rare_classes_are_validated_too_or_named(tmp_path, caplog):
    """15 % of three images rounds to none: a model that always says "common" would be validated at
    100 %.
    """
    root = class_folders(tmp_path, {"common": 40, "rare": 3, "single": 1})
    splits = open_splits(DataSpec("folder", str(root), mean=(0.5,) * 3, std=(0.2,) * 3), seed=0)
    assert np.bincount(splits.val.targets, minlength=3).tolist() == [6, 1, 0]
    assert np.bincount(splits.train.targets, minlength=3).tolist() == [34, 2, 1]
    assert "no validation image of single, with one training image each" in caplog.text


def test_limit_thins_training_only_and_evenly(tmp_path):
    path = medmnist(tmp_path / "toy.npz", counts={"train": 60, "val": 30, "test": 30})
    splits = open_splits(npz(path, limit=12), seed=0)
    assert splits.test is not None
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [12, 30, 30]
    assert np.bincount(splits.train.targets).tolist() == [4, 4, 4]
    assert len(open_splits(npz(path, limit=1000), seed=0).train) == 60
    with pytest.raises(UsageError, match=r"data\.limit=0"):
        open_splits(npz(path, limit=0), seed=0)


def test_statistics_are_of_the_training_split_alone(tmp_path):
    path = medmnist(
        tmp_path / "toy.npz", channels=3, val_images=np.full((6, 10, 10, 3), 255, np.uint8)
    )
    splits = open_splits(npz(path, in_chans=3), seed=0)
    assert isinstance(splits.train, ArraySamples)
    pixels = splits.train.images.reshape(-1, 3) / 255
    assert splits.mean == pytest.approx(pixels.mean(0), abs=1e-6)
    assert splits.std == pytest.approx(pixels.std(0), abs=1e-6)


def test_statistics_of_files_weigh_each_image_alike_and_read_at_most_so_many(tmp_path, monkeypatch):
    class_folders(tmp_path, {"a": 5, "b": 5})
    samples = datasets.open_parts(DataSpec(source="folder", path=str(tmp_path)))[0]["all"]
    monkeypatch.setattr(datasets, "MEASURED_IMAGES", 3)
    chosen = [np.asarray(samples.image(i), np.float64) / 255 for i in (0, 4, 9)]
    mean, std = pixel_statistics(samples)
    assert mean == pytest.approx(np.mean(chosen, (0, 1, 2)), abs=1e-6)
    assert std == pytest.approx(np.std(chosen, (0, 1, 2)), abs=1e-6)


def test_given_statistics_are_taken_and_checked(tmp_path):
    path = medmnist(tmp_path / "toy.npz")
    assert open_splits(npz(path, mean=(0.4,), std=(0.2,)), seed=0).mean == (0.4,)
    with pytest.raises(UsageError, match="together"):
        open_splits(npz(path, mean=(0.4,)), seed=0)
    with pytest.raises(UsageError, match=r"data\.mean has 3 numbers for data\.in_chans=1"):
        open_splits(npz(path, mean=(0.4,) * 3, std=(0.2,) * 3), seed=0)


def test_a_constant_channel(tmp_path):
    path = medmnist(tmp_path / "toy.npz", train_images=np.full((12, 10, 10), 7, np.uint8))
    with pytest.raises(DataError, match="channel 0 of the training images is constant"):
        open_splits(npz(path), seed=0)


def test_unknown_sources_and_channels():
    with pytest.raises(UsageError, match="Did you mean 'digits'"):
        open_splits(DataSpec(source="digit"), seed=0)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="at least one channel"):
        open_splits(DataSpec(source="digits", in_chans=0), seed=0)


def test_the_fingerprint_follows_the_images_and_not_the_place(tmp_path):
    path = medmnist(tmp_path / "toy.npz")
    (tmp_path / "elsewhere").mkdir()
    moved = medmnist(tmp_path / "elsewhere" / "toy.npz")
    pixels = np.load(path)["test_images"]
    pixels[0, 0, 0] ^= 1
    changed = medmnist(tmp_path / "changed.npz", test_images=pixels)
    prints = [open_splits(npz(p), seed=0).fingerprint for p in (path, moved, changed)]
    assert prints[0] == prints[1]
    assert prints[0]["sha256"] != prints[2]["sha256"]
    assert {k: prints[0][k] for k in ("source", "classes", "train", "val", "test")} == {
        "source": "npz",
        "classes": 3,
        "train": 12,
        "val": 6,
        "test": 9,
    }
    assert str(tmp_path) not in str(prints[0])


def test_data_without_faults_take_no_policy_for_them():
    with pytest.raises(
        UsageError, match=r"data\.faults=skip leaves out images that cannot be used, and the digits"
    ):
        open_parts(DataSpec(source="digits", faults="skip"))
