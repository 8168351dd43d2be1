"""Which json files of a folder are its boxes: COCO's own layout, and those that CVAT, Roboflow,
Label Studio, labelme and FiftyOne write.

    annotations/instances_train2017.json + train2017/      annotations/instances_default.json + images/      train/_annotations.coco.json
    result.json + images/      annotations.json + JPEGImages/      labels.json + data/      train.json + train/

Every json file that is not read is named with its reason.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from softless.data.places import PARTS, PICTURES, folders_in, part_of, words_of
from softless.errors import DataError

# COCO's other files, by their names
_BESIDE_BOXES = ("captions", "keypoints", "stuff", "panoptic", "image_info")
_HOLDERS = frozenset({"annotations", "annotation", "labels"})  # folders that hold such files
LISTS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class AnnotationFiles:
    """What was found: part -> file; and the json files that are not read, with why."""

    parts: Mapping[str, Path]
    passed_over: Mapping[Path, str] = field(default_factory=dict)

    def sentence(self, root: Path) -> str:
        """What is said of the files that are not read; nothing where there are none."""
        skipped = [
            f"{file.relative_to(root).as_posix()} ({why})" for file, why in self.passed_over.items()
        ]
        return f"not read: {', '.join(skipped)}" if skipped else ""


def annotation_files(root: Path) -> AnnotationFiles:
    """The files of boxes in a folder; empty where it holds none.

    A file is of the split that its name says, or its folder's; one alone that says none is for
    training.

    Raises:
        DataError: several files for one split, or several that say none.
    """
    passed: dict[Path, str] = {}
    named: dict[str, list[Path]] = {part: [] for part in PARTS}
    unnamed: list[Path] = []
    for file in _candidates(root):
        coco_kind = next((kind for kind in _BESIDE_BOXES if kind in file.stem.casefold()), None)
        if coco_kind is not None:
            passed[file] = f"COCO's {coco_kind}"
        elif why := _no_boxes(file):
            passed[file] = why
        elif part := _part(file, root):
            named[part].append(file)
        else:
            unnamed.append(file)
    for part, files in named.items():
        if len(files) > 1:
            names = " and ".join(file.relative_to(root).as_posix() for file in files)
            raise DataError(f"{root} has several files for {part}: {names}; keep one")
    parts = {part: files[0] for part, files in named.items() if files}
    if not parts and len(unnamed) == 1:
        return AnnotationFiles({"train": unnamed[0]}, passed)
    if not parts and unnamed:
        names = ", ".join(file.relative_to(root).as_posix() for file in unnamed)
        raise DataError(
            f"{root} has several files of boxes, and no name says a split: {names}; call them "
            "train.json, val.json and test.json"
        )
    return AnnotationFiles(parts, passed | dict.fromkeys(unnamed, "no name of a split in it"))


def _part(file: Path, root: Path) -> str | None:
    """The split that the file's name says, or the folder it lies in, or the one around that."""
    names = (file.stem, *reversed(file.relative_to(root).parent.parts))
    return next((part for name in names if (part := part_of(name))), None)


def _candidates(root: Path) -> list[Path]:
    """Json files where tools put them: at the top, in a folder of annotations, or in a split's
    folder.
    """
    names = folders_in(root)
    folders = [root / name for name in names if _holds_annotations(root / name)]
    splits = [root / name for name in names if part_of(name)]
    inside = [
        split / name
        for split in splits
        for name in folders_in(split)
        if _holds_annotations(split / name)
    ]
    files = chain.from_iterable(
        sorted(folder.glob("*.json")) for folder in (root, *folders, *splits, *inside)
    )
    return [file for file in files if file.is_file() and not file.name.startswith(".")]


def _no_boxes(file: Path) -> str:
    """Why a json file is not read; nothing where it is COCO's, or so damaged that reading it says
    more.
    """
    if "instances" in file.stem or "coco" in words_of(file.name):
        return ""
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return "" if part_of(file.stem) or file.parent.name == "annotations" else "no complete JSON"
    if isinstance(content, dict) and sum(isinstance(content.get(key), list) for key in LISTS) >= 2:
        return ""
    return "not in COCO's form"


def picture_folders(file: Path) -> list[Path]:
    """Where the images of an annotation file may lie, those that are likelier first; folders of
    another split are left out.
    """
    folder, part, last = file.parent, part_of(file.stem), file.stem.rpartition("_")[2]
    root = folder.parent if _holds_annotations(folder) else folder
    part = part or part_of(root.name)
    candidates = []
    for base in dict.fromkeys((folder, root)):
        names = folders_in(base)
        own = [name for name in names if name == last or (part and part_of(name) == part)]
        pictures = [
            name for name in names if " ".join(words_of(name)) in PICTURES or name == "data"
        ]
        deeper = [
            (outer, inner) for outer in (*pictures, *own) for inner in folders_in(base / outer)
        ]
        fits = [
            base / outer / inner
            for outer, inner in deeper
            if _fits(inner, part, last, outer in pictures)
        ]
        candidates += [*fits, *(base / name for name in (*own, *pictures)), base]
    return candidates


def _fits(inner: str, part: str | None, last: str, among_pictures: bool) -> bool:
    """Whether a folder in a folder of pictures is of the split, or one in a split's folder holds
    pictures.
    """
    if among_pictures:
        return inner == last or (part is not None and part_of(inner) == part)
    return " ".join(words_of(inner)) in PICTURES or inner == "data"


def _holds_annotations(folder: Path) -> bool:
    words = words_of(folder.name)
    return bool(words) and _HOLDERS.issuperset(words)
