"""What a classifier's logits are worth: accuracies, areas under curves, Brier score, calibration,
confusion.

    Brier = 1/n sum_i sum_c (p_ic - y_ic)^2     (of two classes half of it: the second class alone)
    ECE   = sum_b n_b / n |share right - mean probability|     over ten bins of one width

Brier, Monthly Weather Review 1950; Naeini et al., AAAI 2015. All in float64, a block of images or
one class at a time: beside the logits no table of images and classes is made.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from softless.errors import DivergedError
from softless.evaluation.areas import area_of

BINS = 10  # of the calibration curve
BLOCK = 2_000_000  # numbers of one block of logits: 16 MB
CACHED = 64_000  # of a block that is walked: 512 kB
AT_ONCE = 8  # classes whose scores are sorted together


@dataclass(frozen=True)
class Calibration:
    """How sure the answers are beside how often they are right, in bins of one width over 0..1.

    Of two classes it is about the probability of the second and how often that is true; of more
    about the answer.
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
    # one class against the rest, mean over the classes that occur; None if only one occurs
    auc: float | None
    # each against the rest; None for a class that does not occur or has no rest
    class_auc: tuple[float | None, ...]
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
        """The share of the answers of each class that is right; None for a class that is never
        answered.
        """
        return _shares(self.confusion.diagonal(), self.confusion.sum(0))


def measure(logits: Tensor, targets: Tensor) -> Metrics:
    """Measure logits (n, K) against targets (n,).

    Raises:
        DivergedError: some logits are not finite; no accuracy of them means anything.
    """
    classes = logits.shape[1]
    walk = walked(logits.cpu(), targets.long().cpu())
    walk.refuse_bad(len(logits))
    values, truth = logits.cpu().numpy(), targets.long().cpu().numpy()
    confusion = np.bincount(truth * classes + values.argmax(1), minlength=classes**2).reshape(
        classes, classes
    )
    correct, support = confusion.diagonal(), confusion.sum(1)
    areas = _areas(values, truth, walk.totals)
    defined_areas = [area for area in areas if area is not None]
    return Metrics(
        loss=float(-walk.log / len(truth)),
        top1=float(correct.sum() / len(truth)),
        top5=float(walk.top5 / len(truth)) if classes > 5 else None,
        balanced_accuracy=float((correct[support > 0] / support[support > 0]).mean()),
        auc=float(np.mean(defined_areas)) if defined_areas else None,
        class_auc=areas,
        brier=float(walk.brier / len(truth)),
        calibration=calibration(walk.sure, truth == 1 if classes == 2 else walk.hits),
        confusion=confusion,
    )


def _areas(logits: np.ndarray, targets: np.ndarray, totals: np.ndarray) -> tuple[float | None, ...]:
    """The area under the ROC curve of each class against the rest, from logits (n, K), targets (n,)
    and the logarithm of each image's summed exponentials (n,) float64; None where one side has no
    image. A few classes at once, each sorted once.
    """
    order = np.argsort(targets, kind="stable")
    starts = np.searchsorted(targets[order], np.arange(logits.shape[1] + 1))
    if logits.shape[1] == 2:
        scores = np.stack(list(class_scores(logits)))
        return tuple(
            area_of(scores[label], order[starts[label] : starts[label + 1]]) for label in range(2)
        )
    areas: list[float | None] = []
    for first in range(0, logits.shape[1], AT_ONCE):
        scores = (
            np.ascontiguousarray(logits[:, first : first + AT_ONCE].T).astype(np.float64) - totals
        )
        labels = range(first, first + len(scores))
        areas += [
            area_of(row, order[starts[label] : starts[label + 1]])
            for label, row in zip(labels, scores, strict=True)
        ]
    return tuple(areas)


def class_scores(logits: np.ndarray) -> Iterator[np.ndarray]:
    """(n,) float64 for each class, rising with its probability, from logits (n, K).

    It is the logarithm of the probability, or of two classes the difference of the logits, exact
    where probabilities round to 1.
    """
    if logits.shape[1] == 2:
        apart = logits[:, 1].astype(np.float64) - logits[:, 0]
        yield from (-apart, apart)
        return
    total = (
        np.concatenate([_log_total(block) for block in _blocks(logits)])
        if len(logits)
        else np.empty(0)
    )
    for label in range(logits.shape[1]):
        yield logits[:, label].astype(np.float64) - total


def calibration(sure: np.ndarray, outcomes: np.ndarray, bins: int = BINS) -> Calibration:
    """Probabilities (n,) beside their outcomes (n,), true or not; a probability on the border of
    two bins is in the lower.
    """
    bin_index = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], sure)
    counts = np.bincount(bin_index, minlength=bins)
    summed = (
        np.bincount(bin_index, weights=values, minlength=bins)
        for values in (sure, outcomes.astype(np.float64))
    )
    means = [
        np.divide(sums, counts, out=np.full(bins, np.nan), where=counts > 0) for sums in summed
    ]
    return Calibration(counts, *means)


def second_class(logits: np.ndarray) -> np.ndarray:
    """(n,) float64 probability of the second of two classes, from logits (n, 2)."""
    apart = logits[:, 1].astype(np.float64) - logits[:, 0]
    return 0.5 * (1 + np.tanh(apart / 2))


@dataclass(frozen=True)
class Walk:
    """Sums over the images; and of each image how sure its answer is, whether it is right, and log
    sum_c exp(logit_c), (n,).
    """

    log: float
    brier: float
    top5: int
    bad: int  # images with a logit that is not finite
    sure: np.ndarray
    hits: np.ndarray
    totals: np.ndarray

    def refuse_bad(self, images: int) -> None:
        """Nothing where all images have finite logits.

        Raises:
            DivergedError: some have not.
        """
        if self.bad:
            raise DivergedError(
                f"the model's output is not finite for {self.bad} of {images} images: its weights "
                "diverged"
            )


def walked(logits: Tensor, targets: Tensor) -> Walk:
    """One pass over logits (n, K) and targets (n,), a block that fits the processor's cache at a
    time.
    """
    (images, classes), class_indices = logits.shape, torch.arange(logits.shape[1])
    sums, bad = dict.fromkeys(("log", "brier", "top5"), 0.0), 0
    sure, totals = (torch.zeros(images, dtype=torch.float64) for _ in range(2))
    hits = torch.zeros(images, dtype=torch.bool)
    step = max(1, CACHED // classes)
    # new ones would leave gaps in the memory
    room = torch.zeros(min(step, images), classes, dtype=torch.float64)
    for start in range(0, images, step):
        rows = slice(start, start + step)
        block, truth = logits[rows], targets[rows, None]
        largest = block.amax(1, keepdim=True).double()
        bad += int((~(largest[:, 0] + block.amin(1)).isfinite()).sum())
        of_truth = block.gather(1, truth)
        before = (block > of_truth).sum(1) + _ahead(block == of_truth, truth, class_indices)
        grown = room[: len(block)].copy_(block).sub_(largest).exp_()
        total = grown.sum(1)
        chance = grown.gather(1, truth)[:, 0] / total
        totals[rows] = largest[:, 0] + total.log()
        hits[rows] = before == 0
        sure[rows] = torch.from_numpy(second_class(block.numpy())) if classes == 2 else 1 / total
        sums["log"] += float((of_truth[:, 0].double() - totals[rows]).sum())
        squares = grown.square_().sum(1) / total.square()
        sums["brier"] += float((squares - 2 * chance + 1).sum()) / (2 if classes == 2 else 1)
        sums["top5"] += int((before < 5).sum())
    return Walk(
        sums["log"],
        sums["brier"],
        int(sums["top5"]),
        bad,
        sure.numpy(),
        hits.numpy(),
        totals.numpy(),
    )


def _ahead(equal: Tensor, truth: Tensor, class_indices: Tensor) -> Tensor:
    """(b,) how many classes with the logit of the true one come before it, as in the answer; of
    `equal` (b, K), truth (b, 1), class_indices (K,).
    """
    ties = equal.sum(1)
    shared = (ties > 1).nonzero()[:, 0]
    ahead = torch.zeros_like(ties)
    if len(shared):
        ahead[shared] = (equal[shared] & (class_indices < truth[shared])).sum(1)
    return ahead


def _blocks(values: np.ndarray, width: int | None = None) -> Iterator[np.ndarray]:
    """The rows in order, so many at once as a block of logits may have."""
    step = max(1, BLOCK // (width or values.shape[1]))
    return (values[start : start + step] for start in range(0, len(values), step))


def _log_total(logits: np.ndarray) -> np.ndarray:
    """log sum_c exp(logit_c) of each row (n, K), (n,) float64."""
    values = logits.astype(np.float64)
    largest = values.max(1)
    total: np.ndarray = largest + np.log(np.exp(values - largest[:, None]).sum(1))
    return total


def _shares(part: np.ndarray, totals: np.ndarray) -> tuple[float | None, ...]:
    return tuple(
        int(count) / int(of) if of else None for count, of in zip(part, totals, strict=True)
    )
