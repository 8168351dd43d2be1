"""What clinicians and reviewers ask of a classifier beyond its accuracy: each class, intervals, and
a threshold that validation chose.

Intervals of an area under the ROC curve, and of the mean of those, are of a bootstrap over images
(`spread`). Where images, classes and draws are more than `MOST` numbers the deviation is DeLong's,
which is the limit of the bootstrap's for many images. That of the balanced accuracy has the
bootstrap's deviation in closed form. Shares (recall, precision, sensitivity, specificity) have
Wilson's.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from softless.evaluation.areas import Ordered
from softless.evaluation.intervals import wilson
from softless.evaluation.metrics import Metrics, class_scores, second_class
from softless.evaluation.spread import REPLICATES, Estimate, estimate, resampled

# numbers (draws x images x classes) that the intervals of areas may take: some seconds
MOST = 100_000_000
NO_THRESHOLD = "no threshold on the validation images tells the two classes apart"


@dataclass(frozen=True)
class Operating:
    """A classifier of two classes that answers the second where its probability is at least
    `threshold`.
    """

    threshold: float
    positive: str  # name of the second class
    # of the second class found and missed, of the first right and called the second
    counts: tuple[int, int, int, int]

    @property
    def sensitivity(self) -> Estimate:
        """The share of the second class that is found."""
        hits, missed, _, _ = self.counts
        return share(hits, hits + missed, f"no image is of class {self.positive}")

    @property
    def specificity(self) -> Estimate:
        """The share of the first class that is not called the second."""
        _, _, passed, called = self.counts
        return share(passed, passed + called, f"every image is of class {self.positive}")

    def to_dict(self) -> dict[str, Any]:
        """For JSON: threshold, both shares with their intervals, and `counts` (images) by name."""
        hits, missed, passed, called = self.counts
        estimates = {"sensitivity": self.sensitivity, "specificity": self.specificity}
        return {
            "threshold": self.threshold,
            "chosen_on": "validation",
            "positive": self.positive,
            **{name: estimate.value for name, estimate in estimates.items()},
            "intervals": {name: estimate.interval for name, estimate in estimates.items()},
            "found": hits,
            "missed": missed,
            "passed": passed,
            "called": called,
        }


@dataclass(frozen=True)
class Details:
    """Estimates of all images together by the measure's name, and of each class: measure ->
    estimates in the order of the classes.
    """

    overall: dict[str, Estimate]
    of_class: dict[str, list[Estimate]]


def details(
    metrics: Metrics, logits: np.ndarray, targets: np.ndarray, classes: tuple[str, ...]
) -> Details:
    """Everything with its interval, of logits (n, K) and targets (n,) whose `Metrics` are known."""
    areas, mean = _areas(metrics, logits, targets)
    support, answered, correct = (
        metrics.confusion.sum(1),
        metrics.confusion.sum(0),
        metrics.confusion.diagonal(),
    )
    return Details(
        overall={"balanced_accuracy": _balanced(metrics), "auc": mean},
        of_class={
            "precision": [
                share(hits, of, f"{name} is never answered")
                for name, hits, of in zip(classes, correct, answered, strict=True)
            ],
            "recall": [
                share(hits, of, f"no image is of class {name}")
                for name, hits, of in zip(classes, correct, support, strict=True)
            ],
            "auc": areas,
        },
    )


def share(part: int, total: int, why: str) -> Estimate:
    """A share with Wilson's interval; `why` there is none of nothing."""
    if not total:
        return Estimate(None, why=why)
    return Estimate(int(part) / int(total), *wilson(int(part), int(total)))


def youden(chances: np.ndarray, positive: np.ndarray) -> float | None:
    """The threshold at which sensitivity + specificity is largest (Youden, Cancer 1950), or None
    where none is better than no test.

    Of several the one next to 0.5. It lies between two of the probabilities, so that rounding moves
    no image across it.

    Args:
        chances: (n,) probabilities of the class.
        positive: (n,) whether an image is of it.
    """
    if not positive.any() or positive.all():
        return None
    values, value_index = np.unique(chances, return_inverse=True)
    up, down = (
        np.bincount(value_index, weights=side, minlength=len(values))
        for side in (positive, ~positive)
    )
    sensitivity, called = up[::-1].cumsum()[::-1] / up.sum(), down[::-1].cumsum()[::-1] / down.sum()
    gain = sensitivity - called  # of answering the class from this probability on
    if gain.max() <= 0:
        return None
    below = np.concatenate([[0.0], values[:-1]])
    between = np.where((values + below) / 2 > below, (values + below) / 2, values)
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    return float(between[best[np.abs(between[best] - 0.5).argmin()]])


def operating(
    logits: np.ndarray, targets: np.ndarray, classes: tuple[str, ...], threshold: float
) -> Operating:
    """How a threshold does on logits (n, 2) and targets (n,)."""
    predicted, truth = second_class(logits) >= threshold, targets == 1
    counts = [
        int((truth & predicted).sum()),
        int((truth & ~predicted).sum()),
        int((~truth & ~predicted).sum()),
        int((~truth & predicted).sum()),
    ]
    return Operating(threshold, classes[1], (counts[0], counts[1], counts[2], counts[3]))


def _balanced(metrics: Metrics) -> Estimate:
    """The mean recall: recalls of classes are independent, so the bootstrap's variance is a sum."""
    support = metrics.confusion.sum(1)
    counts = support[support > 0]
    recalls = metrics.confusion.diagonal()[support > 0] / counts
    deviation = float(np.sqrt((recalls * (1 - recalls) / counts).sum()) / len(counts))
    return estimate(metrics.balanced_accuracy, deviation, int(counts.min()))


def _areas(
    metrics: Metrics, logits: np.ndarray, targets: np.ndarray
) -> tuple[list[Estimate], Estimate]:
    """The area of each class against the rest, and their mean."""
    occurring = [label for label, area in enumerate(metrics.class_auc) if area is not None]
    if not occurring:
        only_one = Estimate(None, why="only one class occurs")
        return [only_one for _ in metrics.class_auc], only_one
    images, counts = len(targets), np.bincount(targets, minlength=logits.shape[1])
    drawn = images * len(occurring) * REPLICATES <= MOST
    # of two classes one curve is the other's mirror image
    labels = occurring if logits.shape[1] > 2 else occurring[:1]
    total, deviations = np.zeros(REPLICATES if drawn else images), {}
    for label, scores in enumerate(class_scores(logits)):
        if label not in labels:
            continue
        ordered = Ordered.of(scores, targets == label)
        moved = resampled(ordered.areas, images) if drawn else ordered.influence()
        deviations[label] = _deviation(moved, drawn=drawn)
        total += moved / len(labels)
    estimates = []
    for label, area in enumerate(metrics.class_auc):
        why = "" if area is not None else "no image is of this class"
        rarer = int(min(counts[label], images - counts[label]))
        estimates.append(
            estimate(area, deviations.get(label, deviations[labels[0]]), rarer, why=why)
        )
    rarest = int(min(min(counts[label], images - counts[label]) for label in occurring))
    return estimates, estimate(metrics.auc, _deviation(total, drawn=drawn), rarest)


def _deviation(moved: np.ndarray, *, drawn: bool) -> float:
    """Of a measure, from its values under draws (NaN where a draw lacks a class), or from what each
    image adds.
    """
    if not drawn:
        return float(np.sqrt((moved**2).sum()) / len(moved))
    valid = moved[~np.isnan(moved)]
    return float(valid.std()) if len(valid) > 1 else 0.0
