"""Eyes as bags: what a model of bags makes of photographs that `softless tiles` cut up, beside
logistic regression on whole photographs and on features made by hand.

Every way has the same folds: those that the first model of bags was given at a seed. Areas are the
means over the classes of one against the rest, over all eyes, each answered by the run that did not
know it. Answers of several seeds are averaged for the interval, a bootstrap over eyes.
"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lab.kept import Recorded, answer_in
from softless.bags.bag import Bag
from softless.cli.tiles import tiles
from softless.cli.train import train
from softless.compare.record import record_path, write_csv
from softless.data.progress import track
from softless.errors import DataError, located, need
from softless.evaluation.patients import PatientEvaluation, averaged
from softless.histology.encoder import encoder_of
from softless.models.durable import make_folder, write_text
from softless.tasks.bags.measure import PREDICTIONS, read_predictions

MODELS = ("seqnorm_bag_tiny", "sima_bag_tiny", "softmax_bag_tiny", "abmil_bag", "max_bag")
# of the recipe `bags`; that few tiles are drawn keeps 29 eyes from being learnt by heart. They were
# chosen by the folds of seeds 0 and 1, so others are measured
FIELDS = {
    "table.patient": "none",
    "bags.tiles": 10,
    "schedule.epochs": 40,
    "optim.lr": 1e-3,
}
SEED = 10  # the first
FOLDS = 5
WHOLE = 518  # pixels along a side of a whole photograph, as the encoder sees it
PENALTY = 0.1  # of the logistic regressions: scikit-learn's C
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SCALES = (1, 2, 4, 8)  # pixels over which brightness is compared
FIELD = 20  # of 255: what is darker than this in red lies outside the eye
Answers = NDArray[np.float64]


@dataclass(frozen=True)
class Way:
    """One way of telling the classes apart, over all seeds."""

    way: str
    seeds: int
    eyes: int
    auc: float  # mean over the seeds
    auc_least: float
    auc_most: float
    auc_averaged: float  # of answers averaged over the seeds
    low: float | None  # where there are enough eyes for an interval
    high: float | None
    balanced_accuracy: float  # of these


def eyes(
    *,
    data: str | Path,
    encoder: str,
    models: Sequence[str] = MODELS,
    tile: int = 224,
    seeds: int = 3,
    out: str | Path = "runs/eyes",
    resume: bool = False,
    record: bool = False,
) -> Recorded:
    """Cut photographs of eyes into bags, train five folds of models of bags, and compare.

    Args:
        data: a folder with `diagnosis.csv` (image, diagnosis) and `images/`, as hrf_av.
        encoder: of the tiles, as `softless tiles` takes it.
        models: of bags; the folds are those of the first.
        tile: pixels along a side of a tile.
        seeds: of folds and training.
        out: a folder for bags, runs and answers.
        resume: keep what is there.
        record: also write benchmarks/bags_eyes.csv of the repository.

    Raises:
        DataError: no such data.
    """
    need("sklearn", "h5py")
    target = record_path("bags_eyes") if record else None
    bench = Bench(located(data), encoder, tile, make_folder(located(out)), resume)
    planned: dict[str, Callable[[int], Answers]] = {
        **{model: partial(bench.trained, model) for model in models},
        "largest features of tiles, logistic regression": bench.of_tiles,
        "whole photograph, logistic regression": bench.of_whole,
        "features by hand, logistic regression": bench.by_hand,
    }
    bench.first = models[0]
    rows = tuple(
        answer_in(
            bench.out / f"{name.replace(' ', '_').replace(',', '')}-{seeds}.json",
            Way,
            partial(bench.measured, name, answers, seeds),
            resume=resume,
        )
        for name, answers in track(planned.items(), len(planned), "telling eyes apart")
    )
    if target is not None:
        write_csv(target, [asdict(row) for row in rows])
    return Recorded(rows, target)


class Bench:
    """Photographs, their bags and their classes.

    Args:
        data: a folder with `diagnosis.csv` and `images/`.
        encoder: of tiles.
        tile: pixels along a side of one.
        out: a folder for what is made.
        resume: whether runs that are there go on.

    Raises:
        DataError: no such data.
    """

    first = MODELS[0]  # whose folds all have

    def __init__(self, data: Path, encoder: str, tile: int, out: Path, resume: bool) -> None:
        self.encoder, self.out, self.resume = encoder, out, resume
        listing = data / "diagnosis.csv"
        if not listing.is_file():
            raise DataError(f"{data} holds no diagnosis.csv: give the folder of hrf_av")
        rows = list(csv.DictReader(listing.read_text(encoding="utf-8").splitlines()))
        self.names = [Path(row["image"]).stem for row in rows]
        self.classes = sorted({row["diagnosis"] for row in rows})
        self.labels = np.array([self.classes.index(row["diagnosis"]) for row in rows])
        images = {path.stem: path for path in sorted((data / "images").rglob("*.*"))}
        self.photographs = [images[name] for name in self.names]
        self.bags = out / f"tiles-{tile}"
        tiles(*map(str, self.photographs), encoder=encoder, tile=tile, out=self.bags)
        self.table = out / "eyes.csv"
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["slide", "label"])
        writer.writerows(
            [name, row["diagnosis"]] for name, row in zip(self.names, rows, strict=True)
        )
        write_text(self.table, text.getvalue())

    def measured(self, way: str, answers: Callable[[int], Answers], seeds: int) -> Way:
        """What a way is worth over so many seeds."""
        each = [answers(seed) for seed in range(SEED, SEED + seeds)]
        areas = [_known(self._numbers(answer).area.value) for answer in each]
        together = self._numbers(np.mean(each, axis=0))
        interval, balanced = together.area.bootstrap, together.balanced_accuracy
        assert balanced is not None
        low, high = (
            None if end is None else round(end, 4) for end in (interval.low, interval.high)
        )
        return Way(
            way,
            seeds,
            len(self.names),
            round(float(np.mean(areas)), 4),
            round(min(areas), 4),
            round(max(areas), 4),
            round(_known(interval.value), 4),
            low,
            high,
            round(_known(balanced.value), 4),
        )

    def _numbers(self, answers: Answers) -> PatientEvaluation:
        units = averaged(self.names, answers, self.labels, None)
        return PatientEvaluation(units, tuple(self.classes), ())

    def trained(self, model: str, seed: int) -> Answers:
        """Probabilities (n,K) of five runs, each for the eyes that it did not know."""
        read = read_predictions(self._run(model, seed) / PREDICTIONS)
        assert list(read.classes) == self.classes
        return read.answers[self._order(read.names)]

    def _run(self, model: str, seed: int) -> Path:
        folder = self.out / f"{model}-seed{seed}"
        if not (self.resume and (folder / PREDICTIONS).is_file()):
            train(
                "bags",
                data=self.bags / "features",
                table=self.table,
                folds=FOLDS,
                out=folder,
                overwrite=True,
                seed=seed,
                set={**FIELDS, "model.name": model},
            )
        return folder

    def _order(self, names: Sequence[str]) -> list[int]:
        rows = {name: row for row, name in enumerate(names)}
        return [rows[name] for name in self.names]

    def _folds(self, seed: int) -> NDArray[Any]:
        """(n,) the fold that an eye is tested in."""
        read = read_predictions(self._run(self.first, seed) / PREDICTIONS)
        return np.array(read.folds)[self._order(read.names)]

    def of_tiles(self, seed: int) -> Answers:
        """By the largest value of each feature over the tiles of an eye."""
        return self._regressed(self._largest, seed)

    @cached_property
    def _largest(self) -> NDArray[Any]:
        """(n,D)."""
        bags = [Bag.open(self.bags / "features" / f"{name}.h5") for name in self.names]
        return np.stack([np.asarray(bag.features[:]).max(0) for bag in bags])

    def of_whole(self, seed: int) -> Answers:
        """By the features of the whole photograph, as a square."""
        return self._regressed(self._whole, seed)

    @cached_property
    def _whole(self) -> NDArray[Any]:
        """(n,D)."""
        encoder = encoder_of(self.encoder, WHOLE)
        rows = []
        for path in self.photographs:
            with Image.open(path) as photograph:
                square = photograph.convert("RGB").resize((WHOLE, WHOLE), Image.Resampling.BICUBIC)
            rows.append(encoder.features([np.asarray(square)])[0])
        return np.stack(rows)

    def by_hand(self, seed: int) -> Answers:
        """By colours and by how much brightness changes over several distances."""
        return self._regressed(self._by_hand, seed)

    @cached_property
    def _by_hand(self) -> NDArray[Any]:
        """(n,D)."""
        return np.stack([by_hand(path) for path in self.photographs])

    def _regressed(self, features: NDArray[Any], seed: int) -> Answers:
        """Probabilities (n,K) of a logistic regression in each fold."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        folds, answers = self._folds(seed), np.zeros((len(features), len(self.classes)))
        for fold in np.unique(folds):
            held = folds == fold
            regression = make_pipeline(
                StandardScaler(), LogisticRegression(C=PENALTY, max_iter=3000)
            )
            regression.fit(features[~held], self.labels[~held])
            answers[held] = regression.predict_proba(features[held])
        return answers


def _known(value: float | None) -> float:
    """A measure that every set of eyes of all classes has."""
    assert value is not None
    return value


def by_hand(path: Path) -> NDArray[np.float64]:
    """Numbers of a photograph, of what lies inside the eye: of each colour mean, deviation and
    quantiles; of green the change over several distances, in which vessels and spots show.
    """
    with Image.open(path) as photograph:
        small = photograph.convert("RGB").resize(
            (photograph.width // 2, photograph.height // 2), Image.Resampling.BOX
        )
    pixels = np.asarray(small, dtype=np.float64)
    inside = pixels[..., 0] > FIELD
    numbers: list[float] = []
    for channel in range(3):
        values = pixels[..., channel][inside]
        numbers += [values.mean(), values.std(), *np.quantile(values, QUANTILES)]
    green = pixels[..., 1]
    for step in SCALES:
        for axis in (0, 1):
            both = np.minimum(inside, np.roll(inside, step, axis))
            changes = np.abs(green - np.roll(green, step, axis))[both]
            numbers += [changes.mean(), changes.std(), *np.quantile(changes, (0.9, 0.99))]
    return np.array(numbers)
