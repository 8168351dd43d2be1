"""From a recipe's `data` to three lists of labelled images: train, validation, test."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from softless.data.arrays import digits_parts, npz_parts
from softless.data.findings import Fault
from softless.data.folder import class_places, folder_parts
from softless.data.given import ItemReading, given_parts
from softless.data.groups import folds_of, grouped_cut, strata
from softless.data.notices import notice
from softless.data.pictures import unit
from softless.data.progress import track
from softless.data.readable import contents, refuse_policy, sift
from softless.data.samples import ArraySamples, FileSamples, Samples
from softless.data.tables import table_parts
from softless.errors import DataError, UsageError, located, unknown
from softless.experiment.bag_table import BagTableSpec
from softless.experiment.data_rules import check_scaling
from softless.experiment.groups import DataSpec, TableSpec
from softless.experiment.ranges import FIELD as RANGE
from softless.experiment.ranges import Range
from softless.words import few

PIXELS = "pixels of"  # begins the entries of a fingerprint that older runs have not
MEASURED_IMAGES = 1000  # at most so many files are decoded to measure mean and std


@dataclass(frozen=True)
class Splits:
    """A data set, cut: `mean` and `std` are per channel, of pixels scaled to 0..1; `test` may be
    absent.
    """

    train: Samples
    val: Samples
    test: Samples | None
    classes: tuple[str, ...]
    in_chans: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: dict[str, Any]  # says whether two runs saw the same images; holds no path
    # part -> what could not be used
    left_out: Mapping[str, tuple[Fault, ...]] = field(default_factory=dict)

    def ordered(
        self, classes: Sequence[str], expected_in: str, present_in: str, *, partly: bool = False
    ) -> "Splits":
        """The same samples with class indices in the order of `classes`, matched by name; some of
        them where `partly`.

        Raises:
            DataError: the names are not the same; `expected_in` is whose classes they are,
                `present_in` the data.
        """
        places = class_places(classes, self.classes, expected_in, present_in, partly=partly)
        train, val = self.train.renumbered(places), self.val.renumbered(places)
        test = None if self.test is None else self.test.renumbered(places)
        return replace(self, train=train, val=val, test=test, classes=tuple(classes))


def open_splits(spec: DataSpec, seed: int, table: TableSpec | BagTableSpec | None = None) -> Splits:
    """Open the source that `spec` names, or the images that a table lists, and cut it
    (`cut_parts`).

    A source without a test part has `test=None`. `spec.limit` thins the training part alone, per
    class.

    Raises:
        DataError: whatever is wrong with the data, with its path.
        UsageError: a field of `spec` that cannot be used.
    """
    parts, classes = open_parts(spec, table)
    cut = cut_parts(parts, classes, spec, seed)
    train, val, test = cut["train"], cut["val"], cut.get("test")
    if spec.limit is not None:
        train = train.take(thinned(strata(train.targets), spec.limit, seed))
    mean, std = scaling(spec, train)
    identity = fingerprint(
        spec.source if table is None else "table",
        classes,
        {"train": train, "val": val, "test": test},
    )
    return Splits(train, val, test, classes, spec.in_chans, mean, std, identity, left_out_of(parts))


def left_out_of(parts: Mapping[str, Samples]) -> dict[str, tuple[Fault, ...]]:
    """What could not be used, by part, where there is some."""
    return {part: samples.left_out for part, samples in parts.items() if samples.left_out}


def open_parts(
    spec: DataSpec, table: TableSpec | BagTableSpec | None = None
) -> tuple[dict[str, Samples], tuple[str, ...]]:
    """What the source holds before anything is cut: {"train", "val"?, "test"?}, or {"all"}; and the
    class names.

    Every image of every part was read; one that cannot be is an error or left out, as `spec.faults`
    says.

    Raises:
        DataError: no path, or whatever is wrong with the data.
        UsageError: an unknown source, or a field of `spec` that cannot be used with it.
    """
    refuse_policy(spec.faults)
    if spec.faults == "skip" and spec.source in {"digits", "given"}:
        whose = {
            "digits": "the digits have none",
            "given": "a dataset built in Python is used whole",
        }[spec.source]
        raise UsageError(
            f"data.faults=skip leaves out images that cannot be used, and {whose}: leave it out"
        )
    if spec.in_chans < 1:
        raise UsageError(f"data.in_chans={spec.in_chans}: images have at least one channel")
    table = _of_images(table)
    if table is not None:
        parts, classes = table_parts(table, spec.path, spec.in_chans, Range.of(spec.range))
        return sift(next(iter(parts.values())).root, parts, spec.faults), classes
    if spec.source == "digits" and spec.range is not None:
        raise UsageError(
            f"{RANGE}={spec.range}: the digits have 8 bits and are whole; leave it out"
        )
    if spec.source == "digits":
        digits, names = digits_parts(spec.in_chans)
        return dict(digits), names
    if spec.source == "given":
        return given_parts(ItemReading(spec.in_chans, Range.of(spec.range)))
    if spec.source not in {"folder", "npz"}:
        raise unknown("data source", spec.source, ("digits", "folder", "npz", "given"))
    if not spec.path:
        raise DataError(
            f"the data source '{spec.source}' needs a path: give --data PATH or set data.path=PATH"
        )
    scale = Range.of(spec.range)
    opened: tuple[Mapping[str, Samples], tuple[str, ...]]
    if spec.source == "folder":
        opened = folder_parts(spec.path, spec.in_chans, scale, spec.group)
    else:
        opened = npz_parts(spec.path, spec.in_chans, scale)
    return sift(located(spec.path), opened[0], spec.faults), opened[1]


def _of_images(table: TableSpec | BagTableSpec | None) -> TableSpec | None:
    """The table, which lists images.

    Raises:
        UsageError: it lists slides.
    """
    if isinstance(table, BagTableSpec):
        raise UsageError(f"the table {table.path} lists slides: it goes with --recipe bags")
    return table


def cut_parts(
    parts: Mapping[str, Samples],
    classes: Sequence[str],
    spec: DataSpec,
    seed: int,
    *,
    places: np.ndarray | None = None,
) -> dict[str, Samples]:
    """The training, validation and test part of what a source holds, drawn by `seed`; "test" may
    be absent.

    Where there is no validation part, `spec.val_fraction` of the training part is cut off per
    class. With `spec.folds` the images are cut into so
    many folds: number `spec.fold` is the test part, and the validation part is cut off the rest.
    Groups stay whole. `places` (n,) is the fold of each image, where it is declared.

    Raises:
        DataError: there are too few images or groups for the cut.
        UsageError: folds of a source that has parts already.
    """
    if spec.folds is not None:
        return _fold(parts, classes, spec, seed, places)
    if "val" in parts:
        return dict(parts)
    train, val = _held_out(
        parts["all"] if "all" in parts else parts["train"], spec.val_fraction, seed
    )
    _say_absent(classes, val)
    return {
        "train": train,
        "val": val,
        **{part: samples for part, samples in parts.items() if part == "test"},
    }


def _fold(
    parts: Mapping[str, Samples],
    classes: Sequence[str],
    spec: DataSpec,
    seed: int,
    places: np.ndarray | None,
) -> dict[str, Samples]:
    """The parts of one fold; the first one also tries all others, so that none fails hours
    later.
    """
    assert spec.folds is not None
    assert spec.fold is not None
    if "all" not in parts:
        raise UsageError(
            f"folds cut the images themselves, and these have {', '.join(parts)} already: leave "
            "folds out, or join the parts "
            "(of a table: table.split=none)"
        )
    every = parts["all"]
    if places is None:
        places = folds_of(every.targets, every.groups, spec.folds, seed, classes)
    cut: dict[str, Samples] = {}
    for fold in [*(range(1, spec.folds) if spec.fold == 0 else ()), spec.fold]:
        train, val = _held_out(every.take(np.flatnonzero(places != fold)), spec.val_fraction, seed)
        cut = {"train": train, "val": val, "test": every.take(np.flatnonzero(places == fold))}
    _say_absent(classes, cut["val"])
    return cut


def _held_out(samples: Samples, fraction: float, seed: int) -> tuple[Samples, Samples]:
    """What stays to be trained on, and what is cut off for validation."""
    _check_fraction(fraction)
    if samples.groups is None:
        train, cut = stratified_cut(strata(samples.targets), fraction, seed)
    else:
        train, cut = grouped_cut(samples.targets, samples.groups, fraction, seed)
    return samples.take(train), samples.take(cut)


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise UsageError(
            f"data.val_fraction={fraction}: the share cut off for validation lies between 0 and 1"
        )


def stratified_cut(
    targets: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sorted positions, (k,) kept and (n - k,) cut off, of targets (n,).

    Of each class `fraction` is cut off, rounded, but one image at least stays, and one is cut off
    where there are two.

    Raises:
        UsageError: the fraction is not between 0 and 1.
        DataError: so few images that nothing would be cut off.
    """
    _check_fraction(fraction)
    rng = np.random.default_rng(seed)
    cut = []
    for label in np.unique(targets):
        members = rng.permutation(np.flatnonzero(targets == label))
        cut.append(members[: min(max(round(fraction * len(members)), 1), len(members) - 1)])
    off = np.sort(np.concatenate(cut))
    if not len(off):
        raise DataError(
            f"{len(targets)} training images in {len(cut)} classes leave none for validation at "
            f"data.val_fraction={fraction}: add images, a val folder, or raise the fraction"
        )
    return np.setdiff1d(np.arange(len(targets)), off), off


def _say_absent(classes: Sequence[str], val: Samples) -> None:
    """Which classes have no validation image: what is measured there says nothing of them."""
    each = (
        val.targets > 0 if val.targets.ndim == 2 else np.eye(len(classes), dtype=bool)[val.targets]
    )
    absent = [name for name, present in zip(classes, each.T, strict=True) if not present.any()]
    if absent:
        unit = "image" if val.groups is None else "group"
        notice(
            f"no validation image of {few(absent)}, with one training {unit} each: the best "
            "epoch is chosen without them, and AUC is of the others; "
            "add images, or a val folder"
        )


def pixel_statistics(samples: Samples) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel over pixels scaled to 0..1, each image counting
    alike.

    Of more than 1,000 images in files, 1,000 spread evenly over the list are read.

    Raises:
        DataError: a channel is constant, so that it cannot be scaled to unit deviation.
    """
    count = (
        len(samples) if isinstance(samples, ArraySamples) else min(len(samples), MEASURED_IMAGES)
    )
    chosen = np.linspace(0, len(samples) - 1, count).round().astype(int)
    total = np.zeros((2, samples.channels))
    for index in track(chosen, count, "measuring mean and std"):
        pixels = unit(samples.image(int(index))).reshape(-1, samples.channels)
        total += np.stack([pixels.mean(0), np.square(pixels).mean(0)])
    mean, square = total / count
    std = np.sqrt(np.maximum(square - mean**2, 0))
    if (std < 1e-4).any():
        raise DataError(
            f"channel {int(np.argmin(std))} of the training images is constant: the images carry "
            "nothing there; "
            "check them, or set data.mean and data.std"
        )
    return tuple(round(float(x), 6) for x in mean), tuple(round(float(x), 6) for x in std)


def scaling(spec: DataSpec, train: Samples) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel: those of `spec`, or measured on the training
    images.
    """
    check_scaling(spec)
    if spec.mean is None or spec.std is None:
        return pixel_statistics(train)
    return tuple(spec.mean), tuple(spec.std)


def thinned(targets: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """At most `limit` positions, as even over the classes as their sizes allow: round by round, one
    of each class.
    """
    if limit < 1:
        raise UsageError(
            f"data.limit={limit}: keep at least one training image, or none for no limit"
        )
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(targets))
    turn = np.empty(len(targets), dtype=np.int64)  # which member of its class each image is
    for label in np.unique(targets):
        members = shuffled[targets[shuffled] == label]
        turn[members] = np.arange(len(members))
    return np.sort(shuffled[np.argsort(turn[shuffled], kind="stable")][:limit])


def fingerprint(
    source: str, classes: tuple[str, ...], parts: Mapping[str, Samples | None]
) -> dict[str, Any]:
    """Says whether two runs saw the same images and targets; holds no path.

    Names and targets are one digest; what is in image files has one for each part, so that a change
    can be named.
    """
    digest = hashlib.sha256()
    for part, samples in parts.items():
        digest.update(part.encode())
        if samples is not None:
            samples.update(digest)
    counts = {part: 0 if samples is None else len(samples) for part, samples in parts.items()}
    pixels = {
        f"{PIXELS} {part}": contents(samples)
        for part, samples in parts.items()
        if isinstance(samples, FileSamples)
    }
    scale = None if parts["train"] is None else parts["train"].scale
    declared = {} if scale is None else {"range": scale.text}  # older runs have none
    return {
        "source": source,
        "classes": len(classes),
        **counts,
        "sha256": digest.hexdigest(),
        **pixels,
        **declared,
    }
