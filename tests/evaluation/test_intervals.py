"""Intervals: known values, coverage, and what pairing is for."""

import numpy as np
import pytest
from scipy.stats import binomtest

from softless.errors import UsageError
from softless.evaluation import bootstrap_mean, paired_bootstrap, wilson


@pytest.mark.parametrize(
    ("correct", "n"), [(0, 1), (1, 1), (0, 360), (360, 360), (352, 360), (522, 624), (1, 240)]
)
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_is_scipy_s(correct, n, level):
    expected = binomtest(correct, n).proportion_ci(level, method="wilson")
    assert wilson(correct, n, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("correct", "n"), [(1, 0), (-1, 10), (11, 10)])
def test_wilson_of_nothing(correct, n):
    with pytest.raises(UsageError, match=f"no interval for {correct} of {n}"):
        wilson(correct, n)


def test_level_is_checked():
    for call in (lambda: wilson(1, 2, 95), lambda: bootstrap_mean([True, False], level=0.0)):
        with pytest.raises(UsageError, match="a confidence level lies between 0 and 1"):
            call()


def test_bootstrap_of_one_seed_is_the_binomial_interval():
    right = np.arange(1000) < 900
    value, low, high = bootstrap_mean(right)
    assert value == pytest.approx(0.9)
    half = 1.96 * np.sqrt(0.9 * 0.1 / 1000)
    assert (high - low) / 2 == pytest.approx(half, rel=0.05)
    assert low < value < high


def test_bootstrap_repeats_itself_and_follows_its_seed():
    right = np.random.default_rng(0).random((3, 200)) < 0.8
    assert bootstrap_mean(right) == bootstrap_mean(right)
    assert bootstrap_mean(right) != bootstrap_mean(right, seed=1)
    assert len(str(bootstrap_mean(right)).split()) == 3


def test_seeds_that_disagree_widen_the_interval():
    images = np.arange(400)
    alike = np.stack([images < 320] * 3)
    apart = np.stack([images < n for n in (280, 320, 360)])
    (mean_a, low_a, high_a), (mean_b, low_b, high_b) = bootstrap_mean(alike), bootstrap_mean(apart)
    assert mean_a == mean_b
    assert high_b - low_b > 1.5 * (high_a - low_a)


def test_pairing_cancels_what_is_hard_for_both():
    rng = np.random.default_rng(0)
    hard = rng.random(500) < 0.3
    a = np.stack([~hard & (rng.random(500) < 0.99) for _ in range(3)])
    b = np.stack([~hard & (rng.random(500) < 0.97) for _ in range(3)])
    value, low, high = paired_bootstrap(a, b)
    assert value == pytest.approx(a.mean() - b.mean())
    assert low < value < high
    alone = bootstrap_mean(a)
    assert high - low < 0.6 * (alone.high - alone.low)
    assert paired_bootstrap(b, a).value == -value
    assert paired_bootstrap(a, a) == (0.0, 0.0, 0.0)


def test_the_same_image_is_drawn_for_every_seed():
    """Three seeds that agree on every image carry the information of one: the interval must not
    shrink.
    """
    right = np.random.default_rng(0).random(300) < 0.8
    one, three = bootstrap_mean(right), bootstrap_mean(np.stack([right] * 3))
    assert three.high - three.low == pytest.approx(one.high - one.low, rel=0.05)


def test_coverage():
    """Of 200 experiments, about 190 intervals hold the true mean: both for Wilson and for the
    bootstrap over images.
    """
    rng = np.random.default_rng(1)
    held = np.zeros(2)
    for _ in range(200):
        right = rng.random(150) < 0.85
        low, high = wilson(int(right.sum()), 150)
        resampled = bootstrap_mean(right, replicates=500)
        held += [low <= 0.85 <= high, resampled.low <= 0.85 <= resampled.high]
    assert (held > 180).all()
    assert (held < 200).all()


def test_shapes_that_do_not_pair():
    with pytest.raises(UsageError, match=r"got \(2, 5\) and \(3, 5\)"):
        paired_bootstrap(np.ones((2, 5)), np.ones((3, 5)))
    for wrong in (np.ones((2, 3, 4)), np.ones((0, 4)), np.ones(0)):
        with pytest.raises(UsageError, match="expected correctness of shape"):
            bootstrap_mean(wrong)


def test_many_images_fit_in_memory():
    right = np.random.default_rng(0).random((3, 50_000)) < 0.8
    value, low, high = bootstrap_mean(right, replicates=200)
    assert low < value < high
    assert high - low < 0.01
