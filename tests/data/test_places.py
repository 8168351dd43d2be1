"""Splits in any spelling are splits, and folders that are no classes are not taken for some:
training and the check see the same.
"""

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from softless.data.folder import folder_parts
from softless.data.places import part_of
from softless.errors import DataError
from softless.experiment.groups import DataSpec
from softless.tasks.check import check
from softless.tasks.dino.samples import open_unlabelled
from tests.data import test_exports
from tests.data.making import class_folders, split_folders

COUNTS = {"a": 2, "b": 2, "c": 2}
SPELLINGS = {
    "train": [
        "train",
        "Training",
        "TRAIN",
        "train2017",
        "train_set",
        "trainset",
        "TrainData",
        "train-images",
        "seg_train",
        "trainval",
    ],
    "val": [
        "val",
        "Valid",
        "validation",
        "val2017",
        "dev",
        "development_set",
        "images_val",
        "validation-set",
    ],
    "test": ["test", "Testing", "test1", "test_images", "TestSet", "holdout"],
}
CLASSES = [
    "test_tube",
    "training_shoes",
    "cat",
    "devil",
    "valley",
    "validator",
    "train_station",
    "testtube",
    "0",
    "n01440764",
    "中",
]


@pytest.mark.parametrize(
    ("part", "name"), [(part, name) for part, names in SPELLINGS.items() for name in names]
)
def test_what_splits_are_called(part: str, name: str):
    assert part_of(name) == part


@pytest.mark.parametrize("name", CLASSES)
def test_what_is_no_split(name: str):
    assert part_of(name) is None


@pytest.mark.parametrize(
    "names",
    [
        ("Training", "Testing"),
        ("training", "validation"),
        ("Train", "Val", "Test"),
        ("train", "valid", "test"),
        ("seg_train/seg_train", "seg_test/seg_test"),
    ],
    ids="-".join,
)
def test_splits_in_other_spellings(
    tmp_path: Path, names: tuple[str, ...], caplog: pytest.LogCaptureFixture
):
    split_folders(tmp_path, dict.fromkeys(names, COUNTS))
    parts, classes = folder_parts(tmp_path, 3)
    assert classes == ("a", "b", "c")
    assert list(parts) == [part_of(name.partition("/")[0]) for name in names]
    assert parts["train"].files[0] == f"{names[0]}/a/00.png"
    renamed = [f"{name} as {part}" for name, part in zip(names, parts, strict=True) if name != part]
    assert ", ".join(renamed) in caplog.text
    found = check(tmp_path)
    assert found.exit_code == 0
    assert list(found.counts) == list(parts)
    assert ", ".join(renamed) in str(found)


def loose(root: Path) -> None:
    for part in ("train", "valid", "test"):
        class_folders(root, {part: 2})
        (root / part / "_annotations.coco.json").write_text(
            '{"images": [], "annotations": [], "categories": []}'
        )


def yolo_by_split(root: Path) -> None:
    for part in ("train", "valid"):
        class_folders(root / part, {"images": 2})
        (root / part / "labels").mkdir()
        (root / part / "labels" / "0.txt").write_text("0 0.5 0.5 0.25 0.25\n")


def nothing_but_boxes(root: Path) -> None:
    class_folders(root, {"JPEGImages": 2})
    (root / "JPEGImages" / "0.xml").write_text("<annotation><folder>x</folder></annotation>")


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "loose images in splits": (
        loose,
        (
            r"train and valid and test are called like splits, .* in COCO json "
            r"\(test/_annotations\.coco\.json\)"
        ),
    ),
    "images and masks": (
        lambda root: class_folders(root, {"Images": 2, "Masks": 2}),
        r"Images and Masks are called like images and what is drawn",
    ),
    "labels of a tool": (
        test_exports.yolo,
        (
            r"images and labels are called like .* labels of YOLO \(data\.yaml\): boxes are read "
            r"from "
            r"COCO json"
        ),
    ),
    "a folder for each patient": (
        lambda root: split_folders(root, {"8863": COUNTS, "8864": COUNTS}),
        "8863, 8864 all hold the same folders, a, b, c",
    ),
    "splits below the classes": (
        lambda root: split_folders(
            root, {"cat": {"train": 2, "test": 2}, "dog": {"train": 2, "test": 2}}
        ),
        r"make it test/cat, and so on",
    ),
    "labels of a tool in each split": (
        yolo_by_split,
        r"images and labels are called like .* labels of YOLO \(labels/0\.txt\)",
    ),
    "two for one split": (
        lambda root: split_folders(root, {"train": COUNTS, "Training": COUNTS}),
        "several folders for train, 'Training' and 'train'",
    ),
    "no training images": (
        lambda root: split_folders(root, {"valid": COUNTS, "Testing": COUNTS}),
        "has valid and Testing but no train",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_folders_that_are_no_classes(tmp_path: Path, name: str):
    make, message = WRONG[name]
    make(tmp_path)
    with pytest.raises(DataError, match=message) as raised:
        folder_parts(tmp_path, 3)
    found = check(tmp_path)
    if found.layout in {"COCO", "label images"}:  # what the folders are indeed
        assert "called like" in str(raised.value)
        return
    (fault,) = [one for one in found.bad if one.kind == "layout"]
    assert str(raised.value).endswith(fault.reason)


def test_one_class_folder_in_which_the_data_lie(tmp_path: Path):
    split_folders(tmp_path / "archive", {"train": COUNTS})
    with pytest.raises(
        DataError, match=rf"only one class \('archive'\).*; the data may be {tmp_path / 'archive'}"
    ):
        folder_parts(tmp_path, 3)


def test_boxes_without_class_folders_are_named(tmp_path: Path):
    nothing_but_boxes(tmp_path)
    with pytest.raises(
        DataError, match=r"no class folders but annotations of Pascal VOC \(JPEGImages/0\.xml\)"
    ):
        folder_parts(tmp_path, 3)


def test_a_class_called_like_a_split(tmp_path: Path):
    class_folders(tmp_path, {"bus": 2, "dev": 2, "car": 2})
    assert folder_parts(tmp_path, 3)[1] == ("bus", "car", "dev")


def test_names_in_two_unicode_forms_are_one_class_or_an_error(tmp_path: Path):
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    split_folders(tmp_path / "splits", {"train": {composed: 2, "b": 2}, "val": {apart: 2, "b": 2}})
    parts, classes = folder_parts(tmp_path / "splits", 3)
    assert classes == ("b", composed)
    assert parts["val"].targets.tolist() == [0, 0, 1, 1]
    assert check(tmp_path / "splits").exit_code == 0
    for name, twins in {"forms": (composed, apart), "case": ("Cat", "cat")}.items():
        class_folders(tmp_path / name, {twins[0]: 2, "x": 2})
        class_folders(tmp_path / name, {twins[1]: 2})
        with pytest.raises(DataError, match="differ only in case, or in how an accent is encoded"):
            folder_parts(tmp_path / name, 3)
        assert check(tmp_path / name).exit_code == 1


def test_splits_without_classes(tmp_path: Path):
    class_folders(tmp_path, {"Training": 4, "Validation": 2})
    splits = open_unlabelled(
        DataSpec("folder", str(tmp_path), mean=(0.5,) * 3, std=(0.2,) * 3), seed=0
    )
    assert (len(splits.train), len(splits.val)) == (4, 2)
