"""Metrics against scikit-learn, on friendly and unfriendly sets."""

import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, log_loss, roc_auc_score, top_k_accuracy_score

from softless.errors import DivergedError, MissingExtra
from softless.evaluation import measure
from softless.evaluation.metrics import macro_auc


def draw(n=400, classes=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (n,), generator=generator)
    logits = torch.randn(n, classes, generator=generator) + 1.5 * torch.nn.functional.one_hot(targets, classes)
    return logits, targets


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_scikit_learn_agrees(classes):
    logits, targets = draw(classes=classes)
    m = measure(logits, targets)
    p, y, said = logits.double().softmax(1).numpy(), targets.numpy(), logits.argmax(1).numpy()
    assert m.top1 == pytest.approx((said == y).mean())
    assert m.balanced_accuracy == pytest.approx(balanced_accuracy_score(y, said))
    assert np.array_equal(m.confusion, confusion_matrix(y, said))
    assert m.loss == pytest.approx(log_loss(y, p))
    areas = [roc_auc_score(y == c, p[:, c]) for c in range(classes)]
    assert m.auc == pytest.approx(np.mean(areas), abs=1e-6)
    if classes > 5:
        assert m.top5 == pytest.approx(top_k_accuracy_score(y, p, k=5))
    else:
        assert m.top5 is None


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
    assert m.auc == pytest.approx(np.mean([roc_auc_score(targets == c, p[:, c]) for c in (0, 1, 3)]), abs=1e-6)


def test_one_class_alone_has_no_auc():
    assert measure(torch.randn(5, 3), torch.ones(5, dtype=torch.int64)).auc is None


def test_auc_is_exact_for_sure_models():
    """Probabilities that float32 rounds to 1 still have an order in float64."""
    margins = torch.linspace(18, 22, 50).double()
    logits = torch.stack([margins, torch.zeros(50)], 1)
    targets = (margins < 20).long()
    assert roc_auc_score(targets, logits.float().softmax(1)[:, 1]) == 1.0  # the rare class keeps its order in float32
    assert macro_auc(logits.softmax(1), targets) == pytest.approx(1, abs=1e-6)
    rounded = macro_auc(logits.float().softmax(1), targets)
    assert rounded is not None
    assert rounded < 0.9  # the likely class does not
    assert measure(logits, targets).auc == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_accuracy_of_what_is_not_finite(bad):
    logits, targets = draw(20)
    logits[3, 1] = logits[7, 0] = bad
    with pytest.raises(DivergedError, match="not finite for 2 of 20 images"):
        measure(logits, targets)


def test_without_torchmetrics(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(MissingExtra, match=r"this needs torchmetrics.*\[train\]"):
        measure(*draw(20))
