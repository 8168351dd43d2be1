"""Where a folder has images and label images, and what the values of these are called.

    root/images/{train,val,test}/NAME.jpg    root/labels/{train,val,test}/NAME.png    root/classes.json: {"0": "background", …}

in any usual spelling of splits and folders (`img_dir/train`, `annotations/training`, `masks/val`),
the other way round (`train/images`, `train/masks`), or `images` and `masks` alone. Without
classes.json, ADE20K's own layout has its 150 classes from value 1 on, and masks of two values have
a background and an object.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from softless.data.exports import export_in
from softless.data.findings import Gathering
from softless.data.folder import listing
from softless.data.images import BadImage
from softless.data.places import PICTURES, TARGETS, by_part, folders_in, words_of
from softless.errors import DataError, UsageError
from softless.tasks.segmentation.meanings import VOID, Classes, checked_values
from softless.tasks.segmentation.names import CLASSES, ade20k_names, stored_names, values_of
from softless.tasks.segmentation.values import is_label, read_values
from softless.words import few

# of class indices: a pixel that counts nowhere; of values one that is void where no class is called
# so
IGNORE = 255
# of `labels_observer1`
_BEGIN = frozenset({"label", "labels", "annotation", "annotations", "mask", "masks"})


class _Pattern(NamedTuple):
    """How images and what belongs to them lie beside each other."""

    root: Path
    pictures: str  # the name of the folders of images
    parts: Mapping[str, str]  # part -> folder of the split; "" where there are none
    split_first: bool  # train/images, and not images/train

    def folder(self, kind: str, part: str) -> str:
        """The folder of a kind (images, labels, fov) for a part, below the root."""
        split = self.parts[part]
        if not split:
            return kind
        if self.split_first:
            return f"{split}/{kind}"
        inside = self.root / kind
        return f"{kind}/{by_part(inside).get(part, split) if inside.is_dir() else split}"


@dataclass(frozen=True)
class Layout:
    """Where images and label images lie, and what the values are called."""

    pattern: _Pattern
    labels: str  # the name of the folders of label images
    # value -> class, those that are ignored too; several values may share one
    names: Mapping[int, str]
    ignored: frozenset[int]
    read_as: str = ""  # what is said where the values are not those of classes.json
    void: bool = False  # whether 255 counts nowhere only for want of a name
    # red << 16 | green << 8 | blue -> value, where classes.json names colours
    colours: Mapping[int, int] | None = None

    @property
    def root(self) -> Path:
        return self.pattern.root

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.pattern.parts)

    def folder(self, part: str, kind: str | None = None) -> str:
        """Where the images of a part lie below the root, or what belongs to them: `labels`, or a
        field of view.
        """
        return self.pattern.folder(kind or self.pattern.pictures, part)

    @property
    def values(self) -> tuple[int, ...]:
        """One for each class that a model has an output for, in the order of the class indices; of
        a class with several, the lowest.
        """
        first: dict[str, int] = {}
        for value in sorted(set(self.names) - self.ignored):
            first.setdefault(self.names[value], value)
        return tuple(first.values())

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.names[value] for value in self.values)

    @property
    def lookup(self) -> np.ndarray:
        """(256,) uint8: class index of each value, or IGNORE."""
        index = {name: class_index for class_index, name in enumerate(self.classes)}
        table = np.full(256, IGNORE, dtype=np.uint8)
        for value in set(self.names) - self.ignored:
            table[value] = index[self.names[value]]
        return table


def is_label_layout(root: Path) -> bool:
    """Whether a folder holds images and label images, and not class folders."""
    pattern = _pattern(root)
    return pattern is not None and ((root / CLASSES).is_file() or bool(_label_folders(pattern)))


def label_folders(root: Path) -> list[str]:
    """The names of the folders of label images beside those of images; several where several people
    drew.
    """
    pattern = _pattern(root)
    return [] if pattern is None else _label_folders(pattern)


def layout_of(
    root: Path,
    findings: Gathering,
    labels: str | None = None,
    ignore: Sequence[str | int] = (),
    values: Mapping[Any, str] | None = None,
) -> Layout:
    """How the folder is laid out; what is wrong with its classes is a fault.

    Args:
        root: the folder.
        findings: takes faults, and what is read in a way of its own.
        labels: which folder of label images; the only one there is by default.
        ignore: classes or values that count nowhere.
        values: what stored values are called, whatever classes.json says; None lets that say it.

    Raises:
        DataError: no images with label images.
        UsageError: `values` that are none, a class to ignore that is none, or fewer than two that
            are left.
    """
    pattern = _pattern(root)
    export = None if pattern is not None and _label_folders(pattern) else export_in(root)
    if pattern is None or export:
        raise DataError(
            f"{root} holds no label images: expected images/train and labels/train in it, and "
            f"{CLASSES} "
            '({"0": "background", …}), or ADE20K\'s images/training and annotations/training'
            + (f"; it holds {export}" if export else "")
        )
    if "train" not in pattern.parts:
        findings.fault(
            root / pattern.folder(pattern.pictures, next(iter(pattern.parts))),
            "layout",
            f"it has {' and '.join(pattern.parts)} but no train",
        )
    folder = labels or _first_of(pattern, findings)
    ade = values is None and _is_ade20k(root, folder)
    classes = _classes(pattern, folder, findings, values, ade=ade)
    names = classes.names
    ignored = {value for entry in ignore for value in values_of(entry, names)} | (
        {0} if ade else set()
    )
    # who names values by hand names all: 255 too is a fault where it is not named
    if values is not None:
        ignored |= {value for value, name in names.items() if name == VOID}
    void = {IGNORE} - set(names) if values is None else set()
    layout = Layout(
        pattern,
        folder,
        names,
        frozenset(ignored | void),
        classes.remark,
        void=bool(void - ignored) and not ade,
        colours=classes.colours,
    )
    if not findings.bad and len(layout.values) < 2:
        raise UsageError(
            f"{len(layout.values)} of the classes {', '.join(dict.fromkeys(names.values()))} are "
            "left to learn, and it takes two: ignore fewer"
        )
    return layout


def _is_ade20k(root: Path, labels: str) -> bool:
    return (
        not (root / CLASSES).is_file()
        and (root / "annotations" / "training").is_dir()
        and labels == "annotations"
    )


def _classes(
    pattern: _Pattern,
    labels: str,
    findings: Gathering,
    values: Mapping[Any, str] | None,
    *,
    ade: bool,
) -> Classes:
    """What the values are called: by the recipe, by ADE20K, or by what lies in the folder."""
    if values is not None:
        return checked_values(values)
    if ade:
        return Classes(ade20k_names(pattern.root))
    return stored_names(pattern.root / CLASSES, partial(_occurring, pattern, labels), findings)


def _pattern(root: Path) -> _Pattern | None:
    """How images and label images lie in a folder; None where there are no folders for both."""
    if not root.is_dir():
        return None
    for pictures in _called(root, PICTURES):
        if parts := by_part(root / pictures):
            return _Pattern(root, pictures, parts, split_first=False)
    splits = _splits(root)
    inner = {part: _called(root / folder, PICTURES) for part, folder in splits.items()}
    if splits and all(inner.values()):
        pattern = _Pattern(root, next(iter(inner.values()))[0], splits, split_first=True)
        return pattern if _label_folders(pattern) else None
    for pictures in _called(root, PICTURES):
        pattern = _Pattern(root, pictures, {"train": ""}, split_first=False)
        if _label_folders(pattern):
            return pattern
    return None


def _splits(root: Path) -> dict[str, str]:
    """The folders called like splits, where no two are called alike: whoever reads classes says
    that.
    """
    try:
        return by_part(root)
    except DataError:
        return {}


def _called(folder: Path, kinds: Iterable[str]) -> list[str]:
    return [name for name in folders_in(folder) if " ".join(words_of(name)) in kinds]


def _label_folders(pattern: _Pattern) -> list[str]:
    """The names of folders of label images: those called so that hold images for one of the
    parts.
    """
    part = next(iter(pattern.parts))
    around = pattern.root / pattern.parts[part] if pattern.split_first else pattern.root
    names = [name for name in folders_in(around) if _is_target(name) and name != pattern.pictures]
    return [
        name
        for name in names
        if any(_holds_images(pattern.root / pattern.folder(name, split)) for split in pattern.parts)
    ]


def _is_target(name: str) -> bool:
    words = words_of(name)
    return " ".join(words) in TARGETS or (bool(words) and words[0] in _BEGIN)


def _holds_images(folder: Path) -> bool:
    return folder.is_dir() and bool(listing(folder, accepts=is_label).files)


def _first_of(pattern: _Pattern, findings: Gathering) -> str:
    """The folder of label images where none is named: `labels`, or the first there is; that others
    are not read is said.
    """
    names = _label_folders(pattern) or ["labels"]
    chosen = "labels" if "labels" in names else names[0]
    if rest := [name for name in names if name != chosen]:
        findings.warn(
            pattern.root,
            "labels",
            f"{chosen} is read, and {few(rest)} is not: segmentation.labels chooses",
        )
    return chosen


def _occurring(
    pattern: _Pattern, labels: str, limit: int, expected: Collection[int] = ()
) -> set[int]:
    """The values that label images hold; reading ends once there are more than `limit`, or all that
    are expected, however many masks are empty.
    """
    values: set[int] = set()
    for part in pattern.parts:
        for file in _label_files(pattern, labels, part):
            values |= _held(file)
            if len(values) > limit or (expected and values.issuperset(expected)):
                return values
    return values


def _label_files(pattern: _Pattern, labels: str, part: str) -> list[Path]:
    folder = pattern.root / pattern.folder(labels, part)
    return (
        [folder / file for file in listing(folder, accepts=is_label).files]
        if folder.is_dir()
        else []
    )


def _held(file: Path) -> set[int]:
    try:
        return set(
            np.flatnonzero(np.bincount(read_values(file).reshape(-1), minlength=256)).tolist()
        )
    except BadImage:  # reading all of them says what is wrong
        return set()
