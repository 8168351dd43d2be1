"""Areas under the ROC curve against scikit-learn's, with ties and with images that count several
times.
"""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from softless.evaluation.areas import Ordered, area_of
from softless.evaluation.spread import draws


def sample(n: int, seed: int, levels: int | None = None):
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.3
    positive[:2] = True, False
    scores = rng.normal(size=n) + positive
    return (scores if levels is None else np.round(scores * levels) / levels), positive


@pytest.mark.parametrize("levels", [None, 100, 2, 1])
@pytest.mark.parametrize("n", [2, 5, 60, 1000])
def test_the_area_is_scikit_learn_s(n, levels):
    scores, positive = sample(n, n, levels)
    ordered = Ordered.of(scores, positive)
    assert ordered.area() == pytest.approx(roc_auc_score(positive, scores), abs=1e-9)
    weights = np.concatenate(list(draws(n, 20, seed=3)))
    for weight, area in zip(weights, ordered.areas(weights), strict=True):
        if min(weight[positive].sum(), weight[~positive].sum()) == 0:
            assert np.isnan(area)
        else:
            repeated = np.repeat(np.arange(n), weight)
            assert area == pytest.approx(
                roc_auc_score(positive[repeated], scores[repeated]), abs=1e-9
            )


def test_equal_scores_say_nothing():
    assert Ordered.of(np.zeros(9), np.arange(9) < 4).area() == 0.5


@pytest.mark.parametrize("side", [True, False])
def test_one_side_alone_has_no_area(side):
    assert Ordered.of(np.arange(4.0), np.full(4, side)).area() is None
    assert np.isnan(Ordered.of(np.arange(4.0), np.full(4, side)).areas(np.ones((1, 4)))[0])


@pytest.mark.parametrize("levels", [None, 3])
def test_what_an_image_adds_gives_delong_s_variance(levels):
    scores, positive = sample(400, 1, levels)
    ordered = Ordered.of(scores, positive)
    pairs = scores[positive][:, None] - scores[~positive][None]
    right = (pairs > 0) + 0.5 * (pairs == 0)  # the definition, every pair by itself
    variance = right.mean(1).var() / positive.sum() + right.mean(0).var() / (~positive).sum()
    moved = ordered.influence()
    assert (moved**2).sum() / 400**2 == pytest.approx(variance, rel=1e-9)
    assert moved.sum() == pytest.approx(0, abs=1e-9)
    drawn = np.concatenate([ordered.areas(block) for block in draws(400)])
    assert drawn.std() == pytest.approx(np.sqrt(variance), rel=0.06), "and the draws agree with it"


@pytest.mark.parametrize("levels", [None, 100, 1, 1e8, 1e9])
@pytest.mark.parametrize("n", [2, 5, 60, 1000])
def test_one_sort_of_rounded_scores_gives_the_same_area(n, levels):
    """With 1e8 and more levels a unit, scores differ that float32 cannot tell apart."""
    scores, positive = sample(n, n, levels)
    for one in (scores, 1 + scores * 1e-8):
        assert area_of(one, np.flatnonzero(positive)) == Ordered.of(one, positive).area()
    assert area_of(scores, np.arange(0)) is None
    assert area_of(scores, np.arange(n)) is None
