"""How far a measured accuracy may be from the true one: Wilson's interval for one run, bootstrap
intervals over several.
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from softless.errors import UsageError

_BLOCK = 2_000_000  # numbers of one block of resampling weights: 16 MB


class Interval(NamedTuple):
    """An estimate with the ends of its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def wilson(correct: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share `correct / n` (Wilson 1927): it keeps to 0..1 and holds
    near the ends.

    Raises:
        UsageError: n is zero, correct is not within 0..n, or level not between 0 and 1.
    """
    if n < 1 or not 0 <= correct <= n:
        raise UsageError(
            f"no interval for {correct} of {n}: it needs at least one image, and 0 <= correct <= n"
        )
    z = NormalDist().inv_cdf(0.5 + _checked(level) / 2)
    share = correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == n else min(1.0, centre + half)
    return low, high


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, *, level: float = 0.95, replicates: int = 10_000, seed: int = 0
) -> Interval:
    """The difference mean(a) - mean(b) of two models and its percentile interval, seeds and images
    drawn together.

    Both models were trained with the same seeds and tested on the same images. Each replicate draws
    seeds and images with replacement, the same for both, so what is hard for both cancels.

    Args:
        a: (seeds, images), True where the run got the image right; (images,) counts as one seed.
        b: the other model's, same shape and order.
        level: of the interval, between 0 and 1.
        replicates: draws.
        seed: of the draws.

    Raises:
        UsageError: shapes that differ or are not (seeds, images), or a level outside 0..1.
    """
    right_a, right_b = _runs(a), _runs(b)
    if right_a.shape != right_b.shape:
        raise UsageError(
            f"paired runs need the same seeds and images, got {right_a.shape} and {right_b.shape}"
        )
    return _bootstrap(right_a - right_b, level, replicates, seed)


def bootstrap_mean(
    a: ArrayLike, *, level: float = 0.95, replicates: int = 10_000, seed: int = 0
) -> Interval:
    """The mean accuracy of one model over its seeds and its percentile interval, seeds and images
    drawn together.

    Args:
        a: (seeds, images), True where the run got the image right; (images,) counts as one seed.
        level: of the interval, between 0 and 1.
        replicates: draws.
        seed: of the draws.

    Raises:
        UsageError: not of shape (seeds, images), or a level outside 0..1.
    """
    return _bootstrap(_runs(a), level, replicates, seed)


def _runs(a: ArrayLike) -> np.ndarray:
    runs = np.atleast_2d(np.asarray(a, dtype=np.float64))
    if runs.ndim != 2 or not runs.size:
        raise UsageError(f"expected correctness of shape (seeds, images), got {np.shape(a)}")
    return runs


def _bootstrap(runs: np.ndarray, level: float, replicates: int, seed: int) -> Interval:
    """A replicate is sum_si w_s u_i runs_si, w and u the shares of multinomial draws of the seeds
    and the images.
    """
    rng = np.random.default_rng(seed)
    seeds, images = runs.shape
    block = max(1, min(replicates, _BLOCK // max(seeds, images)))
    means = []
    for start in range(0, replicates, block):
        count = min(block, replicates - start)
        of_seeds = rng.multinomial(seeds, [1 / seeds] * seeds, size=count) / seeds
        of_images = rng.multinomial(images, [1 / images] * images, size=count) / images
        means.append((of_seeds @ runs * of_images).sum(1))
    tail = (1 - _checked(level)) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Interval(float(runs.mean()), float(low), float(high))


def _checked(level: float) -> float:
    if not 0 < level < 1:
        raise UsageError(
            f"level={level}: a confidence level lies between 0 and 1, for example 0.95"
        )
    return level
