"""What tells two data sets apart at --resume: names, targets, and what is in the files; not where
they lie or when they were written.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from softless.data import open_splits
from softless.experiment.groups import DataSpec
from softless.tasks.detection.samples import open_boxes
from softless.tasks.dino.samples import open_unlabelled
from softless.tasks.segmentation.samples import open_label_images
from tests.data.making import class_folders, split_folders
from tests.tasks.detection.test_samples import GOOD, write
from tests.tasks.segmentation.labelled import label_set

SCALE: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
Told = Mapping[str, Any]


def classes(root: Path) -> Told:
    return open_splits(DataSpec("folder", str(root), **SCALE), seed=0).fingerprint


def boxes(root: Path) -> Told:
    return open_boxes(DataSpec("coco", str(root), **SCALE), seed=0, masks=True).fingerprint


def label_images(root: Path) -> Told:
    return open_label_images(
        DataSpec("masks", str(root), **SCALE),
        seed=0,
        labels="labels",
        ignore=("unknown",),
        fov=None,
    )[0].fingerprint


def unlabelled(root: Path) -> Told:
    return open_unlabelled(DataSpec("folder", str(root), **SCALE), seed=0).fingerprint


def coco(root: Path) -> Path:
    root.mkdir()
    return write(write(root, "train", GOOD), "val", GOOD)


PARTS = {"train": {"a": 3, "b": 3}, "val": {"a": 2, "b": 2}}
KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Told], str]] = {
    "classes": (lambda root: split_folders(root, PARTS), classes, "val/b/01.png"),
    "boxes": (coco, boxes, "images/val/1.png"),
    "label images": (label_set, label_images, "images/val/1.png"),
    "unlabelled": (
        lambda root: class_folders(root, {"train": 4, "val": 2}),
        unlabelled,
        "val/01.png",
    ),
}


def changed(before: Told, after: Told) -> set[str]:
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


@pytest.mark.parametrize("kind", KINDS)
def test_other_pixels_under_the_same_name(tmp_path: Path, kind: str):
    make, told, file = KINDS[kind]
    root = make(tmp_path / "data")
    before = told(root)
    ImageOps.invert(Image.open(root / file).convert("RGB")).save(root / file)
    assert changed(before, told(root)) == {"pixels of val"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_images_elsewhere_and_written_later(tmp_path: Path, kind: str):
    make, told, _ = KINDS[kind]
    root = make(tmp_path / "data")
    shutil.copytree(root, tmp_path / "there", copy_function=shutil.copyfile)
    for path in root.rglob("*.png"):
        os.utime(path, (1, 1))
    assert told(root) == told(tmp_path / "there")


def test_another_outline_in_the_same_box(tmp_path: Path):
    root = coco(tmp_path / "data")
    before = boxes(root)
    file = root / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["segmentation"] = [[10, 5, 40, 5, 40, 25]]  # half of the rectangle
    file.write_text(json.dumps(content))
    assert changed(before, boxes(root)) == {"pixels of train"}
