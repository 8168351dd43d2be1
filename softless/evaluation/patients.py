"""What answers to slides are worth per patient: the slides of a patient are averaged, and patients
are what is counted, drawn again and held against the truth.

    p_patient = mean of p over the slides of the patient

Areas under ROC curves have two intervals: of a bootstrap over patients (Efron 1979), and of DeLong's
variance (DeLong, DeLong and Clarke-Pearson, Biometrics 1988). Where slides of one patient have
different labels there is no label of the patient. Then slides are counted, and the slides of a patient
are drawn together; DeLong's terms are summed within patients (Obuchowski, Biometrics 1997).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from softless.evaluation.areas import Ordered
from softless.evaluation.details import share, youden
from softless.evaluation.metrics import Calibration, calibration
from softless.evaluation.spread import Estimate, estimate, resampled
from softless.words import aligned, visible

GRID = 101  # shares of false alarms at which the band of a ROC curve is drawn
BAND_DRAWS = 1000


@dataclass(frozen=True)
class Averaged:
    """Units with one answer each: patients, or slides where patients have several labels."""

    names: tuple[str, ...]  # (P,)
    answers: np.ndarray  # (P, K) float64, mean over the slides of the unit
    targets: np.ndarray  # (P, ...) as of the slides
    groups: np.ndarray | None  # (P,) whose a slide is, where slides are counted
    slides: np.ndarray  # (P,) how many were averaged

    @property
    def unit(self) -> str:
        """What is counted, in the singular."""
        return "patient" if self.groups is None else "slide"


def averaged(
    names: Sequence[str], answers: np.ndarray, targets: np.ndarray, patients: Sequence[str] | None
) -> Averaged:
    """Average answers (n, K) over the slides of a patient.

    Args:
        names: (n,) of the slides.
        answers: (n, K) probabilities, or risks (n, 1).
        targets: (n,) or (n, L) what is true of the slides.
        patients: (n,) whose each slide is; None: each is a patient of its own.
    """
    answers = np.asarray(answers, dtype=np.float64)
    whose = np.asarray(names if patients is None else patients, dtype=object).astype(str)
    units, first, index = np.unique(whose, return_index=True, return_inverse=True)
    alike = targets == targets[first][index]
    if not alike.all():
        return Averaged(tuple(names), answers, targets, whose, np.ones(len(names), dtype=np.int64))
    counts = np.bincount(index)
    sums = np.stack([np.bincount(index, weights=column) for column in answers.T], axis=1)
    return Averaged(tuple(units.tolist()), sums / counts[:, None], targets[first], None, counts)


@dataclass(frozen=True)
class Area:
    """An area under a ROC curve, or the mean of several, with its intervals."""

    bootstrap: Estimate
    delong: Estimate

    @property
    def value(self) -> float | None:
        """The area; None where one side has nobody."""
        return self.bootstrap.value

    def __str__(self) -> str:
        if self.delong.interval is None:
            return str(self.bootstrap)
        low, high = self.delong.interval
        return f"{self.bootstrap}; DeLong {low:.4f} to {high:.4f}"


def areas(
    scores: np.ndarray, positive: np.ndarray, groups: np.ndarray | None, unit: str = "patient"
) -> tuple[list[Area], Area]:
    """The area of each column, and their mean over the columns that have one.

    Args:
        scores: (P, C) the higher, the likelier.
        positive: (P, C) bool.
        groups: (P,) what is drawn together; None: each row for itself.
        unit: what a row is called.
    """
    count = len(scores)
    index = np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1]
    ordered = [Ordered.of(scores[:, k], positive[:, k]) for k in range(scores.shape[1])]
    usable = [k for k, column in enumerate(ordered) if column.decides]
    if not usable:
        none = Estimate(None, why=f"every {unit} is of one side")
        return [Area(none, none) for _ in ordered], Area(none, none)
    drawn = resampled(
        lambda weights: np.stack([ordered[k].areas(weights[:, index]) for k in usable], axis=1),
        int(index.max()) + 1,
    )
    moved = np.stack([np.bincount(index, weights=ordered[k].influence()) for k in usable], axis=1)
    values = [ordered[k].area() for k in range(len(ordered))]
    rarer = [
        min(len(np.unique(index[positive[:, k] == side])) for side in (True, False)) for k in usable
    ]

    def area(value: float | None, draws: np.ndarray, influence: np.ndarray, rests_on: int) -> Area:
        complete = draws[~np.isnan(draws)]
        deviation = float(complete.std()) if len(complete) > 1 else 0.0
        closed = float(np.sqrt((influence**2).sum()) / count)
        return Area(
            estimate(value, deviation, rests_on, unit=unit),
            estimate(value, closed, rests_on, unit=unit),
        )

    nobody = Estimate(None, why=f"every {unit} is of one side")
    of_columns = [Area(nobody, nobody) for _ in ordered]
    for column, k in enumerate(usable):
        of_columns[k] = area(values[k], drawn[:, column], moved[:, column], rarer[column])
    mean = float(np.mean([values[k] for k in usable]))
    return of_columns, area(mean, drawn.mean(1), moved.mean(1), min(rarer))


@dataclass(frozen=True)
class PatientEvaluation:
    """Answers of probabilities per patient: one class each, or several labels of 0 and 1.

    Attributes:
        units: with answers (P, K), and targets (P,) of class indices or (P, K) of 0 and 1.
        classes: K names.
        thresholds: of each class, chosen on validation patients; None where there is none.
    """

    units: Averaged
    classes: tuple[str, ...]
    thresholds: tuple[float | None, ...] = ()

    @property
    def several(self) -> bool:
        """Whether a patient may have several labels."""
        return self.units.targets.ndim == 2

    @cached_property
    def truth(self) -> np.ndarray:
        """(P, K) bool."""
        targets = self.units.targets
        return targets > 0 if self.several else np.eye(len(self.classes), dtype=bool)[targets]

    @property
    def columns(self) -> tuple[int, ...]:
        """The classes that have a curve: of two classes the second, whose mirror the first is."""
        return (
            (1,) if len(self.classes) == 2 and not self.several else tuple(range(len(self.classes)))
        )

    @cached_property
    def _areas(self) -> tuple[list[Area], Area]:
        columns = list(self.columns)
        units = self.units
        return areas(units.answers[:, columns], self.truth[:, columns], units.groups, units.unit)

    @property
    def area(self) -> Area:
        """Of the second of two classes; of more, or of labels, the mean."""
        return self._areas[1]

    @property
    def mean_area(self) -> float | None:
        """The same without intervals, which is quick."""
        values = [
            area
            for k in self.columns
            if (area := Ordered.of(self.units.answers[:, k], self.truth[:, k]).area()) is not None
        ]
        return float(np.mean(values)) if values else None

    @property
    def of_classes(self) -> dict[str, Area]:
        """The area of each class that has a curve."""
        return dict(zip([self.classes[k] for k in self.columns], self._areas[0], strict=True))

    @property
    def predicted(self) -> np.ndarray:
        """(P,) the class of the largest probability; of two the second from its threshold on."""
        answers = self.units.answers
        threshold = self._threshold(1) if self.columns == (1,) else None
        return answers.argmax(1) if threshold is None else (answers[:, 1] >= threshold).astype(int)

    def confusion(self) -> np.ndarray:
        """(K, K) patients: row truth, column answer. For one class a patient."""
        size = len(self.classes)
        return np.bincount(self.units.targets * size + self.predicted, minlength=size**2).reshape(
            size, size
        )

    @property
    def accuracy(self) -> Estimate | None:
        """The share of right answers; None of several labels."""
        if self.several:
            return None
        return share(int(self.confusion().trace()), len(self.units.targets), "there is nobody")

    @property
    def balanced_accuracy(self) -> Estimate | None:
        """The mean share of each class that is found; None of several labels."""
        if self.several:
            return None
        matrix = self.confusion()
        support = matrix.sum(1)
        counts = support[support > 0]
        recalls = matrix.diagonal()[support > 0] / counts
        deviation = float(np.sqrt((recalls * (1 - recalls) / counts).sum()) / len(counts))
        return estimate(float(recalls.mean()), deviation, int(counts.min()), unit=self.units.unit)

    def _threshold(self, k: int) -> float | None:
        return self.thresholds[k] if self.thresholds else None

    def at_threshold(self) -> dict[str, dict[str, Any]]:
        """Class -> threshold, sensitivity and specificity there, and counts."""
        rows = {}
        for k in self.columns:
            threshold = self._threshold(k)
            if threshold is None:
                continue
            positive, truth = self.units.answers[:, k] >= threshold, self.truth[:, k]
            hits, passed = int((positive & truth).sum()), int((~positive & ~truth).sum())
            sick, well = int(truth.sum()), int((~truth).sum())
            name, unit = self.classes[k], self.units.unit
            rows[name] = {
                "threshold": threshold,
                "sensitivity": share(hits, sick, f"no {unit} is of class {name}"),
                "specificity": share(passed, well, f"every {unit} is of class {name}"),
                "found": hits,
                "missed": sick - hits,
                "passed": passed,
                "called": well - passed,
            }
        return rows

    def choose(self) -> tuple[float | None, ...]:
        """The thresholds that these patients would choose (Youden), by class."""
        chosen: list[float | None] = [None] * len(self.classes)
        for k in self.columns:
            chosen[k] = youden(self.units.answers[:, k], self.truth[:, k])
        return tuple(chosen)

    @property
    def brier(self) -> float:
        """The mean squared distance of the probabilities from the truth, summed over classes; of
        two classes for the second alone, of labels the mean.
        """
        squares = (self.units.answers - self.truth) ** 2
        if self.several:
            return float(squares.mean())
        return float(squares[:, 1].mean() if len(self.classes) == 2 else squares.sum(1).mean())

    @cached_property
    def calibration(self) -> Calibration:
        """Of two classes of the second; of more of the answer; of labels all of them together."""
        answers, truth = self.units.answers, self.truth
        if self.several:
            return calibration(answers.ravel(), truth.ravel())
        if len(self.classes) == 2:
            return calibration(answers[:, 1], truth[:, 1])
        best = answers.argmax(1)
        return calibration(answers.max(1), best == self.units.targets)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `intervals` hold both ends, or null, and `reasons` why."""
        named = {
            "auc": self.area.bootstrap,
            "auc_delong": self.area.delong,
            "top1": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
        }
        there = {name: value for name, value in named.items() if value is not None}
        curve = self.calibration
        return {
            "unit": f"{self.units.unit}s",
            "patients": len(self.units.names),
            "auc": self.area.value,
            "top1": None if self.accuracy is None else self.accuracy.value,
            "balanced_accuracy": (
                None if self.balanced_accuracy is None else self.balanced_accuracy.value
            ),
            "brier": self.brier,
            "ece": curve.error,
            "intervals": {name: value.interval for name, value in there.items()},
            "reasons": {name: value.why for name, value in there.items() if value.why},
            "per_class": {"auc": {name: area.value for name, area in self.of_classes.items()}},
            "class_intervals": {
                "auc": {name: area.bootstrap.interval for name, area in self.of_classes.items()}
            },
            "at_threshold": {
                name: {
                    key: value.value if isinstance(value, Estimate) else value
                    for key, value in row.items()
                }
                | {
                    "chosen_on": "validation",
                    "intervals": {
                        key: value.interval
                        for key, value in row.items()
                        if isinstance(value, Estimate)
                    },
                }
                for name, row in self.at_threshold().items()
            },
            "calibration": {
                "counts": curve.counts.tolist(),
                "sure": _numbers(curve.sure),
                "right": _numbers(curve.right),
            },
            "confusion": None if self.several else self.confusion().tolist(),
        }

    def __str__(self) -> str:
        unit = self.units.unit
        whose = (
            f"AUC of {self.classes[1]}"
            if self.columns == (1,)
            else ("mean AUC of the labels" if self.several else "AUC, mean of one against rest")
        )
        rows = [(f"{unit}s", f"{len(self.units.names)}"), (whose, str(self.area))]
        if self.accuracy is not None and self.balanced_accuracy is not None:
            rows += [
                ("accuracy", str(self.accuracy)),
                ("balanced accuracy", str(self.balanced_accuracy)),
            ]
        for name, row in self.at_threshold().items():
            rows += [
                (
                    f"threshold of {name}",
                    f"{row['threshold']:.4f}  (chosen on validation {unit}s)",
                ),
                (f"sensitivity of {name}", str(row["sensitivity"])),
                (f"specificity of {name}", str(row["specificity"])),
            ]
        rows += [
            ("Brier score", f"{self.brier:.4f}"),
            ("calibration error", f"{self.calibration.error:.4f}"),
        ]
        if len(self.columns) > 1:
            rows += [(f"AUC of {name}", str(area)) for name, area in self.of_classes.items()]
        return "\n".join(aligned([(visible(name), visible(text)) for name, text in rows]))


def _numbers(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def roc(scores: np.ndarray, positive: np.ndarray) -> list[tuple[float, float]]:
    """The points (1 - specificity, sensitivity) of all thresholds, from none to all.

    Args:
        scores: (P,) the higher, the likelier.
        positive: (P,) bool, both values there.
    """
    index = np.unique(-scores, return_inverse=True)[1]
    up, down = (np.bincount(index, weights=side).cumsum() for side in (positive, ~positive))
    return [(0.0, 0.0), *zip((down / down[-1]).tolist(), (up / up[-1]).tolist(), strict=True)]


def roc_band(
    scores: np.ndarray, positive: np.ndarray, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The 95 % band of a ROC curve, point by point over draws of patients.

    Args:
        scores: (P,) the higher, the likelier.
        positive: (P,) bool.
        groups: (P,) what is drawn together.

    Returns:
        `GRID` shares of false alarms, and the ends of the sensitivity there.
    """
    grid = np.linspace(0, 1, GRID)
    index = np.arange(len(scores)) if groups is None else np.unique(groups, return_inverse=True)[1]
    levels, level = np.unique(-scores, return_inverse=True)

    def curves(weights: np.ndarray) -> np.ndarray:
        rows = []
        for counted in weights[:, index]:
            up, down = (
                np.bincount(level, weights=counted * side, minlength=len(levels)).cumsum()
                for side in (positive, ~positive)
            )
            if not up[-1] or not down[-1]:
                rows.append(np.full(GRID, np.nan))
                continue
            across, upwards = np.r_[0, down / down[-1]], np.r_[0, up / up[-1]]
            rows.append(np.interp(grid, across, upwards))
        return np.stack(rows)

    drawn = resampled(curves, int(index.max()) + 1, BAND_DRAWS)
    drawn = drawn[~np.isnan(drawn).any(1)]
    if not len(drawn):
        return grid, np.zeros(GRID), np.ones(GRID)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return grid, low, high
