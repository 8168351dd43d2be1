"""Images with label images, whose pixel values are classes; read in one pass in which every fault is found.

    root/images/{train,val,test}/NAME.jpg    root/labels/{train,val,test}/NAME.png    root/classes.json: {"0": "background", …}

or ADE20K's own layout: `images/{training,validation}`, `annotations/{training,validation}`, 150 classes from value 1 on, and 0 ignored. Palette images
hold the value as index; their colours are not looked at. What is ignored (a value, pixels outside a field of view) becomes `IGNORE`, has no class
index, and counts nowhere.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from softless.data.datasets import Splits, fingerprint, scaling, stratified_cut
from softless.data.findings import NO_TEXT, Gathering
from softless.data.folder import Listing, existing_folder, listing
from softless.data.images import FORMATS, BadImage, decode, verify
from softless.data.progress import track
from softless.data.samples import FileSamples
from softless.errors import DataError, UsageError, unknown
from softless.words import is_text

if TYPE_CHECKING:  # training lies above data: its recipe is read here by its field names only
    from softless.training.recipe import DataSpec

IGNORE = 255  # of label arrays: a pixel that counts nowhere
PARTS = {"train": "train", "val": "val", "test": "test"}
ADE20K_PARTS = {"train": "training", "val": "validation"}
ADE20K_CLASSES = 150
CLASSES, ADE20K_NAMES = "classes.json", "objectInfo150.txt"


@dataclass(frozen=True)
class Layout:
    """Where images and label images lie, and what the values are called."""

    root: Path
    parts: Mapping[str, str]  # part -> folder
    labels: str  # folder of label images
    names: Mapping[int, str]  # value -> class, those that are ignored too
    ignored: frozenset[int]

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


class LabelImages(FileSamples):
    """Images in files, each with a label image.

    Args:
        root: folder that all names start from.
        part: below which folder of images and label images the names repeat, for example "train".
        files: images, `images/part/NAME.jpg`.
        labels: their label images.
        lookup: class index of each value (256,).
        counts: pixels of each class (n, K).
        digests: of the classes of all pixels.
        channels: of the images, 1 or 3.
        fovs: their fields of view, where there are some: outside, where the value is 0, pixels are ignored.
    """

    def __init__(
        self,
        root: Path,
        part: str,
        files: Sequence[str],
        labels: Sequence[str],
        lookup: np.ndarray,
        counts: np.ndarray,
        digests: Sequence[bytes],
        channels: int,
        fovs: Sequence[str] | None = None,
    ) -> None:
        super().__init__(root, files, np.zeros(len(files), dtype=np.int64), channels)
        self.part, self.labels, self.lookup, self.counts = part, list(labels), lookup, counts
        self.digests, self.fovs = list(digests), None if fovs is None else list(fovs)

    def target(self, index: int) -> np.ndarray:
        """(h, w) uint8: class index of each pixel, or IGNORE."""
        fov = None if self.fovs is None else read_values(self.root / self.fovs[index])
        return _classes_of(read_values(self.root / self.labels[index]), self.lookup, fov)

    def key(self, index: int) -> str:
        """The image's path below its part, without its ending: what its label image has too."""
        return Path(self.files[index]).relative_to(f"images/{self.part}").with_suffix("").as_posix()

    def update(self, digest: Any) -> None:
        super().update(digest)
        for one in self.digests:
            digest.update(one)

    def renumbered(self, places: Sequence[int]) -> "LabelImages":
        other = self.take(range(len(self)))
        named = self.lookup != IGNORE
        other.lookup = np.where(named, np.asarray(places, np.uint8)[np.where(named, self.lookup, 0)], np.uint8(IGNORE))
        other.counts = self.counts[:, np.argsort(places)]
        return other

    def take(self, indices: Sequence[int] | np.ndarray) -> "LabelImages":
        chosen = [int(index) for index in indices]
        return LabelImages(
            self.root,
            self.part,
            [self.files[i] for i in chosen],
            [self.labels[i] for i in chosen],
            self.lookup,
            self.counts[chosen],
            [self.digests[i] for i in chosen],
            self.channels,
            None if self.fovs is None else [self.fovs[i] for i in chosen],
        )


def open_label_images(
    spec: "DataSpec", seed: int, *, labels: str | None = None, ignore: Sequence[str | int] = (), fov: str | None = None
) -> tuple[Splits, Layout]:
    """Read all images and label images once and cut them into splits.

    Without a validation part `spec.val_fraction` of the training images, drawn by `seed`, are it. `spec.limit` thins the training part alone.

    Args:
        spec: path, channels and scaling.
        seed: of what is drawn.
        labels: folder of label images; None is `labels`, or ADE20K's `annotations`.
        ignore: classes or values that count nowhere.
        fov: folder of masks whose zeros count nowhere.

    Raises:
        DataError: all that is wrong with the files, each with its path.
        UsageError: a class to ignore that is none, or a field of `spec` that cannot be used.
    """
    if not spec.path:
        raise DataError(f"the data source '{spec.source}' needs a path: give --data PATH or set data.path=PATH")
    if spec.faults != "stop":
        raise UsageError(
            f"data.faults={spec.faults} has no effect on label images: mend what `softless data check {spec.path}` names, and leave it at stop"
        )
    root = existing_folder(spec.path)
    found = Gathering(root)
    layout = layout_of(root, found, labels, ignore)
    parts = read_parts(layout, found, spec.in_chans, fov)
    if found.bad:
        faults = "\n".join(f"  {fault}" for fault in found.bad)
        raise DataError(
            f"{root} cannot be trained on, {len(found.bad)} faults (`softless data check` repeats this):\n{faults}"
        )
    train, val, test = (parts.get(part) for part in ("train", "val", "test"))
    assert train is not None
    if val is None:
        kept, cut = stratified_cut(train.targets, spec.val_fraction, seed)
        train, val = train.take(kept), train.take(cut)
    if spec.limit is not None:
        if spec.limit < 1:
            raise UsageError(f"data.limit={spec.limit}: keep at least one training image, or none for no limit")
        train = train.take(np.sort(np.random.default_rng(seed).permutation(len(train))[: spec.limit]))
    mean, std = scaling(spec, train)
    told = fingerprint(spec.source, layout.classes, {"train": train, "val": val, "test": test})
    return Splits(train, val, test, layout.classes, spec.in_chans, mean, std, told), layout


def is_label_layout(root: Path) -> bool:
    """Whether a folder holds images and label images, and not class folders."""
    return bool(_parts(root)) and ((root / CLASSES).is_file() or bool(label_folders(root)))


def label_folders(root: Path) -> list[str]:
    """The folders of label images beside `images`: those whose name begins so and that have its parts."""
    places = sorted(entry.name for entry in root.iterdir() if entry.name.startswith(("label", "annotation")))
    return [name for name in places if any((root / name / part).is_dir() for part in _parts(root).values())]


def layout_of(root: Path, found: Gathering, labels: str | None = None, ignore: Sequence[str | int] = ()) -> Layout:
    """How the folder is laid out; what is wrong with its classes is a fault."""
    parts = _parts(root)
    if not parts:
        raise DataError(
            f"{root} holds no label images: expected images/train and labels/train in it, and {CLASSES} "
            '({"0": "background", …}), or ADE20K\'s images/training and annotations/training'
        )
    ade = parts is ADE20K_PARTS
    names = _ade20k_names(root) if ade else _names(root, found)
    if "train" not in parts or not (root / "images" / parts["train"]).is_dir():
        found.fault(root / "images", "layout", f"it has {' and '.join(parts)} but no train")
    taken = frozenset(_value(one, names) for one in ignore) | ({0} if ade else set())
    layout = Layout(root, parts, labels or ("annotations" if ade else "labels"), names, taken)
    if not found.bad and len(layout.values) < 2:
        raise UsageError(
            f"{len(layout.values)} of the classes {', '.join(names.values())} are left to learn, and it takes two: ignore fewer"
        )
    return layout


def read_parts(layout: Layout, found: Gathering, channels: int = 3, fov: str | None = None) -> dict[str, LabelImages]:
    """Read every image and label image; what is wrong with one is a fault, and the image is left out."""
    return {part: read_part(layout, part, found, channels, fov) for part in layout.parts}


def read_values(path: Path) -> np.ndarray:
    """The values (h, w) of a label image, uint8: of a palette image the indices, of a 1-bit mask 0 and 1.

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
        if image.mode not in {"L", "P", "1"}:
            raise _no_label(path, f"colours (mode {image.mode})", "write the class of each pixel as 8-bit grey PNG")
        return np.asarray(image).astype(np.uint8)


def _no_label(path: Path, holds: str, way: str) -> BadImage:
    error = BadImage(f"{path} holds {holds}, and the value of a label image's pixel is its class: {way}")
    error.kind = "pixel format"
    error.reason = f"it holds {holds}, and the value of a label image's pixel is its class: {way}"
    return error


def _parts(root: Path) -> Mapping[str, str]:
    """The parts that are there; exactly ADE20K_PARTS for that layout."""
    images = root / "images"
    if (images / ADE20K_PARTS["train"]).is_dir() and (root / "annotations" / ADE20K_PARTS["train"]).is_dir():
        return ADE20K_PARTS
    return {part: folder for part, folder in PARTS.items() if (images / folder).is_dir()}


def _names(root: Path, found: Gathering) -> dict[int, str]:
    """classes.json, an object from value to name or a list of names."""
    file = root / CLASSES
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))  # some tools begin with a byte-order mark
    except FileNotFoundError:
        found.fault(file, "classes", 'no such file; it says what the values mean: {"0": "background", "1": "vessel"}')
        return {}
    except (OSError, ValueError) as error:
        found.fault(file, "classes", f"it is no complete JSON: {error}")
        return {}
    content = dict(enumerate(content)) if isinstance(content, list) else content
    if not isinstance(content, dict) or not content:
        found.fault(file, "classes", f"it holds {content!r:.40}; it is an object from value to name")
        return {}
    names: dict[int, str] = {}
    for key, name in content.items():
        if not str(key).isascii() or not str(key).isdigit() or int(key) >= IGNORE or not isinstance(name, str):
            found.fault(
                file,
                "classes",
                f"the entry {key!r}: {name!r} is none; values are whole numbers from 0 to 254, names are texts",
            )
        elif not is_text(name):
            found.fault(file, "classes", f"the entry {key!r} has {NO_TEXT}")
        elif name in names.values():
            found.fault(file, "classes", f"the name '{name}' is given twice")
        else:
            names[int(key)] = name
    return names


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


def read_part(layout: Layout, part: str, found: Gathering, channels: int = 3, fov: str | None = None) -> LabelImages:
    """`read_parts` of one part."""
    folder = layout.parts[part]
    images = _by_key(layout.root / "images" / folder, found)
    labels = _by_key(layout.root / layout.labels / folder, found)
    fovs = {} if fov is None else _by_key(layout.root / fov / folder, found)
    for key in sorted(set(labels) - set(images)):
        found.fault(layout.root / labels[key], "missing image", f"there is no image of this name in images/{folder}")
    taken: list[tuple[str, str, str, np.ndarray, bytes]] = []
    for key, file in track(images.items(), len(images), f"reading {part}"):
        read = _read(layout, part, file, labels.get(key), fovs.get(key, "") if fov else None, found)
        if read is not None:
            taken.append((file, labels[key], fovs.get(key, ""), *read))
    if not images:
        found.fault(layout.root / "images" / folder, "layout", "it holds no images")
    counts = np.array([one[3] for one in taken]).reshape(len(taken), len(layout.values))
    title = part if len(label_folders(layout.root)) < 2 else f"{part}, {layout.labels}"
    found.counts[title] = dict(zip(layout.classes, counts.sum(0).tolist(), strict=True))
    return LabelImages(
        layout.root, folder, [one[0] for one in taken], [one[1] for one in taken], layout.lookup, counts, [one[4] for one in taken], channels,
        None if fov is None else [one[2] for one in taken],
    )  # fmt: skip


def _by_key(folder: Path, found: Gathering) -> dict[str, str]:
    """Images below a folder, relative to the data's root, by their path in it without its ending."""
    by_key: dict[str, str] = {}
    if not folder.is_dir():
        found.fault(folder, "layout", "there is no such folder")
        return by_key
    inside: Listing = listing(folder)
    found.passed_over += inside.other
    found.hidden += inside.hidden
    for file in inside.files:
        key = Path(file).with_suffix("").as_posix()
        if key in by_key:
            found.fault(
                folder / file,
                "layout",
                f"{Path(by_key[key]).name} has the same name but for its ending: one of them only",
            )
            continue
        by_key[key] = (folder / file).relative_to(found.root).as_posix()
    return by_key


def _read(
    layout: Layout, part: str, file: str, label: str | None, fov: str | None, found: Gathering
) -> tuple[np.ndarray, bytes] | None:
    """Pixels of each class (K,) and a digest of them all; None where the image cannot be used."""
    decoded = found.image(layout.root / file, part, "")
    if label is None:
        name = f"{layout.labels}/{layout.parts[part]}/{Path(file).stem}.png"
        found.fault(layout.root / file, "missing label", f"it has no label image {name}")
        return None
    if fov == "":
        found.fault(layout.root / file, "missing field of view", "it has none")
        return None
    size = None if decoded is None else decoded.image.size
    values = _checked(layout.root / label, size, found)
    seen = None if fov is None else _checked(layout.root / fov, size, found)
    if values is None or decoded is None or (fov is not None and seen is None):
        return None
    held = np.flatnonzero(np.bincount(values.reshape(-1), minlength=256)).tolist()
    strange = [value for value in held if value not in layout.names and value not in layout.ignored]
    if strange:
        pixels = int(np.isin(values, strange).sum())
        allowed = ", ".join(f"{value} {name}" for value, name in layout.names.items())
        shown = ", ".join(map(str, strange[:20])) + (", …" if len(strange) > 20 else "")
        found.fault(
            layout.root / label, "label values", f"it holds the values {shown} ({pixels} pixels); allowed are {allowed}"
        )
        return None
    classes = _classes_of(values, layout.lookup, seen)
    counts = np.bincount(classes.reshape(-1), minlength=256)[: len(layout.values)]
    return counts, hashlib.blake2b(classes.tobytes(), digest_size=16).digest()


def _checked(path: Path, size: tuple[int, int] | None, found: Gathering) -> np.ndarray | None:
    """The values of a label image that has this size."""
    try:
        values = read_values(path)
        verify(path)
    except BadImage as error:
        found.fault(path, error.kind, error.reason)
        return None
    height, width = values.shape
    if size is not None and (width, height) != size:
        found.fault(
            path,
            "label size",
            f"it is {width} x {height}, and its image is {size[0]} x {size[1]}: they must be the same",
        )
        return None
    return values


def _classes_of(values: np.ndarray, lookup: np.ndarray, fov: np.ndarray | None) -> np.ndarray:
    """Class indices (h, w) of values; IGNORE where the field of view is 0."""
    classes: np.ndarray = lookup[values]
    return classes if fov is None else np.where(fov > 0, classes, np.uint8(IGNORE))
