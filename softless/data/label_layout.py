"""Where a folder has images and label images, and what the values of these are called.

    root/images/{train,val,test}/NAME.jpg    root/labels/{train,val,test}/NAME.png    root/classes.json: {"0": "background", …}

in any usual spelling of splits and folders (`img_dir/train`, `annotations/training`, `masks/val`), the other way round (`train/images`,
`train/masks`), or `images` and `masks` alone. Without classes.json, ADE20K's own layout has its 150 classes from value 1 on, and masks of two values
have a background and an object.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from softless.data.exports import export_in
from softless.data.findings import NO_TEXT, Gathering
from softless.data.folder import listing
from softless.data.images import FORMATS, BadImage, decode
from softless.data.places import ALIKE, PICTURES, TARGETS, by_part, folders_in, twins_of, words_of
from softless.errors import DataError, UsageError, unknown
from softless.words import few, is_text

IGNORE = 255  # of class indices: a pixel that counts nowhere; of values one that is void where no class is called so
ADE20K_CLASSES = 150
CLASSES, ADE20K_NAMES = "classes.json", "objectInfo150.txt"
_BEGIN = frozenset({"label", "labels", "annotation", "annotations", "mask", "masks"})  # of `labels_observer1`
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
TWO = ("background", "object")  # what masks of two values hold where nothing says more


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
        return f"{kind}/{by_part(self.root / kind).get(part, split) if (self.root / kind).is_dir() else split}"


class _Classes(NamedTuple):
    """What values are called, what is said of how that was found, and the value of each colour where colours stand for values."""

    names: dict[int, str]
    said: str = ""
    colours: dict[int, int] | None = None


@dataclass(frozen=True)
class Layout:
    """Where images and label images lie, and what the values are called."""

    pattern: _Pattern
    labels: str  # the name of the folders of label images
    names: Mapping[int, str]  # value -> class, those that are ignored too
    ignored: frozenset[int]
    read_as: str = ""  # what is said where the values are not those of classes.json
    void: bool = False  # whether 255 counts nowhere only for want of a name
    colours: Mapping[int, int] | None = None  # red << 16 | green << 8 | blue -> value, where classes.json names colours

    @property
    def root(self) -> Path:
        return self.pattern.root

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.pattern.parts)

    def folder(self, part: str, kind: str | None = None) -> str:
        """Where the images of a part lie below the root, or what belongs to them: `labels`, or a field of view."""
        return self.pattern.folder(kind or self.pattern.pictures, part)

    @property
    def values(self) -> tuple[int, ...]:
        """Those that a model has an output for, in the order of their class indices."""
        return tuple(sorted(set(self.names) - self.ignored))

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.names[value] for value in self.values)

    @property
    def lookup(self) -> np.ndarray:
        """(256,) uint8: class index of each value, or IGNORE."""
        table = np.full(256, IGNORE, dtype=np.uint8)
        table[list(self.values)] = np.arange(len(self.values))
        return table


def is_label_layout(root: Path) -> bool:
    """Whether a folder holds images and label images, and not class folders."""
    pattern = _pattern(root)
    return pattern is not None and ((root / CLASSES).is_file() or bool(_label_folders(pattern)))


def label_folders(root: Path) -> list[str]:
    """The names of the folders of label images beside those of images; several where several people drew."""
    pattern = _pattern(root)
    return [] if pattern is None else _label_folders(pattern)


def layout_of(root: Path, found: Gathering, labels: str | None = None, ignore: Sequence[str | int] = ()) -> Layout:
    """How the folder is laid out; what is wrong with its classes is a fault.

    Args:
        root: the folder.
        found: takes faults, and what is read in a way of its own.
        labels: which folder of label images; the only one there is by default.
        ignore: classes or values that count nowhere.

    Raises:
        DataError: no images with label images.
        UsageError: a class to ignore that is none, or fewer than two that are left.
    """
    pattern = _pattern(root)
    export = None if pattern is not None and _label_folders(pattern) else export_in(root)
    if pattern is None or export:
        raise DataError(
            f"{root} holds no label images: expected images/train and labels/train in it, and {CLASSES} "
            '({"0": "background", …}), or ADE20K\'s images/training and annotations/training'
            + (f"; it holds {export}" if export else "")
        )
    if "train" not in pattern.parts:
        found.fault(
            root / pattern.folder(pattern.pictures, next(iter(pattern.parts))),
            "layout",
            f"it has {' and '.join(pattern.parts)} but no train",
        )
    folder = labels or _first_of(pattern, found)
    ade = not (root / CLASSES).is_file() and (root / "annotations" / "training").is_dir() and folder == "annotations"
    classes = _Classes(_ade20k_names(root)) if ade else _names(pattern, folder, found)
    names = classes.names
    taken = {_value(one, names) for one in ignore} | ({0} if ade else set())
    void = {IGNORE} - set(names)
    layout = Layout(
        pattern,
        folder,
        names,
        frozenset(taken | void),
        classes.said,
        void=bool(void - taken) and not ade,
        colours=classes.colours,
    )
    if not found.bad and len(layout.values) < 2:
        raise UsageError(
            f"{len(layout.values)} of the classes {', '.join(names.values())} are left to learn, and it takes two: ignore fewer"
        )
    return layout


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
    """The folders called like splits, where no two are called alike: whoever reads classes says that."""
    try:
        return by_part(root)
    except DataError:
        return {}


def _called(folder: Path, kinds: Iterable[str]) -> list[str]:
    return [name for name in folders_in(folder) if " ".join(words_of(name)) in kinds]


def _label_folders(pattern: _Pattern) -> list[str]:
    """The names of folders of label images: those called so that hold images for one of the parts."""
    part = next(iter(pattern.parts))
    around = pattern.root / pattern.parts[part] if pattern.split_first else pattern.root
    names = [name for name in folders_in(around) if _is_target(name) and name != pattern.pictures]
    return [
        name for name in names if any(_holds_images(pattern.root / pattern.folder(name, one)) for one in pattern.parts)
    ]


def _is_target(name: str) -> bool:
    words = words_of(name)
    return " ".join(words) in TARGETS or (bool(words) and words[0] in _BEGIN)


def _holds_images(folder: Path) -> bool:
    return folder.is_dir() and bool(listing(folder).files)


def _first_of(pattern: _Pattern, found: Gathering) -> str:
    """The folder of label images where none is named: `labels`, or the first there is; that others are not read is said."""
    names = _label_folders(pattern) or ["labels"]
    chosen = "labels" if "labels" in names else names[0]
    if others := [name for name in names if name != chosen]:
        found.warn(pattern.root, "labels", f"{chosen} is read, and {few(others)} is not: segmentation.labels chooses")
    return chosen


def _names(pattern: _Pattern, labels: str, found: Gathering) -> _Classes:
    """What the values are called."""
    file = pattern.root / CLASSES
    if not file.exists():
        held = _occurring(pattern, labels, most=2)
        if len(held) == 2:
            low, high = sorted(held)
            said = f"no {CLASSES}: masks of two values, {low} as {TWO[0]} and {high} as {TWO[1]}"
            return _Classes({low: TWO[0], high: TWO[1]}, said)
        shown = f"; the first label images hold {', '.join(map(str, sorted(held)))}" if held else ""
        found.fault(
            file, "classes", f'no such file; it says what the values mean: {{"0": "background", "1": "vessel"}}{shown}'
        )
        return _Classes({})
    stored = _stored(file, found)
    names = stored.names
    if len(names) == 2 and stored.colours is None:
        held = _occurring(pattern, labels, most=2, known=set(names))
        if len(held) == 2 and held != set(names):
            pairs = dict(zip(sorted(held), (names[key] for key in sorted(names)), strict=True))
            told = " and ".join(f"{value} as {name}" for value, name in pairs.items())
            return _Classes(pairs, f"the label images hold two values, and {CLASSES} names two others: {told}")
    return stored


def _occurring(pattern: _Pattern, labels: str, most: int, known: Collection[int] = ()) -> set[int]:
    """The values that label images hold; reading ends once there are more than `most`, or all that are known, however many masks are empty."""
    held: set[int] = set()
    for part in pattern.parts:
        for file in _label_files(pattern, labels, part):
            held |= _held(file)
            if len(held) > most or (known and held.issuperset(known)):
                return held
    return held


def _label_files(pattern: _Pattern, labels: str, part: str) -> list[Path]:
    folder = pattern.root / pattern.folder(labels, part)
    return [folder / file for file in listing(folder).files] if folder.is_dir() else []


def _held(file: Path) -> set[int]:
    try:
        return set(np.flatnonzero(np.bincount(read_values(file).reshape(-1), minlength=256)).tolist())
    except BadImage:  # reading all of them says what is wrong
        return set()


def _stored(file: Path, found: Gathering) -> _Classes:
    """classes.json: an object from value to name, a list of names, or an object from colour to name, {"#000000": "ground", "#ff0000": "water"}."""
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))  # some tools begin with a byte-order mark
    except (OSError, ValueError, RecursionError) as error:
        found.fault(file, "classes", f"it is no complete JSON: {error}")
        return _Classes({})
    content = dict(enumerate(content)) if isinstance(content, list) else content
    colours = None
    if isinstance(content, dict) and content and all(_COLOUR.fullmatch(key) for key in map(str, content)):
        colours = {int(key.removeprefix("#"), 16): place for place, key in enumerate(content)}
        content = dict(enumerate(content.values()))
    if not isinstance(content, dict) or not content:
        found.fault(file, "classes", f"it holds {content!r:.40}; it is an object from value to name")
        return _Classes({})
    names: dict[int, str] = {}
    for key, name in content.items():
        if not str(key).isascii() or not str(key).isdigit() or int(key) > 255 or not isinstance(name, str):
            found.fault(
                file,
                "classes",
                f"the entry {key!r}: {name!r} is none; values are whole numbers from 0 to 255, names are texts",
            )
        elif not is_text(name):
            found.fault(file, "classes", f"the entry {key!r} has {NO_TEXT}")
        elif name in names.values():
            found.fault(file, "classes", f"the name '{name}' is given twice")
        else:
            names[int(key)] = name
    for name, twin in twins_of(names.values()).items():
        found.fault(file, "classes", f"the classes '{twin}' and '{name}' {ALIKE}")
    return _Classes(names, colours=colours)


def _ade20k_names(root: Path) -> dict[int, str]:
    file = root / ADE20K_NAMES
    names = {value: str(value) for value in range(1, ADE20K_CLASSES + 1)}
    if file.is_file():
        rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()[1:]]
        names |= {int(row[0]): row[-1].strip().split(",")[0] for row in rows if row[0].strip().isdigit()}
    return {0: "other", **names}


def _value(one: str | int, names: Mapping[int, str]) -> int:
    by_name = {name: value for value, name in names.items()}
    if isinstance(one, str):
        if one not in by_name:
            raise unknown("class to ignore", one, by_name)
        return by_name[one]
    if not 0 <= one <= 255:
        raise UsageError(f"segmentation.ignore={one}: values of label images lie in 0..255")
    return one


def read_values(path: Path, colours: Mapping[int, int] | None = None) -> np.ndarray:
    """The values (h, w) of a label image, uint8: of a palette image the indices, of a 1-bit mask 0 and 1, of grey stored as colour the grey.

    Raises:
        BadImage: unreadable, or no image of one 8-bit value per pixel.
    """
    try:
        decode(path, 1)  # refuses what no image file may be
    except BadImage as error:
        if error.kind == "pixel format":
            raise _no_label(path, "more than 8 bits per pixel", "write the same values as 8-bit grey PNG") from error
        raise
    with Image.open(path, formats=FORMATS) as image:
        if colours is not None:
            return _values_of_colours(path, np.asarray(image.convert("RGB")).astype(np.int64), colours)
        if image.mode in {"RGB", "RGBA", "LA"}:
            pixels = np.asarray(image.convert("RGB"))
            if (pixels == pixels[..., :1]).all():  # as painting programs save black and white
                return pixels[..., 0].copy()
        if image.mode not in {"L", "P", "1"}:
            raise _no_label(
                path,
                f"colours (mode {image.mode})",
                f'name the colours in {CLASSES} as "#ff0000", or write the class of each pixel as 8-bit grey PNG',
            )
        return np.asarray(image).astype(np.uint8)


def _values_of_colours(path: Path, pixels: np.ndarray, colours: Mapping[int, int]) -> np.ndarray:
    """(h, w, 3) colours as the values (h, w) that stand for them."""
    packed = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    held = sorted(colours)
    places = np.searchsorted(held, packed).clip(max=len(held) - 1)
    other = np.asarray(held)[places] != packed
    if other.any():
        strange, counts = np.unique(packed[other], return_counts=True)
        shown = ", ".join(
            f"#{colour:06x} ({count:,} pixels)" for colour, count in zip(strange[:10], counts, strict=False)
        )
        raise _no_label(
            path,
            f"colours that {CLASSES} does not name: {shown}",
            "name them, or save label images without compression losses",
        )
    return np.array([colours[colour] for colour in held], dtype=np.uint8)[places]


def _no_label(path: Path, holds: str, way: str) -> BadImage:
    error = BadImage(f"{path} holds {holds}, and the value of a label image's pixel is its class: {way}")
    error.kind = "pixel format"
    error.reason = f"it holds {holds}, and the value of a label image's pixel is its class: {way}"
    return error
