"""Intervals over images: how often they hold the truth, and where there are none."""

import numpy as np
import pytest
from scipy.stats import t as student_t

from softless.evaluation.areas import Ordered
from softless.evaluation.spread import Estimate, draws, estimate, resampled, student
from softless.tasks.detection.matches import ClassMatches, Matches
from softless.tasks.segmentation.measure import SegmentationScores

EXPERIMENTS = 2000


@pytest.mark.parametrize("freedom", [5, 9, 29, 199, 10_000])
def test_the_quantile_is_scipy_s(freedom):
    assert student(freedom) == pytest.approx(student_t.ppf(0.975, freedom), abs=1e-3)


def test_every_draw_has_as_many_images_and_follows_the_seed():
    first, again, other = (np.concatenate(list(draws(7, 50, seed))) for seed in (0, 0, 1))
    assert first.shape == (50, 7)
    assert (first.sum(1) == 7).all()
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_block_does_not_change_the_draws_of_a_mean():
    values = np.arange(100.0)
    drawn = resampled(lambda weights: weights @ values / 100, 100)
    assert drawn.mean() == pytest.approx(values.mean(), rel=0.01)
    assert drawn.std() == pytest.approx(values.std() / 10, rel=0.05)


def test_many_images_are_drawn_in_blocks():
    blocks = [block.shape for block in draws(1_500_000, 3)]
    assert blocks == [(1, 1_500_000)] * 3


@pytest.mark.parametrize(
    ("value", "deviation", "images", "why"),
    [
        (0.8, 0.1, 9, "it would rest on 9 images, and at least 10 are needed"),
        (0.8, 0.1, 1, "it would rest on 1 image, and"),
        (1.0, 0.0, 50, "every draw of these images gives the same value"),
        (0.0, 0.0, 50, "every draw of these images gives the same value"),
        (0.5, 0.0, 50, "every draw of these images gives the same value"),
        (0.5, float("nan"), 50, "every draw of these images gives the same value"),
    ],
)
def test_there_is_a_reason_where_there_is_no_interval(value, deviation, images, why):
    found = estimate(value, deviation, images)
    assert found.value == value
    assert found.interval is None
    assert found.why.startswith(why)
    assert f"no interval: {why}" in str(found)


def test_without_a_value_there_is_no_interval_either():
    found = estimate(None, 0.0, 100, why="only one class occurs")
    assert (found.value, found.interval, str(found)) == (None, None, "only one class occurs")


def test_an_interval_keeps_within_the_ends():
    low, high = estimate(0.99, 0.02, 20).interval or (0.0, 0.0)
    assert 0 < low < 0.99 < high < 1
    assert 0.99 - low > high - 0.99, "it is lopsided near an end"


def held(found: Estimate, truth: float) -> bool | None:
    return None if found.low is None or found.high is None else found.low <= truth <= found.high


def covered(told: list[bool | None]) -> float:
    known = [one for one in told if one is not None]
    assert len(known) > 0.97 * len(told), "an interval is missing now and then, and not often"
    return float(np.mean(known))


@pytest.mark.extra
@pytest.mark.parametrize(
    ("positives", "others", "apart"), [(15, 60, 1.2), (40, 40, 1.2), (100, 300, 2.0)]
)
def test_intervals_of_the_area_hold_the_truth_19_times_of_20(positives, others, apart):
    """Normal scores, whose area is known: Phi(apart / sqrt 2)."""
    from scipy.stats import norm

    truth, rng, told = float(norm.cdf(apart / np.sqrt(2))), np.random.default_rng(positives), []
    side = np.arange(positives + others) < positives
    for seed in range(EXPERIMENTS):
        ordered = Ordered.of(rng.normal(size=len(side)) + apart * side, side)
        drawn = resampled(ordered.areas, len(side), 400, seed)
        told.append(
            held(estimate(ordered.area(), float(np.nanstd(drawn)), min(positives, others)), truth)
        )
    assert 0.93 <= covered(told) <= 0.97


@pytest.mark.extra
@pytest.mark.parametrize("images", [12, 30, 100])
def test_intervals_of_dice_hold_the_truth_19_times_of_20(images):
    """Images of unlike size and unlike difficulty."""

    def drawn(rng, count):
        true = rng.gamma(4, 300, count)
        found = true * rng.beta(8, 2, count)
        return np.stack([found, found + true * rng.gamma(2, 0.1, count), true], axis=1)

    def counts(rng, count):
        second = drawn(rng, count).round().astype(np.int64)
        rest = 10_000 - second
        first = np.stack(
            [10_000 - second[:, 1] - second[:, 2] + second[:, 0], rest[:, 1], rest[:, 2]], axis=1
        )
        return np.stack([first, second], axis=1)

    many = drawn(np.random.default_rng(99), 2_000_000).sum(0)
    truth, rng, told = (
        float(2 * many[0] / (many[1] + many[2])),
        np.random.default_rng(images + 1),
        [],
    )
    for _ in range(EXPERIMENTS):
        of_images = counts(rng, images)
        hits, said, true = of_images[:, 1].T.astype(float)
        found = SegmentationScores(
            ("a", "b"), np.ones((2, 2), dtype=np.int64), of_images, None, images
        )
        weights = np.concatenate(list(draws(images, 400)))
        values = 2 * (weights @ hits) / (weights @ (said + true))
        one = estimate(found.scores.mean_dice, float(values.std()), images)
        told.append(held(one, truth))
    assert 0.93 <= covered(told) <= 0.97


@pytest.mark.extra
@pytest.mark.parametrize("images", [20, 60])
def test_intervals_of_average_precision_hold_the_truth_19_times_of_20(images):
    """Objects found with a chance that differs from image to image, and false answers among them.

    The truth is the mean over many sets.
    """
    recalls = np.linspace(0, 1, 101)

    def made(rng, count):
        objects = rng.integers(1, 8, count)
        chance = rng.beta(6, 3, count)
        found, false = rng.binomial(objects, chance), rng.poisson(1.5, count)
        image = np.concatenate([
            np.repeat(np.arange(count), found),
            np.repeat(np.arange(count), false),
        ])
        right = np.arange(len(image)) < found.sum()
        order = np.argsort(-(rng.normal(size=len(image)) + 1.5 * right), kind="stable")
        hit = right[order][None]
        return Matches((ClassMatches(image[order], hit, ~hit, objects),), recalls, count)

    rng = np.random.default_rng(images)
    truth = float(
        np.mean([
            made(rng, images).precision(np.ones(images, dtype=np.int64))[0] for _ in range(5000)
        ])
    )
    told = []
    for seed in range(EXPERIMENTS // 4):
        matches = made(rng, images)
        drawn = np.array([
            matches.precision(row)[0] for block in draws(images, 200, seed) for row in block
        ])
        value = float(matches.precision(np.ones(images, dtype=np.int64))[0])
        told.append(held(estimate(value, float(drawn.std()), images), truth))
    assert 0.93 <= covered(told) <= 0.97
