"""A whole data set read once, before anything is trained on it: every fault by its file, and what
was not read.

What is read here is what training reads, by the same functions; but the first fault does not end
it.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from softless.bags.check import bags_root, check_bags, is_bags
from softless.data.arrays import (
    NOT_AN_NPZ,
    no_classes,
    no_images,
    no_labels,
    no_numbers,
    not_finite,
    npz_file,
    say_outside,
    why_no_npz,
)
from softless.data.findings import DataCheck, Fault, Gathering, not_there
from softless.data.folder import Listing, existing_folder, folder_parts, listing, read_as
from softless.data.groups import grouped_cut
from softless.data.images import IMAGE_TYPES, MAX_PIXELS, MIN_SIDE, limit
from softless.data.places import LAYOUT, PARTS, class_splits, folders_in
from softless.data.progress import track
from softless.data.samples import FileSamples
from softless.data.tables import read_table
from softless.errors import DataError, Faults, UsageError, located
from softless.experiment.bag_table import BagTableSpec
from softless.experiment.groups import TableSpec
from softless.experiment.ranges import Range
from softless.tasks.detection import coco
from softless.tasks.detection.annotation_files import annotation_files
from softless.tasks.detection.samples import check_masks, not_coco
from softless.tasks.dino.samples import without_classes
from softless.tasks.segmentation.layout import is_label_layout, label_folders, layout_of
from softless.tasks.segmentation.samples import read_parts
from softless.words import ALIKE, NO_TEXT, composed, counted, is_text, twins_of

__all__ = ["DataCheck", "Fault", "check"]

LABELS = "label images"
CUT = 0.15  # of the images, for a validation part that is tried


@dataclass(frozen=True)
class Reading:
    """What a recipe reads of data, so that the check refuses what its training refuses."""

    source: str  # folder, npz, coco, masks
    classes: bool = True  # whether images of folders must have a class
    masks: bool = True  # whether objects must have masks
    labels: str | None = None  # folder of label images
    ignore: tuple[str | int, ...] = ()  # classes and values that count nowhere
    fov: str | None = None  # folder of fields of view
    values: Mapping[Any, str] | None = None  # what stored values of label images are called
    range: str | None = None  # the declared range of the images' values
    table: TableSpec | BagTableSpec | None = None  # that lists the images or the slides
    group: str | None = None  # a pattern that finds groups in the paths of class folders
    # what `Bag.open` takes, of a recipe that reads bags
    bags: Mapping[str, Any] | None = None


def check(
    path: str | Path | None,
    *,
    images: str | Path | None = None,
    min_side: int | None = None,
    max_pixels: int | None = None,
    strict: bool = False,
    range: str | None = None,
    reading: Reading | None = None,
) -> DataCheck:
    """Read a data set in full and report all that is wrong with it.

    Args:
        path: a folder `root/{train,val,test}/class/*`, `root/class/*` or of images alone; images
            with label images, `root/images/{train,val,test}` and `root/labels*/{train,val,test}`,
            or as ADE20K has them; a COCO json, or a folder with several in `annotations/`; an npz
            file with MedMNIST's keys; a folder of bags of features. Of a table (`reading.table`) the
            folder that its files start from, or None.
        images: folder that a COCO json's file names start from; looked for by the usual layouts
            without it.
        min_side: images with a shorter side below this are bad; 8, or SOFTLESS_MIN_SIDE, by
            default.
        max_pixels: images with more pixels are bad and not decoded; 89,478,485, or
            SOFTLESS_MAX_PIXELS, by default.
        strict: warnings and duplicates fail the check too.
        range: the range of the images' values, as data.range of a recipe; without it images of more
            than 8 bits are bad.
        reading: what a recipe reads of the data; without it all that the layout can mean is
            checked.

    Returns:
        Every bad file as [path, reason] (COCO: [file, annotation id, reason]), counts, and
        duplicates across splits.

    Raises:
        DataError: nothing is there, or nothing that can be checked.
        UsageError: a limit below 1, or `images` for data that are not COCO.
    """
    listed = None if reading is None else reading.table
    if _reads_bags(path, reading):
        _refuse_of_images(images=images, min_side=min_side, max_pixels=max_pixels, range=range)
        return _check_bags(path, reading, strict=strict)
    assert not isinstance(listed, BagTableSpec)
    root = located(path or (listed and listed.path) or "")
    if listed is None and not root.exists():
        raise not_there(root)
    for variable, default, value in (
        ("SOFTLESS_MIN_SIDE", MIN_SIDE, min_side),
        ("SOFTLESS_MAX_PIXELS", MAX_PIXELS, max_pixels),
    ):
        limit(variable, default, value)
    scale = Range.of(range if reading is None else reading.range)
    findings = Gathering(root if root.is_dir() else root.parent, max_pixels, min_side, scale)
    if listed is not None:
        return findings.report(
            located(listed.path or ""), _check_table(listed, path, findings), strict=strict
        )
    return findings.report(
        root,
        _checked(root, findings, None if images is None else located(images), reading),
        strict=strict,
    )


def _reads_bags(path: str | Path | None, reading: Reading | None) -> bool:
    """Whether slides are meant: by the recipe, or by what lies there."""
    if reading is not None:
        return reading.bags is not None
    return path is not None and is_bags(located(path))


def _refuse_of_images(**options: object) -> None:
    """Raise a UsageError for what says nothing of bags."""
    for name, value in options.items():
        if value is not None:
            raise UsageError(
                f"{name}={value} is for images, and these are bags of features: leave it out"
            )


def _check_bags(path: str | Path | None, reading: Reading | None, *, strict: bool) -> DataCheck:
    """Slides as bags of features, and the table that lists them."""
    spec = None if reading is None else reading.table
    assert spec is None or isinstance(spec, BagTableSpec)
    root = bags_root(path, spec)
    findings = Gathering(root if root.is_dir() else root.parent)
    options = {} if reading is None else reading.bags or {}
    return findings.report(root, check_bags(root, spec, options, findings), strict=strict)


def _checked(root: Path, findings: Gathering, images: Path | None, reading: Reading | None) -> str:
    """Read it as what the recipe takes, or as what it is; returns what that was."""
    kind = None if reading is None else reading.source
    annotations = _annotation_files(root, findings) if kind in {None, "coco"} else []
    if images is not None and not annotations:
        raise UsageError(f"images={images} is for COCO annotations, and {root} holds none")
    if annotations or kind == "coco":
        return _check_coco(root, annotations, images, findings, reading)
    if kind == "masks" or (kind is None and root.is_dir() and is_label_layout(root)):
        return _check_label_images(root, findings, reading)
    if kind == "npz" or (kind is None and root.is_file() and root.suffix.lower() == ".npz"):
        return _check_npz(npz_file(root), findings)
    if (
        reading is not None
        and not reading.classes
        and (places := without_classes(existing_folder(root)))
    ):
        return "; ".join({
            _check_images(root / subfolder, findings, part) for part, subfolder in places.items()
        })
    if kind == "folder" or root.is_dir():
        layout = _check_folder(existing_folder(root), findings, classed=reading is not None)
        if reading is not None and reading.group is not None and not findings.bad:
            _check_groups(root, reading.group, findings)
        return layout
    raise DataError(f"{root} is neither a folder, a COCO json file (.json) nor an npz file (.npz)")


def _check_table(spec: TableSpec, folder: str | Path | None, findings: Gathering) -> str:
    """A table against its files: rows, groups, classes, and every image."""
    listed = read_table(spec, None if folder is None else str(folder), 3, findings.scale)
    findings.root = listed.root
    findings.bad += listed.faults
    for part, samples in listed.parts.items():
        targets = (
            samples.targets
            if listed.several
            else np.eye(len(listed.classes), dtype=np.int64)[samples.targets]
        )
        findings.counts[part] = dict(zip(listed.classes, targets.sum(0).tolist(), strict=True))
        labels = [
            ", ".join(listed.classes[index] for index in np.flatnonzero(row)) for row in targets
        ]
        findings.images(list(zip(samples.paths(), labels, strict=True)), part, f"reading {part}")
    if not listed.faults:
        _check_cut(located(spec.path or ""), listed.parts, findings)
    return "table"


def _check_cut(path: Path, parts: Mapping[str, FileSamples], findings: Gathering) -> None:
    """Whether a validation part can be cut off where groups stay whole."""
    samples = parts.get("all", parts.get("train"))
    if "val" in parts or samples is None or samples.groups is None:
        return
    try:
        grouped_cut(samples.targets, samples.groups, CUT, 0)
    except DataError as error:
        findings.fault(path, "groups", str(error))


def _check_groups(root: Path, pattern: str, findings: Gathering) -> None:
    """Whether the groups that a pattern finds in class folders can be kept whole."""
    try:
        _check_cut(root, folder_parts(root, 3, None, pattern)[0], findings)
    except Faults as error:
        for line in error.lines:
            findings.fault(root, "groups", line.strip())
    except DataError as error:
        findings.fault(root, "groups", str(error))


def _check_coco(
    root: Path, files: list[Path], images: Path | None, findings: Gathering, reading: Reading | None
) -> str:
    if not files:
        raise not_coco(root, annotation_files(root))
    contents = coco.check_files(files, images, findings, masks=reading is None or reading.masks)
    if reading is not None and reading.masks:
        check_masks(contents, findings)
    return "COCO"


def _check_label_images(root: Path, findings: Gathering, reading: Reading | None) -> str:
    """Each folder of label images against the images; of a recipe, those that it reads."""
    if reading is not None:
        existing_folder(root)
        read_parts(
            layout_of(root, findings, reading.labels, reading.ignore, reading.values),
            findings,
            fov=reading.fov,
        )
        return LABELS
    folders = label_folders(root)
    if not folders:
        findings.fault(
            root,
            "layout",
            "there are images and classes.json but no label images: "
            "labels/{train,val,test}/NAME.png",
        )
    for number, labels in enumerate(folders):
        # images are counted once
        folder_findings = (
            findings
            if number == 0
            else Gathering(root, findings.max_pixels, findings.min_side, findings.scale)
        )
        read_parts(layout_of(root, folder_findings, labels), folder_findings)
        if folder_findings is not findings:
            findings.bad += [fault for fault in folder_findings.bad if fault not in findings.bad]
            findings.counts |= folder_findings.counts
    return LABELS


def _annotation_files(root: Path, findings: Gathering) -> list[Path]:
    """The json files of boxes, as training takes them; those that it does not take are warnings."""
    if root.is_file():
        return [root] if root.suffix.lower() == ".json" else []
    listed = annotation_files(root)
    if listed.parts:
        for file, why in listed.passed_over.items():
            findings.warn(file, "layout", f"not read: {why}")
        if "train" not in listed.parts:
            findings.fault(root, "layout", f"it has {' and '.join(listed.parts)} but no train")
    return list(listed.parts.values())


def _check_folder(root: Path, findings: Gathering, *, classed: bool) -> str:
    """Returns the layout; images alone are one where nobody asks for classes."""
    folders = folders_in(root)
    if not folders and classed:
        class_splits(root)  # names a tool's files
        raise DataError(f"{root} holds no class folders: {LAYOUT}")
    if not folders:
        return _check_images(root, findings)
    _pass_beside(root, findings)
    try:
        places = class_splits(root)
    except DataError as error:
        findings.fault(root, "layout", str(error).removeprefix(f"{root}").lstrip(": "))
        return "folders"
    if not places:
        _check_part(root, "all", findings)
        return "class folders"
    if renamed := read_as(places):
        findings.warn(root, "layout", renamed)
    for name in (
        name
        for name in folders
        if name not in {subfolder.partition("/")[0] for subfolder in places.values()}
    ):
        findings.warn(
            root / name,
            "layout",
            "a folder beside the splits, not read (splits are named train, val, test)",
        )
    classes = {
        part: _check_part(root / subfolder, part, findings) for part, subfolder in places.items()
    }
    for part, subfolder in places.items():
        for name in sorted(classes["train"] - classes[part]):
            findings.fault(
                root / subfolder / name,
                "classes",
                f"the class is missing: {part} must have the classes of train",
            )
        for name in sorted(classes[part] - classes["train"]):
            findings.fault(
                root / subfolder / name,
                "classes",
                f"the class is extra: {part} must have the classes of train",
            )
    return "splits of class folders"


def _check_images(root: Path, findings: Gathering, part: str = "all") -> str:
    listed = _listed(root, findings)
    if not listed.files:
        raise DataError(
            f"{root} holds no class folders and no images ({', '.join(sorted(IMAGE_TYPES))}): "
            "expected root/{train,val,test}/class/images, or root/class/images"
        )
    findings.counts[part] = {"(no class)": len(listed.files)}
    findings.images([(root / file, "") for file in listed.files], part, "reading")
    return "images"


def _pass_beside(folder: Path, findings: Gathering) -> None:
    """What lies beside class folders or splits, where nothing reads it."""
    entries = list(folder.iterdir())
    findings.hidden += sum(entry.name.startswith(".") for entry in entries)
    files = [
        entry.name for entry in entries if not entry.is_dir() and not entry.name.startswith(".")
    ]
    endings = Counter(Path(name).suffix.lower() or "(no ending)" for name in files)
    images = sum(endings.pop(ending, 0) for ending in IMAGE_TYPES)
    findings.passed_over += endings
    if images:
        findings.warn(
            folder, "layout", f"{images} images lie outside the class folders and are not read"
        )


def _check_part(folder: Path, part: str, findings: Gathering) -> set[str]:
    """Read the class folders of one part; returns their names."""
    names = folders_in(folder)
    if part != "all":
        _pass_beside(folder, findings)
    if len(names) < 2:
        findings.fault(
            folder,
            "classes",
            f"it holds {len(names)} class folders, and a classifier needs at least two",
        )
    for name in names:
        if not is_text(name):
            findings.fault(folder / name, "classes", f"the class folder has {NO_TEXT}")
    for name, twin in twins_of(names).items():
        findings.fault(folder / name, "classes", f"it and '{twin}' {ALIKE}")
    listed = {name: _listed(folder / name, findings) for name in names}
    findings.counts[part] = {name: len(inside.files) for name, inside in listed.items()}
    files = [
        (folder / name / file, name) for name, inside in listed.items() for file in inside.files
    ]
    findings.images(files, part, f"reading {part}")
    return set(map(composed, names))


def _listed(folder: Path, findings: Gathering) -> Listing:
    """What lies below a folder, with its faults reported."""

    def unlisted(error: OSError) -> None:
        findings.fault(
            Path(error.filename), "unreadable", f"the folder cannot be listed: {error.strerror}"
        )

    listed = listing(folder, unlisted)
    findings.passed_over += listed.passed_over
    findings.hidden += listed.hidden
    if not listed.files and folder != findings.root:
        findings.fault(folder, "classes", "the class folder holds no images; remove it or fill it")
    if listed.loops:
        findings.warn(
            folder,
            "layout",
            f"{counted(listed.loops, 'link')} back to a folder around it, not followed",
        )
    return listed


def _check_npz(file: Path, findings: Gathering) -> str:
    try:
        with file.open("rb") as handle, np.load(handle, allow_pickle=False) as archive:
            keys = list(archive.files)
            arrays = {
                key: array
                for key in keys
                if (array := _array(archive, key, file, findings)) is not None
            }
    except NOT_AN_NPZ as error:
        findings.fault(
            file, "damaged", f"it is no npz file of plain arrays: {why_no_npz(file, error)}"
        )
        return "npz"
    for key in sorted(
        set(keys) - {f"{part}_{suffix}" for part in PARTS for suffix in ("images", "labels")}
    ):
        findings.warn(
            f"{file.name}/{key}",
            "layout",
            "not read: the keys read are {train,val,test}_images and _labels",
        )
    if not {"train_images", "train_labels"} <= set(keys):
        findings.fault(
            file,
            "layout",
            f"no train_images and train_labels; it holds {', '.join(keys) or 'nothing'}",
        )
    classes: dict[str, set[int]] = {}
    for part in PARTS:
        if part != "train" and (f"{part}_images" in keys) != (f"{part}_labels" in keys):
            findings.fault(
                file, "layout", f"{part}_images and {part}_labels come in pairs, and one is missing"
            )
        labels = _check_labels(file, part, arrays, findings, classes)
        _check_arrays(file, part, arrays, findings, labels)
    _check_classes(file, classes, findings)
    _check_widths(
        file,
        {part: arrays[f"{part}_labels"] for part in PARTS if f"{part}_labels" in arrays},
        findings,
    )
    return "npz"


def _array(archive: Any, key: str, file: Path, findings: Gathering) -> np.ndarray | None:
    try:
        array = archive[key]
    except NOT_AN_NPZ as error:
        findings.fault(f"{file.name}/{key}", "damaged", f"the array cannot be read: {error}")
        return None
    if isinstance(array, np.ndarray):
        return array
    # numpy gives such a member as bytes
    findings.fault(f"{file.name}/{key}", "damaged", "it is no array")
    return None


def _check_classes(file: Path, classes: dict[str, set[int]], findings: Gathering) -> None:
    if "train" not in classes:
        return
    train_labels = classes["train"]
    for label in sorted(set(range(max(train_labels, default=0) + 1)) - train_labels):
        findings.fault(
            f"{file.name}/train_labels", "classes", f"class {label} has no training images"
        )
    if len(train_labels) < 2:
        findings.fault(
            f"{file.name}/train_labels",
            "classes",
            "only one class; a classifier needs at least two",
        )
    for part, labels in classes.items():
        for label in sorted(train_labels ^ labels):
            text = (
                f"class {label} is unknown to train"
                if label in labels
                else f"class {label} of train has no images"
            )
            findings.fault(f"{file.name}/{part}_labels", "classes", text)


def _check_labels(
    file: Path,
    part: str,
    arrays: dict[str, np.ndarray],
    findings: Gathering,
    classes: dict[str, set[int]],
) -> list[str]:
    """The class of each image as text; empty where the labels cannot be used."""
    labels, key = arrays.get(f"{part}_labels"), f"{file.name}/{part}_labels"
    if labels is None:
        return []
    if labels.ndim not in {1, 2} or (labels.ndim == 2 and not labels.shape[1]):
        findings.fault(
            key,
            "labels",
            f"labels have shape {labels.shape}; read are (n,) and (n, 1), or (n, K) for several "
            "labels an image",
        )
        return []
    if labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype.kind in "biuf":
        return _check_several(key, part, labels, findings)
    if labels.dtype.kind not in "biu":
        findings.fault(
            key, "labels", f"labels are {labels.dtype}, and must be whole numbers from 0"
        )
        return []
    values: list[int] = labels.reshape(-1).astype(np.int64).tolist()
    for fault in no_classes(np.array(values), part).values():
        findings.fault(fault.path, fault.kind, fault.reason)
    classes[part] = {value for value in values if value >= 0}
    findings.counts[part] = {str(value): count for value, count in sorted(Counter(values).items())}
    return [str(value) for value in values]


def _check_widths(file: Path, labels: Mapping[str, np.ndarray], findings: Gathering) -> None:
    """Whether each image has as many labels as those of train."""
    widths = {part: 1 if array.ndim < 2 else array.shape[1] for part, array in labels.items()}
    for part, width in widths.items():
        if width != widths.get("train", width):
            reason = (
                f"each image has {width} labels, and {widths['train']} in train: each must "
                "have as many"
            )
            findings.fault(f"{file.name}/{part}_labels", "labels", reason)


def _check_several(key: str, part: str, labels: np.ndarray, findings: Gathering) -> list[str]:
    """Several labels an image, (n, K) of 0 and 1; the labels of each as text."""
    for fault in no_labels(labels, part).values():
        findings.fault(fault.path, fault.kind, fault.reason)
    findings.counts[part] = {
        str(index): int((column == 1).sum()) for index, column in enumerate(labels.T)
    }
    for index in np.flatnonzero((labels == labels[:1]).all(0)).tolist() if part == "train" else ():
        findings.fault(
            key,
            "classes",
            f"all training images have the same value of label {index}: there is nothing to learn",
        )
    return [", ".join(map(str, np.flatnonzero(row == 1))) for row in labels]


def _check_arrays(
    file: Path, part: str, arrays: dict[str, np.ndarray], findings: Gathering, labels: list[str]
) -> None:
    images, key = arrays.get(f"{part}_images"), f"{file.name}/{part}_images"
    if images is None or not _are_images(images, key, findings):
        return
    findings.image_count += len(images)
    if labels and len(labels) != len(images):
        findings.fault(
            key, "labels", f"{len(images)} images and {len(labels)} labels: the counts must agree"
        )
    sides = images.shape[1:3]
    if min(sides) < (findings.min_side or 1):
        findings.fault(
            key,
            "too small",
            f"images are {sides[1]} x {sides[0]} pixels, and min_side is {findings.min_side}",
        )
        return
    _check_numbers(images, part, key, findings)
    for index, pixels in enumerate(track(images, len(images), f"reading {part}")):
        label = labels[index] if index < len(labels) else ""
        findings.content(pixels.tobytes(), pixels.shape, f"{part}/{index}", part, label)


def _are_images(images: np.ndarray, key: str, findings: Gathering) -> bool:
    """Whether an array has the shape of images; if not, that is a fault."""
    if images.ndim not in {3, 4} or not images.size:
        findings.fault(
            key,
            "shape",
            f"images have shape {images.shape}; expected (n, H, W) or (n, H, W, C), n > 0",
        )
        return False
    if why := no_images(images):
        findings.fault(key, "shape", f"images {why}")
    return not why


def _check_numbers(images: np.ndarray, part: str, key: str, findings: Gathering) -> None:
    """Whether the values of images can be used, and how many lie outside the declared range."""
    wrong = not_finite(images, part)
    for fault in wrong.values():
        findings.fault(fault.path, fault.kind, fault.reason)
    if why := no_numbers(images, findings.scale):
        findings.fault(key, "pixel format", f"images {why}")
        return
    if sentence := say_outside(images, part, findings.scale):
        findings.warn(key, "outside the range", sentence)
    findings.good += len(images) - len(wrong)
