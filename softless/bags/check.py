"""A folder of bags read once, before anything is trained on it: every fault by its slide.

What is read here is what training reads, by the same functions; but the first fault does not end
it.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from softless.bags.bag import Bag
from softless.bags.files import source_of
from softless.bags.folder import BagSamples, bag_files, gathered_bags, reason_of
from softless.bags.many import holds_many
from softless.bags.table import BagTable, gathered_table
from softless.data.csv_tables import ALONE
from softless.data.findings import Fault, Gathering
from softless.data.images import IMAGE_TYPES
from softless.data.progress import track
from softless.errors import DataError, located
from softless.experiment.bag_table import BagTableSpec
from softless.words import counted, few

ROWS = 8192  # tiles that are read at once
ALWAYS = frozenset({".h5", ".hdf5", ".zarr"})  # no other data that is read here ends so
LAYOUT = "bags of features"


def is_bags(root: Path) -> bool:
    """Whether a path is a bag, a file of many, or a folder with at least as many bags as images."""
    if root.is_file():
        return root.suffix.lower() in ALWAYS or (
            root.suffix.lower() == ".npz" and _has_features(root)
        )
    if root.suffix.lower() == ".zarr":
        return True
    if not root.is_dir():
        return False
    files = list(bag_files(root, also=IMAGE_TYPES))
    bags = [file for file in files if file.suffix.lower() not in IMAGE_TYPES]
    if len(bags) == len(files):  # else arrays may be labels of the images
        return any(file.suffix.lower() != ".npz" or _has_features(file) for file in bags)
    certain = any(file.suffix.lower() in ALWAYS for file in bags)
    return certain and 2 * len(bags) >= len(files)


def _has_features(file: Path) -> bool:
    try:
        return holds_many(file) or "features" in source_of(file).forms
    except DataError:
        return False


def check_bags(
    root: Path, spec: BagTableSpec | None, options: Mapping[str, Any], findings: Gathering
) -> str:
    """Read a folder of bags and the table of its slides in full; returns what it was.

    Args:
        root: of the bags.
        spec: the table, where there is one.
        options: what `Bag.open` takes, for all bags.
        findings: where all that is wrong is gathered.

    Raises:
        DataError: there is no such folder, or the table cannot be read at all.
    """
    findings.noun = "slide"
    table = None if spec is None or not spec.path else gathered_table(spec, root)
    if table is not None:
        findings.bad += table.faults
        for remark in table.remarks:
            findings.warn(table.path, "table", remark)
        findings.bad += _of_splits(table)
    samples, faults, remarks = gathered_bags(root, table, **options)
    findings.bad += faults
    for remark in remarks:
        findings.warn(root, "not listed", remark)
    findings.image_count = (0 if samples is None else len(samples)) + len(faults)
    if samples is None:
        return LAYOUT
    broken = _check_each(samples, findings)
    findings.good = len(samples) - len(broken)
    _count(samples, table, findings)
    return LAYOUT


def _of_splits(table: BagTable) -> Iterator[Fault]:
    """What is wrong with splits that a file declares."""
    for number in range(len(table.splits)):
        with_fault = partial(Fault, f"split {number}", kind="split")
        try:
            table.of_split(number)
        except DataError as error:
            yield with_fault(str(error))


def _say(remarks: Counter[tuple[str, str]], first: Mapping[str, str], findings: Gathering) -> None:
    """Each remark once, with how many slides it is of."""
    for (kind, sentence), count in remarks.items():
        slide = first[sentence]
        findings.warn(
            slide if count == 1 else f"{counted(count, 'slide')}, first {slide}", kind, sentence
        )


def _check_each(samples: BagSamples, findings: Gathering) -> set[str]:
    """Features and coordinates of each bag, and equal features; returns the slides with faults."""
    broken: set[str] = set()
    first: dict[str, int] = {}  # digest -> the bag that had it first
    remarks: Counter[tuple[str, str]] = Counter()
    slides: dict[str, str] = {}  # remark -> the slide that had it first
    for index in track(range(len(samples)), len(samples), "reading bags"):
        bag = samples.bags[index]
        for kind, sentence in _remarks(bag):
            remarks[kind, sentence] += 1
            slides.setdefault(sentence, bag.slide)
        try:
            digest = digest_of(bag)
            faults = list(_of_coordinates(bag))
        except DataError as error:
            reason = reason_of(error, bag.features.name)
            faults, digest = [Fault(bag.slide, reason, "unreadable")], None
        if faults:
            findings.bad += faults
            broken.add(bag.slide)
        if digest is None:
            continue
        twin = first.setdefault(digest, index)
        if twin != index:
            _equal(samples, twin, index, findings)
    _say(remarks, slides, findings)
    return broken


def _remarks(bag: Bag) -> Iterator[tuple[str, str]]:
    """What is read, but perhaps not as meant: the kind, and a sentence."""
    for remark in bag.remarks:
        yield "remarks", remark
    if bag.coordinates is None:
        return
    if bag.why_no_um:
        yield "units", bag.why_no_um
    elif bag.frame.tile is None:
        yield "units", "the size of its tiles is not known, so its unit is not checked: give tile="


def digest_of(bag: Bag) -> str:
    """What tells the features of a bag from all others; each is read.

    Raises:
        DataError: a row is not finite, or the file is damaged.
    """
    digest = hashlib.blake2b(repr((bag.features.shape, bag.features.dtype)).encode())
    for start in range(0, len(bag), ROWS):
        digest.update(np.ascontiguousarray(bag.features[start : start + ROWS]).tobytes())
    return digest.hexdigest()


def _of_coordinates(bag: Bag) -> Iterator[Fault]:
    """What is wrong with the corners of a bag.

    Raises:
        CoordinateError: they contradict the size of a tile.
    """
    stored = bag.coords
    if stored is None:
        return
    _, first, counts = np.unique(stored, axis=0, return_index=True, return_counts=True)
    if (counts > 1).any():
        x, y = stored[first[counts > 1][0]]
        yield Fault(
            bag.slide,
            f"{counted(int((counts - 1).sum()), 'tile')} of {len(bag):,} stand where another does, "
            f"first at ({x:g}, {y:g}): a tile counts once; leave the others out",
            "duplicate coordinates",
        )


def _equal(samples: BagSamples, twin: int, index: int, findings: Gathering) -> None:
    """Two slides with the same features: a fault but within one patient."""
    names = samples.name(twin), samples.name(index)
    groups = samples.groups
    if groups is not None and groups[twin] == groups[index]:
        findings.warn(names[1], "equal slides", f"its features are those of {names[0]}")
        return
    parts = (samples.part_of(twin), samples.part_of(index))
    apart = f", which is in {parts[0]} and this in {parts[1]}" if parts[0] != parts[1] else ""
    findings.fault(
        names[1],
        "equal slides",
        f"its features are those of {names[0]}{apart}: one slide stands under two names; keep one",
    )


def _count(samples: BagSamples, table: BagTable | None, findings: Gathering) -> None:
    """How many slides of each class each part has."""
    parts = np.array([samples.part_of(index) for index in range(len(samples))], dtype=object)
    for part in dict.fromkeys(parts.tolist()):
        targets = samples.targets[parts == part]
        if samples.kind == "survival":
            names = ("event", "no event")
            counts = [int(targets.sum()), int((targets == 0).sum())]
        elif table is None:
            names, counts = ("slides",), [len(targets)]
        else:
            names = samples.classes
            hot = targets if targets.ndim == 2 else np.eye(len(names), dtype=np.int64)[targets]
            counts = hot.sum(0).tolist()
        findings.counts[part] = dict(zip(names, counts, strict=True))
        if table is not None and part != ALONE and samples.kind == "class":
            absent = [name for name, count in zip(names, counts, strict=True) if not count]
            if absent:
                findings.fault(
                    part,
                    "classes",
                    f"it has no slide of {few(absent)}: each part must have every class",
                )


def bags_root(path: str | Path | None, spec: BagTableSpec | None) -> Path:
    """The folder of the bags: named, or that of the table.

    Raises:
        DataError: neither is named.
    """
    if path is not None:
        return located(path)
    if spec is None or not spec.path:
        raise DataError("no bags are named: give the folder of the features with --path FOLDER")
    return located(spec.path).parent
