"""What a classifier's logits are worth: accuracies, areas under curves, Brier score, calibration, confusion.

    Brier = 1/n sum_i sum_c (p_ic - y_ic)^2     (of two classes half of it: the second class alone)
    ECE   = sum_b n_b / n |share right - mean probability|     over ten bins of one width

Brier, Monthly Weather Review 1950; Naeini et al., AAAI 2015. All in float64, a block of images or one class at a time: beside the logits no table
of images and classes is made.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from softless.errors import DivergedError
from softless.evaluation.areas import Ordered

BINS = 10  # of the calibration curve
BLOCK = 2_000_000  # numbers of one block of logits: 16 MB


@dataclass(frozen=True)
class Calibration:
    """How sure the answers are beside how often they are right, in bins of one width over 0..1.

    Of two classes it is about the probability of the second and how often that is true; of more about the answer.
    """

    counts: np.ndarray  # (BINS,) images
    sure: np.ndarray  # (BINS,) mean probability, NaN where no image is
    right: np.ndarray  # (BINS,) share, likewise

    @property
    def error(self) -> float:
        """The expected calibration error."""
        apart = np.nan_to_num(np.abs(self.right - self.sure))
        return float((self.counts * apart).sum() / self.counts.sum())


@dataclass(frozen=True)
class Metrics:
    """Measures of n images in K classes."""

    loss: float  # mean cross-entropy, without label smoothing and class weights
    top1: float
    top5: float | None  # None up to five classes, where it is always 1
    balanced_accuracy: float  # mean recall of the classes that occur
    auc: float | None  # one class against the rest, mean over the classes that occur; None if only one occurs
    class_auc: tuple[float | None, ...]  # each against the rest; None for a class that does not occur or has no rest
    brier: float
    calibration: Calibration
    confusion: np.ndarray  # (K, K) int64: row truth, column prediction

    @property
    def commonest(self) -> float:
        """What always answering the class that is commonest among these images gets right."""
        support = self.confusion.sum(1)
        return float(support.max() / support.sum())

    @property
    def chance(self) -> float:
        """What guessing gets right, every class as likely."""
        return 1 / len(self.confusion)

    @property
    def recall(self) -> tuple[float | None, ...]:
        """The share of each class that is found; None for a class that does not occur."""
        return _shares(self.confusion.diagonal(), self.confusion.sum(1))

    @property
    def precision(self) -> tuple[float | None, ...]:
        """The share of the answers of each class that is right; None for a class that is never answered."""
        return _shares(self.confusion.diagonal(), self.confusion.sum(0))


def measure(logits: Tensor, targets: Tensor) -> Metrics:
    """Measure logits (n, K) against targets (n,).

    Raises:
        DivergedError: some logits are not finite; no accuracy of them means anything.
    """
    classes = logits.shape[1]
    said, truth = logits.cpu().numpy(), targets.long().cpu().numpy()
    bad = int((~np.isfinite(said)).any(1).sum())
    if bad:
        raise DivergedError(f"the model's output is not finite for {bad} of {len(said)} images: its weights diverged")
    confusion = np.bincount(truth * classes + said.argmax(1), minlength=classes**2).reshape(classes, classes)
    right, support = confusion.diagonal(), confusion.sum(1)
    areas = class_areas(said, truth)
    known = [area for area in areas if area is not None]
    sums, hits, sure, held = _walked(said, truth)
    return Metrics(
        loss=float(-sums["log"] / len(truth)),
        top1=float(right.sum() / len(truth)),
        top5=float(sums["top5"] / len(truth)) if classes > 5 else None,
        balanced_accuracy=float((right[support > 0] / support[support > 0]).mean()),
        auc=float(np.mean(known)) if known else None,
        class_auc=areas,
        brier=float(sums["brier"] / len(truth)),
        calibration=calibration(sure, held if classes == 2 else hits),
        confusion=confusion,
    )


def class_areas(logits: np.ndarray, targets: np.ndarray) -> tuple[float | None, ...]:
    """The area under the ROC curve of each class against the rest; None where one side has no image."""
    return tuple(
        Ordered.of(scores, targets == label).area() if (targets == label).any() else None
        for label, scores in enumerate(class_scores(logits))
    )


def class_scores(logits: np.ndarray) -> Iterator[np.ndarray]:
    """(n,) float64 for each class, rising with its probability: the logarithm of that, or of two classes the difference of the logits, exact where
    probabilities round to 1.
    """
    if logits.shape[1] == 2:
        apart = logits[:, 1].astype(np.float64) - logits[:, 0]
        yield from (-apart, apart)
        return
    total = np.concatenate([_log_total(block) for block in _blocks(logits)]) if len(logits) else np.empty(0)
    for label in range(logits.shape[1]):
        yield logits[:, label].astype(np.float64) - total


def calibration(sure: np.ndarray, right: np.ndarray, bins: int = BINS) -> Calibration:
    """Probabilities (n,) beside what came true (n,); a probability on the border of two bins is in the lower."""
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], sure)
    counts = np.bincount(place, minlength=bins)
    summed = (np.bincount(place, weights=values, minlength=bins) for values in (sure, right.astype(np.float64)))
    means = [np.divide(one, counts, out=np.full(bins, np.nan), where=counts > 0) for one in summed]
    return Calibration(counts, *means)


def second_class(logits: np.ndarray) -> np.ndarray:
    """(n,) float64 probability of the second of two classes."""
    apart = logits[:, 1].astype(np.float64) - logits[:, 0]
    return 0.5 * (1 + np.tanh(apart / 2))


def _walked(logits: np.ndarray, targets: np.ndarray) -> tuple[dict[str, float], np.ndarray, np.ndarray, np.ndarray]:
    """Sums over the images, and of each image whether its answer is right, how sure it is, and whether it is of the second class."""
    sums, sure, hits = dict.fromkeys(("log", "brier", "top5"), 0.0), [], []
    for block, truth in zip(_blocks(logits), _blocks(targets, logits.shape[1]), strict=True):
        wide, rows = block.astype(np.float64), np.arange(len(block))
        of_truth = wide[rows, truth]
        sums["log"] += float((of_truth - _log_total(wide)).sum())
        before = (wide > of_truth[:, None]).sum(1)  # of equal logits the first class comes first, as in the answer
        before += ((wide == of_truth[:, None]) & (np.arange(wide.shape[1]) < truth[:, None])).sum(1)
        sums["top5"] += int((before < 5).sum())
        hits.append(before == 0)
        chances = np.exp(wide - _log_total(wide)[:, None])
        sure.append(second_class(block) if logits.shape[1] == 2 else chances.max(1))
        chances[rows, truth] -= 1
        sums["brier"] += float((chances**2).sum()) / (2 if logits.shape[1] == 2 else 1)
    return sums, np.concatenate(hits), np.concatenate(sure), targets == 1


def _blocks(values: np.ndarray, width: int | None = None) -> Iterator[np.ndarray]:
    """The rows in order, so many at once as a block of logits may have."""
    step = max(1, BLOCK // (width or values.shape[1]))
    return (values[start : start + step] for start in range(0, len(values), step))


def _log_total(logits: np.ndarray) -> np.ndarray:
    """log sum_c exp(logit_c) of each row (n, K), (n,) float64."""
    wide = logits.astype(np.float64)
    largest = wide.max(1)
    total: np.ndarray = largest + np.log(np.exp(wide - largest[:, None]).sum(1))
    return total


def _shares(part: np.ndarray, whole: np.ndarray) -> tuple[float | None, ...]:
    return tuple(int(one) / int(of) if of else None for one, of in zip(part, whole, strict=True))
