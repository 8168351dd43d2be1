"""Intervals of measures that are no plain share: images are drawn again with replacement, and the
measure's spread is seen.

    logit m ± t s / (m (1 - m))

s is the standard deviation of the measure m over the draws (Efron 1979), made larger by n / (n - 1)
in its square. Student's quantile of n - 1 degrees is t: with few images the draws alone make
intervals too narrow. On the scale of the logit they keep within 0..1 and are as lopsided as the
measure is near an end. Where the draws cannot tell the spread there is no interval, and a sentence
says why.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from softless.words import counted

LEVEL = 0.95
REPLICATES = 2000
FEWEST = 10  # images, below which draws say little of what another set would show
BLOCK = 2_000_000  # numbers of one block of draws: 16 MB


@dataclass(frozen=True)
class Estimate:
    """A measure with the ends of its 95 % interval; `why` says what there is none of: a value, or
    an interval of it.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    why: str = ""

    @property
    def interval(self) -> list[float] | None:
        """Both ends, or None where there is no interval."""
        return None if self.low is None or self.high is None else [self.low, self.high]

    def __str__(self) -> str:
        if self.value is None:
            return self.why or "n/a"
        if self.interval is None:
            return f"{self.value:.4f}" + (f"  (no interval: {self.why})" if self.why else "")
        return f"{self.value:.4f}  (95 % interval {self.low:.4f} to {self.high:.4f})"


def draws(images: int, replicates: int = REPLICATES, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each image is drawn: blocks (b, images) of whole numbers, a row for each replicate;
    a row sums to `images`.
    """
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK // max(images, 1))
    for start in range(0, replicates, block):
        rows = min(block, replicates - start)
        picked = rng.integers(images, size=(rows, images)) + images * np.arange(rows)[:, None]
        yield np.bincount(picked.ravel(), minlength=rows * images).reshape(rows, images)


def resampled(
    measure: Callable[[np.ndarray], np.ndarray],
    images: int,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> np.ndarray:
    """(replicates,) values of a measure under the draws.

    Args:
        measure: from draws (b, images) to values (b,), NaN where a draw has none.
        images: how many there are.
        replicates: how many draws.
        seed: of the draws.
    """
    return np.concatenate([measure(block) for block in draws(images, replicates, seed)])


def estimate(
    value: float | None, deviation: float, images: int, *, why: str = "", unit: str = "image"
) -> Estimate:
    """A share with its interval from the draws' standard deviation.

    Args:
        value: the measure of the images as they are, 0..1; None where it has none.
        deviation: of the measure over draws of the images.
        images: how many independent ones the measure rests on (of an area under a curve: those of
            the rarer side).
        why: there is no value.
        unit: what `images` counts, in the singular.
    """
    if value is None:
        return Estimate(None, why=why)
    if images < FEWEST:
        return Estimate(
            value,
            why=f"it would rest on {counted(images, unit)}, and at least {FEWEST} are needed",
        )
    if not 0 < value < 1 or not deviation > 0 or not math.isfinite(deviation):
        return Estimate(
            value,
            why=f"every draw of these {unit}s gives the same value, so they do not show its spread",
        )
    half_width = (
        deviation * math.sqrt(images / (images - 1)) * student(images - 1) / (value * (1 - value))
    )
    middle = math.log(value / (1 - value))
    return Estimate(value, _share(middle - half_width), _share(middle + half_width))


def student(freedom: int, level: float = LEVEL) -> float:
    """The two-sided quantile of Student's t, to 1e-3 from 5 degrees on, to 1 % at 2 (Abramowitz and
    Stegun 26.7.5).
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def _share(logit: float) -> float:
    """1 / (1 + exp(-logit)), at any size."""
    return 0.5 * (1 + math.tanh(logit / 2))


def apart(difference: float, deviation: float, images: int) -> tuple[float, float]:
    """The ends of the interval of a difference of two measures of the same images, from the
    deviation of the difference over draws of them.
    """
    if images < 3:  # which say nothing of a spread: all that shares can differ by
        return -1.0, 1.0
    half_width = deviation * math.sqrt(images / (images - 1)) * student(images - 1)
    return difference - half_width, difference + half_width
