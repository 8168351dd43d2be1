"""Accuracy with its interval, and the difference between two models with its interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from softless.evaluation.intervals import bootstrap_mean, paired_bootstrap, wilson
from softless.report.groups import Group

ONE_SEED = (
    " This is one seed, and one seed decides nothing: what another would change is not in "
    "the interval."
)


@dataclass(frozen=True)
class ShareEstimate:
    """A share, or a difference of shares, with its 95 % interval."""

    value: float
    low: float
    high: float
    how: str  # of the interval, or why there is none (its ends are NaN then)

    @property
    def drawn(self) -> bool:
        """Whether there is an interval."""
        return not math.isnan(self.low)


def accuracy(group: Group) -> ShareEstimate | None:
    """Test accuracy: Wilson's interval over the images of one run, or a bootstrap over seeds and
    images.
    """
    answers = [run.predictions for run in group.runs]
    if any(answer is None for answer in answers):
        return None
    is_correct = correct(group)
    if is_correct is not None and len(is_correct) > 1:
        return ShareEstimate(
            *bootstrap_mean(is_correct),
            how=f"bootstrap over {len(is_correct)} seeds and {is_correct.shape[1]} images",
        )
    hits, images = (
        sum(int(a.correct.sum()) for a in answers if a),
        sum(len(a.targets) for a in answers if a),
    )
    low, high = wilson(hits, images)
    return ShareEstimate(hits / images, low, high, how=f"Wilson, {images} images")


def correct(group: Group, seeds: Sequence[int] | None = None) -> NDArray[np.bool_] | None:
    """(seeds, images) whether each answer is right; None where the seeds were tested on different
    images.
    """
    runs = [run for run in group.runs if seeds is None or run.seed in seeds]
    answers = [run.predictions for run in runs if run.predictions is not None]
    if (
        not answers
        or len(answers) < len(runs)
        or not all(answers[0].same_images(answer) for answer in answers)
    ):
        return None
    return np.stack([answer.correct for answer in answers])


def difference(group: Group, base: Group) -> ShareEstimate | None:
    """Accuracy of `group` minus that of `base`, paired over the seeds and images both have; None
    where nothing pairs.
    """
    seeds = sorted(set(group.seeds) & set(base.seeds))
    predictions, base_predictions = (group.first.predictions, base.first.predictions)
    if (
        not seeds
        or predictions is None
        or base_predictions is None
        or not predictions.same_images(base_predictions)
    ):
        return None
    a, b = correct(group, seeds), correct(base, seeds)
    if a is None or b is None:
        return None
    over = f"{len(seeds)} seed{'s' * (len(seeds) > 1)} and {a.shape[1]} images"
    return ShareEstimate(*paired_bootstrap(a, b), how=f"paired bootstrap over {over}")


@dataclass(frozen=True)
class Agreement:
    """How the answers of two models to the same images go together, counted over the seeds both
    have.
    """

    only_first: int
    only_second: int
    neither: int
    by_seed: tuple[tuple[int, float], ...]  # seed, difference of accuracy


def agreement(group: Group, base: Group) -> Agreement | None:
    """Counts behind a difference; None where nothing pairs."""
    seeds = sorted(set(group.seeds) & set(base.seeds))
    a, b = correct(group, seeds), correct(base, seeds)
    if a is None or b is None or a.shape != b.shape:
        return None
    apart = tuple(
        (seed, float(x.mean() - y.mean())) for seed, x, y in zip(seeds, a, b, strict=True)
    )
    return Agreement(int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum()), apart)
