"""Images to be answered: several sources at once, and those of an npz file."""

import numpy as np
import pytest

from softless.data.samples import ArraySamples
from softless.data.sources import images_of
from softless.errors import DataError, UsageError
from tests.data.making import class_folders, labelled, medmnist, noise


def names_of(samples):
    return [samples.name(index) for index in range(len(samples))]


def test_several_sources_are_named_from_the_folder_that_holds_them(tmp_path):
    class_folders(tmp_path / "one", {"a": 2})
    class_folders(tmp_path / "two", {"a": 1})
    noise(seed=9).save(tmp_path / "single.png")
    found = images_of([tmp_path / "one", tmp_path / "two", tmp_path / "single.png"], 3)
    assert names_of(found) == ["one/a/00.png", "one/a/01.png", "two/a/00.png", "single.png"]
    assert found.image(3).tobytes() == noise(seed=9).tobytes()
    assert (
        names_of(images_of([tmp_path / "one"], 3))
        == names_of(images_of(tmp_path / "one", 3))
        == ["a/00.png", "a/01.png"]
    )


def test_an_image_in_two_sources_is_answered_once(tmp_path, caplog):
    class_folders(tmp_path, {"a": 2, "b": 1})
    found = images_of([tmp_path / "a", tmp_path, tmp_path / "a/00.png"], 3)
    assert names_of(found) == ["a/00.png", "a/01.png", "b/00.png"]
    assert "3 images lie in two of the sources and are answered once" in caplog.text


def test_the_images_of_an_npz_file(tmp_path):
    path = medmnist(
        tmp_path / "toy.npz", counts={"train": 3, "test": 2}, train_labels=None, test_labels=None
    )
    found = images_of(path, 1)
    assert names_of(found) == ["train/0", "train/1", "train/2", "test/0", "test/1"]
    assert np.array_equal(np.asarray(found.image(3)), np.load(path)["test_images"][0])
    np.savez(tmp_path / "plain.npz", images=np.load(path)["test_images"])
    assert names_of(images_of(tmp_path / "plain.npz", 1)) == ["0", "1"]


def test_images_of_an_npz_file_that_cannot_be_used_are_named(tmp_path):
    from softless.experiment.ranges import Range

    pixels = np.ones((3, 8, 8), np.float32)
    pixels[1, 0, 0] = np.nan
    np.savez(tmp_path / "deep.npz", images=pixels)
    found = images_of(tmp_path / "deep.npz", 1, scale=Range.of("0..1"))
    assert names_of(found) == ["0", "2"]
    assert [fault.reason for fault in found.left_out] == ["1 of its values are NaN or infinite"]
    with pytest.raises(DataError, match="only uint8 pixels are read without a range"):
        images_of(tmp_path / "deep.npz", 1)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"labels": np.zeros(3)},
            "has no train_images, val_images, test_images or images; it holds labels",
        ),
        ({"images": np.zeros((3, 8), np.uint8)}, r"images have shape \(3, 8\)"),
        (
            {
                "train_images": np.zeros((1, 8, 8), np.uint8),
                "test_images": np.zeros((1, 9, 9), np.uint8),
            },
            "hold images of other shapes",
        ),
        ({"images": np.zeros((2, 8, 8, 8), np.uint8)}, "are volumes"),
    ],
)
def test_npz_files_without_images(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=message):
        images_of(tmp_path / "x.npz", 1)


def test_sources_that_do_not_go_together(tmp_path):
    class_folders(tmp_path / "one", {"a": 1})
    path = labelled(tmp_path / "four.npz", {"test": 2})
    with pytest.raises(
        UsageError, match=r"four\.npz is an npz file, and 2 sources are given: give it alone"
    ):
        images_of([tmp_path / "one", path], 1)
    with pytest.raises(UsageError, match="no images are named"):
        images_of([], 1)
    with pytest.raises(UsageError, match="only DICOM files have pages"):
        images_of(path, 1, page=1)
    assert isinstance(images_of(path, 1), ArraySamples)
