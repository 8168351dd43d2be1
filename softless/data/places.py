"""Where a data set keeps its parts, whatever tool wrote it: what people call splits, and what a
folder is by what lies in it.

All that reads folders asks here, so training, prediction and `softless data check` see one layout.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from softless.data.exports import export_in
from softless.errors import DataError
from softless.words import few

PARTS = ("train", "val", "test")
LAYOUT = "expected root/{train,val,test}/class/images, or root/class/images"
_CALLED = {
    "train": {"train", "training", "trn", "trainval"},
    "val": {"val", "valid", "validation", "validate", "dev", "devel", "development"},
    "test": {"test", "testing", "tst", "holdout"},
}
_PART_OF = {word: part for part, words in _CALLED.items() for word in words}
_BESIDE = frozenset({  # words that tools and people put beside the name of a split
    "set",
    "data",
    "dataset",
    "images",
    "image",
    "imgs",
    "img",
    "pictures",
    "split",
    "subset",
    "folder",
    "dir",
    "seg",
    "instances",
    "annotations",
    "annotation",
    "labels",
    "label",
    "coco",
    "bbox",
    "v",
})
_ENDINGS = ("", "set", "data", "images")  # `trainset`
PICTURES = frozenset({
    "image",
    "images",
    "img",
    "imgs",
    "img dir",
    "jpegimages",
    "input",
    "inputs",
    "photo",
    "photos",
})
TARGETS = frozenset({
    "mask",
    "masks",
    "label",
    "labels",
    "annotation",
    "annotations",
    "ann dir",
    "gt",
    "ground truth",
    "groundtruth",
    "target",
    "targets",
    "segmentation",
    "segmentations",
    "segmentation class",
    "segmentation object",
    "segmentationclass",
    "segmentationobject",
    "manual",
})


def part_of(name: str) -> str | None:
    """What a folder or file of this name holds: "train", "val" or "test" in any usual spelling;
    None for another name.

    >>> [
    ...     part_of(name)
    ...     for name in (
    ...         "Training",
    ...         "val2017",
    ...         "instances_valid",
    ...         "test-set",
    ...         "trainData",
    ...         "dev",
    ...         "test_tube",
    ...     )
    ... ]
    ['train', 'val', 'val', 'test', 'train', 'val', None]
    """
    words = [word for word in words_of(name) if word not in _BESIDE]
    if len(words) != 1:
        return None
    parts = (
        _PART_OF.get(words[0].removesuffix(ending))
        for ending in _ENDINGS
        if words[0].endswith(ending)
    )
    return next((part for part in parts if part), None)


def words_of(name: str) -> list[str]:
    """The words in a name, in small letters; what is no letter parts them, and so does a capital
    after a small letter.
    """
    return re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).casefold())


def folders_in(folder: Path) -> list[str]:
    """The folders in a folder, sorted; hidden ones are left out."""
    with os.scandir(folder) as entries:  # which asks no file what it is: a class may hold a million
        return sorted(
            entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()
        )


def by_part(folder: Path) -> dict[str, str]:
    """The folders in a folder that are called like splits: part -> name.

    Raises:
        DataError: two that hold something are called alike.
    """
    splits: dict[str, str] = {}
    for part in PARTS:
        names = [name for name in folders_in(folder) if part_of(name) == part]
        filled = [name for name in names if _any_in(folder / name)]
        if len(filled) > 1:
            names_text = " and ".join(f"'{name}'" for name in filled)
            raise DataError(
                f"{folder} has several folders for {part}, {names_text}: keep one, or merge them"
            )
        if names:
            splits[part] = (filled or names)[0]
    return splits


def class_splits(root: Path) -> dict[str, str]:
    """Where the class folders of each split lie below a root: part -> path; empty where the root's
    own folders are the classes.

    A folder called like a split is one if it holds folders. With images in it, it is a class of
    that name (of vehicles, say).

    Raises:
        DataError: splits without one for training, two for one split, or folders that are no
            classes; both readings are said.
    """
    named = by_part(root)
    splits = [
        part
        for part, name in named.items()
        if folders_in(root / name) or (part == "train" and not _any_in(root / name))
    ]
    if "train" in splits:
        _refuse_pictures_and_targets(root / named["train"])
        return {part: _unwrapped(root, name, part) for part, name in named.items()}
    if splits:
        raise DataError(
            f"{root} has {' and '.join(named[part] for part in splits)} but no train: {LAYOUT}"
        )
    _refuse_no_classes(root, named)
    return {}


def _any_in(folder: Path) -> bool:
    return next(folder.iterdir(), None) is not None


def _unwrapped(root: Path, name: str, part: str) -> str:
    """`seg_train/seg_train` where an archive has wrapped a folder in one of its name."""
    inside = folders_in(root / name)
    return f"{name}/{inside[0]}" if len(inside) == 1 and part_of(inside[0]) == part else name


def _refuse_no_classes(root: Path, named: Mapping[str, str]) -> None:
    """Folders that would be taken for classes for want of another reading, and are none."""
    names = folders_in(root)
    if len(named) > 1 and ("train" in named or len(named) == len(names)):
        export = export_in(root)
        beside = f" There are {export}." if export else ""
        raise DataError(
            f"{root}: the folders {' and '.join(named.values())} are called like splits, and hold "
            f"no class folders.{beside} "
            "If they are splits, put the images into train/CLASS/; if they are the classes, give "
            "them other names"
        )
    _refuse_pictures_and_targets(root)
    _refuse_same_folders(root, names)
    if len(names) < 2 and (export := export_in(root)):
        raise DataError(f"{root} holds no class folders but {export}")


def _refuse_pictures_and_targets(folder: Path) -> None:
    """Images beside what is drawn on them are no classes."""
    called = {name: " ".join(words_of(name)) for name in folders_in(folder)}
    pictures, targets = (
        [name for name, words in called.items() if words in kind] for kind in (PICTURES, TARGETS)
    )
    if pictures and targets:
        export = export_in(folder)
        beside = f" There are {export}." if export else ""
        raise DataError(
            f"{folder}: the folders {pictures[0]} and {targets[0]} are called like images and "
            "what is drawn on them, and not like classes."
            f"{beside} If {targets[0]} holds label images, take a recipe for them (vessels), with "
            "images/train and labels/train; "
            "if they are the classes, give them other names"
        )


def _refuse_same_folders(root: Path, names: Sequence[str]) -> None:
    """Folders that all hold the same ones are no classes: a folder for each patient, say, or
    classes around their splits.
    """
    inside = folders_in(root / names[0]) if len(names) > 1 else []
    if len(inside) < 2 or any(folders_in(root / name) != inside for name in names[1:]):
        return
    listed, shared = few(names, 5), few(inside, 5)
    if all(map(part_of, inside)):
        way = (
            "Those are called like splits, and splits lie around the classes: make it "
            f"{inside[0]}/{names[0]}, and so on"
        )
    else:
        way = (
            f"If those are the classes, merge {listed} into one, or call them train, val and test; "
            "if not, move the images up, straight "
            "into their class folders"
        )
    raise DataError(f"{root}: the folders {listed} all hold the same folders, {shared}. {way}")
