"""Metrics against scikit-learn, on friendly and unfriendly sets."""

import tracemalloc
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    balanced_accuracy_score,
    brier_score_loss,
    confusion_matrix,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
    top_k_accuracy_score,
)

from softless.errors import DivergedError
from softless.evaluation import measure
from softless.evaluation.metrics import BINS, calibration


def draw(n=400, classes=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (n,), generator=generator)
    logits = torch.randn(n, classes, generator=generator) + 1.5 * torch.nn.functional.one_hot(
        targets, classes
    )
    return logits, targets


@pytest.mark.parametrize("n", [1, 7, 400])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_scikit_learn_agrees(classes, n):
    logits, targets = draw(n, classes)
    m = measure(logits, targets)
    p, y, said, labels = (
        logits.double().softmax(1).numpy(),
        targets.numpy(),
        logits.argmax(1).numpy(),
        range(classes),
    )
    exact: dict[str, Any] = {"abs": 1e-9, "rel": 0}
    assert m.top1 == pytest.approx((said == y).mean(), **exact)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of what does not occur
        assert m.balanced_accuracy == pytest.approx(balanced_accuracy_score(y, said), **exact)
        wanted = [
            score(y, said, labels=labels, average=None, zero_division=np.nan)
            for score in (recall_score, precision_score)
        ]
    for ours, theirs in zip((m.recall, m.precision), wanted, strict=True):
        assert [np.nan if one is None else one for one in ours] == pytest.approx(
            theirs, nan_ok=True, **exact
        )
    assert np.array_equal(m.confusion, confusion_matrix(y, said, labels=labels))
    assert m.loss == pytest.approx(log_loss(y, p, labels=labels), **exact)
    areas = [roc_auc_score(y == c, p[:, c]) if 0 < (y == c).sum() < n else None for c in labels]
    assert list(m.class_auc) == [
        None if area is None else pytest.approx(area, **exact) for area in areas
    ]
    known = [area for area in areas if area is not None]
    assert m.auc == (pytest.approx(np.mean(known), **exact) if known else None)
    hot = np.eye(classes)[y]
    assert m.brier == pytest.approx(
        brier_score_loss(y, p[:, 1]) if classes == 2 else ((p - hot) ** 2).sum(1).mean(), **exact
    )
    assert (m.commonest, m.chance) == (np.bincount(y).max() / n, 1 / classes)
    if classes > 5:
        assert m.top5 == pytest.approx(top_k_accuracy_score(y, p, k=5, labels=labels), **exact)
    else:
        assert m.top5 is None


@pytest.mark.parametrize("classes", [2, 5])
def test_the_calibration_curve_is_scikit_learn_s(classes):
    logits, targets = draw(500, classes)
    p, y = logits.double().softmax(1).numpy(), targets.numpy()
    sure, true = (p[:, 1], y == 1) if classes == 2 else (p.max(1), p.argmax(1) == y)
    found = measure(logits, targets).calibration
    right, told = calibration_curve(true, sure, n_bins=BINS)
    held = found.counts > 0
    assert found.right[held] == pytest.approx(right, abs=1e-9)
    assert found.sure[held] == pytest.approx(told, abs=1e-9)
    assert np.isnan(found.sure[~held]).all()
    assert found.counts.sum() == 500
    assert found.error == pytest.approx(
        (np.abs(right - told) * found.counts[held]).sum() / 500, abs=1e-9
    )


def test_a_probability_between_two_bins_is_in_the_lower():
    found = calibration(np.array([0.0, 0.1, 0.5, 1.0]), np.array([True, False, True, True]))
    assert found.counts.tolist() == [2, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    assert found.error == pytest.approx((abs(1 - 0.1) + abs(1 - 0.5) + 0) / 4)


def test_equal_logits_are_answered_in_the_order_of_the_classes():
    """Top-5 takes the first five, as the answer is the first."""
    m = measure(torch.zeros(8, 8), torch.arange(8))
    assert (m.top1, m.top5) == (1 / 8, 5 / 8)


def test_many_images_and_classes_take_no_table_beside_the_logits():
    logits, targets = draw(6000, 500)
    tracemalloc.start()
    m = measure(logits, targets)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 90e6, (
        "four blocks of 16 MB; a table in float64 has 24 MB, and a softmax takes three of them "
        "with the logits"
    )
    assert len(m.class_auc) == 500


def test_imbalance_shows_in_balanced_accuracy():
    targets = torch.tensor([0] * 95 + [1] * 5)
    m = measure(torch.tensor([[1.0, 0.0]]).repeat(100, 1), targets)
    assert (m.top1, m.balanced_accuracy) == pytest.approx((0.95, 0.5))
    assert m.auc == pytest.approx(0.5)


def test_a_class_that_does_not_occur_is_left_out():
    logits, targets = draw(classes=4)
    kept = targets != 2
    logits, targets = logits[kept], targets[kept]
    m = measure(logits, targets)
    recalls = [(logits[targets == c].argmax(1) == c).float().mean().item() for c in (0, 1, 3)]
    assert m.balanced_accuracy == pytest.approx(np.mean(recalls), abs=1e-6)
    p = logits.double().softmax(1)
    assert m.auc == pytest.approx(
        np.mean([roc_auc_score(targets == c, p[:, c]) for c in (0, 1, 3)]), abs=1e-6
    )


def test_one_class_alone_has_no_auc():
    assert measure(torch.randn(5, 3), torch.ones(5, dtype=torch.int64)).auc is None


def test_auc_is_exact_for_sure_models():
    """Probabilities that round to 1 still have an order."""
    for start in (18, 40):  # in float32, and in float64
        margins = torch.linspace(start, start + 4, 50).double()
        logits = torch.stack([margins, torch.zeros(50)], 1)
        targets = (margins < start + 2).long()
        assert measure(logits, targets).auc == 1.0
    assert roc_auc_score(1 - targets, logits.softmax(1)[:, 0]) < 0.9, "or the test says nothing"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_accuracy_of_what_is_not_finite(bad):
    logits, targets = draw(20)
    logits[3, 1] = logits[7, 0] = bad
    with pytest.raises(DivergedError, match="not finite for 2 of 20 images"):
        measure(logits, targets)
