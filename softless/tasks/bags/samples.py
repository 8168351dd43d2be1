"""Bags with labels, read whole once and cut into training, validation and test part; patients stay
whole.

Folds are those of a column of the table, those of a file of splits, or drawn. A declared part is
kept as it is.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from softless.bags.folder import BagSamples, gathered_bags
from softless.bags.table import BagTable, read_bag_table
from softless.data.csv_tables import ALONE
from softless.data.datasets import PIXELS, Splits, cut_parts, fingerprint, left_out_of, thinned
from softless.data.findings import Fault, refusal
from softless.data.notices import notice
from softless.data.progress import track
from softless.data.samples import Samples
from softless.errors import DataError, UsageError, located
from softless.experiment.bag_table import BagTableSpec
from softless.experiment.groups import DataSpec
from softless.experiment.recipe import Recipe
from softless.tasks.bags.measure import Kind
from softless.tasks.bags.settings import BagsSpec
from softless.words import counted

EVENTS = ("no event", "event")  # what survival is cut by
ROWS = 8192  # tiles that are read at once
MEASURED_BAGS, MEASURED_TILES = 1000, 1024  # of which mean and deviation are measured
LEAST = 1e-6  # of the largest deviation: features below are constant


@dataclass(frozen=True)
class BagSplits:
    """Bags, cut, and what is to be learnt of them."""

    splits: Splits
    kind: Kind
    in_dim: int


@dataclass(frozen=True)
class OpenedBags:
    """The bags of a folder that a table lists, ahead of any cut."""

    samples: BagSamples
    table: BagTable
    digests: Mapping[str, str]  # slide -> of its features

    @property
    def kind(self) -> Kind:
        """Of the labels."""
        return self.table.kind

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in index order; none of survival."""
        return () if self.kind == "survival" else tuple(self.table.classes)


def open_whole(recipe: Recipe) -> OpenedBags:
    """All bags that the table of a recipe lists, each read once.

    Raises:
        DataError: no table, no folder, and whatever is wrong with table, bags and features (all in
            one error).
    """
    spec, data = recipe.table, recipe.data
    if not isinstance(spec, BagTableSpec) or not spec.path:
        raise DataError(
            "bags need a table that says whose each slide is and what is true of it: give "
            "--table FILE.csv"
        )
    if not data.path:
        raise DataError("no bags are named: give the folder of the features with --data FOLDER")
    table = read_bag_table(spec, data.path)
    bags = recipe.bags or BagsSpec()
    samples, faults, remarks = gathered_bags(data.path, table, **bags.given)
    root = located(data.path)
    for remark in remarks:
        notice(f"{root}: {remark}")
    digests: dict[str, str] = {}
    usable: list[int] = []
    count = 0 if samples is None else len(samples)
    for index in track(range(count), count, "reading bags"):
        assert samples is not None
        fault = _looked_into(samples, index, digests, positions=positions_of(recipe))
        if fault is None:
            usable.append(index)
        else:
            faults.append(fault)
    if samples is None or not usable or (faults and data.faults != "skip"):
        if not faults:
            raise DataError(f"{root} holds no bags of the slides in {table.path}")
        raise refusal(root, faults, "mend them, take them out of the table, or data.faults=skip")
    if faults:
        usable = _of_one_width(samples, usable)
        notice(
            f"{root}: {counted(len(table) - len(usable), 'slide')} of {len(table):,} cannot be "
            f"used and {'is' if len(table) - len(usable) == 1 else 'are'} left out"
        )
        samples = samples.take(usable)
        samples.left_out = tuple(faults)
        names = {samples.name(index) for index in range(len(samples))}
        table = table.take([row for row, slide in enumerate(table.slides) if slide in names])
    return OpenedBags(samples, table, digests)


def positions_of(recipe: Recipe) -> bool:
    """Whether the model sees where tiles lie."""
    spec = recipe.bags or BagsSpec()
    return bool(recipe.model.args.get("position", spec.position) != "none")


def _of_one_width(samples: BagSamples, places: Sequence[int]) -> list[int]:
    """Those whose tiles have as many features as most have."""
    widths = [samples.image(index).features.shape[1] for index in places]
    usual = Counter(widths).most_common(1)[0][0]
    return [index for index, width in zip(places, widths, strict=True) if width == usual]


def _looked_into(
    samples: BagSamples, index: int, digests: dict[str, str], *, positions: bool
) -> Fault | None:
    """What is wrong with the tiles of a bag, every one read; their digest is noted."""
    bag, name = samples.image(index), samples.name(index)
    if not len(bag):
        return Fault(name, "it has no tiles: leave it out of the table", "no tiles")
    digest = hashlib.blake2b(digest_size=16)
    try:
        for start in range(0, len(bag), ROWS):
            digest.update(np.ascontiguousarray(bag.features[start : start + ROWS]).tobytes())
        if positions and bag.coords_um is None:
            return Fault(
                name,
                "it has no coordinates, and bags.position=fourier looks at them: give bags that "
                "have some, or bags.position=none",
                "no coordinates",
            )
    except DataError as error:
        return Fault(name, str(error), "unreadable")
    digests[name] = digest.hexdigest()
    return None


def open_splits(recipe: Recipe) -> BagSplits:
    """The bags of a recipe, cut into its parts.

    Raises:
        DataError: whatever is wrong with them, or they cannot be cut.
        UsageError: folds of bags that have parts already.
    """
    opened = open_whole(recipe)
    cut = _cut(opened, recipe.data, recipe.seed)
    train, val, test = cut["train"], cut["val"], cut.get("test")
    if recipe.data.limit is not None:
        train = train.take(thinned(train.targets, recipe.data.limit, recipe.seed))
    parts = {"train": train, "val": val, "test": test}
    identity = fingerprint("bags", opened.classes, parts)
    identity |= {
        f"{PIXELS} {part}": _joined(opened, samples)
        for part, samples in parts.items()
        if samples is not None
    }
    splits = Splits(
        train,
        val,
        test,
        opened.classes,
        1,
        (0.0,),
        (1.0,),
        identity,
        left_out_of({"all": opened.samples}),
    )
    return BagSplits(splits, opened.kind, opened.samples.width)


def all_of(opened: OpenedBags, split: str) -> BagSplits:
    """Bags that a model is measured on: those of the part where parts are declared, or all.

    Raises:
        DataError: parts are declared, and this is none of them.
    """
    samples: Samples = opened.samples
    if opened.table.declared:
        parts = _parts(opened.samples, opened.table)
        if split not in parts:
            raise DataError(
                f"{opened.table.path} declares {' and '.join(parts)}, and no {split}: choose "
                "--split, or set table.split=none to measure all"
            )
        samples = parts[split]
    identity = fingerprint("bags", opened.classes, {"train": None, "test": samples})
    splits = Splits(samples, samples, samples, opened.classes, 1, (0.0,), (1.0,), identity)
    return BagSplits(splits, opened.kind, opened.samples.width)


def _joined(opened: OpenedBags, samples: Samples) -> str:
    """The digest of the features of a part."""
    lines = "".join(opened.digests[samples.name(index)] for index in range(len(samples)))
    return hashlib.sha256(lines.encode()).hexdigest()


def _cut(opened: OpenedBags, spec: DataSpec, seed: int) -> dict[str, Samples]:
    """Training, validation and test part."""
    table, samples = opened.table, opened.samples
    classes = EVENTS if opened.kind == "survival" else opened.classes
    if table.splits:
        return _of_file(opened, spec, classes, seed)
    if table.declared:
        parts = _parts(samples, table)
        if spec.folds is not None:
            raise UsageError(
                f"folds cut the bags themselves, and {table.path} declares {', '.join(parts)}: "
                "leave folds out, or set table.split=none"
            )
        return cut_parts(parts, classes, spec, seed)
    places = table.folds
    if places is not None and spec.folds is not None:
        _check_folds(places, spec.folds, table)
    return cut_parts({ALONE: samples}, classes, spec, seed, places=places)


def _parts(samples: BagSamples, table: BagTable) -> dict[str, Samples]:
    """The bags of each part that the table declares."""
    part_of_slide = dict(zip(table.slides, table.parts, strict=True))
    parts = np.array([part_of_slide.get(samples.name(index), "") for index in range(len(samples))])
    return {
        part: samples.take(np.flatnonzero(parts == part))
        for part in ("train", "val", "test")
        if (parts == part).any()
    }


def _of_file(
    opened: OpenedBags, spec: DataSpec, classes: Sequence[str], seed: int
) -> dict[str, Samples]:
    """The parts that a file of splits declares: of its only split, or of the fold that is asked
    for.
    """
    table, count = opened.table, len(opened.table.splits)
    if spec.folds is None and count > 1:
        raise UsageError(
            f"{table.path} comes with {count} splits: train all of them with --folds {count}, or "
            f"one with data.folds={count} data.fold=0"
        )
    if spec.folds is not None and spec.folds != count:
        raise UsageError(
            f"data.folds={spec.folds}, and {counted(count, 'split')} are declared: set {count}"
        )
    parts = _parts(opened.samples, table.of_split(spec.fold or 0))
    if "train" not in parts:
        raise DataError(f"{table.path}: no slide of the table is in the training part")
    return cut_parts(parts, classes, DataSpec(val_fraction=spec.val_fraction), seed)


def _check_folds(places: np.ndarray, folds: int, table: BagTable) -> None:
    numbers = sorted({*places.tolist()})
    if numbers != list(range(folds)):
        raise UsageError(
            f"{table.path} has the folds {', '.join(map(str, numbers))}, and {folds} were asked "
            f"for: they are counted from 0, so ask for {max(numbers) + 1}, or set table.fold=none"
        )


def lengths_of(samples: Samples) -> np.ndarray:
    """(n,) tiles of each bag."""
    return np.array([len(samples.image(index)) for index in range(len(samples))], dtype=np.int64)


def feature_scale(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each feature, (D,) float32, over tiles of the training bags.

    Of many bags or tiles, so many spread evenly over them. A constant feature has the deviation 1.
    """
    bags = np.unique(
        np.linspace(0, len(samples) - 1, min(len(samples), MEASURED_BAGS)).round().astype(int)
    )
    count, mean, squares = 0, np.zeros(0), np.zeros(0)
    for index in bags.tolist():
        rows = _some_rows(samples.image(index)).astype(np.float64)
        fresh, spread = rows.mean(0), ((rows - rows.mean(0)) ** 2).sum(0)
        if not count:
            count, mean, squares = len(rows), fresh, spread
            continue
        total, apart = count + len(rows), fresh - mean  # Chan, Golub and LeVeque 1979
        mean = mean + apart * len(rows) / total
        squares = squares + spread + apart**2 * count * len(rows) / total
        count = total
    deviation = np.sqrt(squares / count)
    floor = LEAST * np.maximum(np.abs(mean), deviation.max() * LEAST)
    deviation[deviation <= floor] = 1.0
    return mean.astype(np.float32), deviation.astype(np.float32)


def _some_rows(bag: Any) -> np.ndarray:
    """At most `MEASURED_TILES` rows, spread evenly in a few spans."""
    tiles, spans = len(bag), 8
    if tiles <= MEASURED_TILES:
        return np.asarray(bag.features[0:tiles])
    length = MEASURED_TILES // spans
    starts = np.linspace(0, tiles - length, spans).astype(int)
    return np.concatenate([bag.features[start : start + length] for start in starts.tolist()])
