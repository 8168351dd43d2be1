"""Losses and measures at their ends (D24): huge logits, one class, nothing that counts; finite, and
with finite gradients.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from softless.evaluation.metrics import measure
from softless.tasks.classification.task import Classification
from softless.tasks.segmentation.samples import IGNORE
from softless.tasks.segmentation.task import PixelLoss

LOGITS = {
    "large": torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]]),
    "equal": torch.zeros(2, 3),
    "half": torch.tensor([[6e4, -6e4, 0.0], [-6e4, 6e4, 6e4]]).half(),
}


def finite(value: Tensor, *leaves: Tensor) -> bool:
    value.backward()
    return bool(value.isfinite()) and all(
        leaf.grad is not None and bool(leaf.grad.isfinite().all()) for leaf in leaves
    )


@pytest.mark.bar("D24", "losses of huge logits, one class, nothing that counts: finite")
@pytest.mark.parametrize("logits", LOGITS.values(), ids=list(LOGITS))
@pytest.mark.parametrize(
    "targets", [torch.eye(3)[:2], torch.full((2, 3), 1 / 3), torch.eye(3)[[1, 0]]], ids=str
)
def test_the_classifiers_loss(logits: Tensor, targets: Tensor) -> None:
    task: Any = SimpleNamespace(weight=None)
    leaf = logits.clone().requires_grad_()
    assert finite(Classification.loss(task, leaf, targets), leaf)


@pytest.mark.bar("D24", "losses of huge logits, one class, nothing that counts: finite")
@pytest.mark.parametrize("dice", [0.0, 1.0])
@pytest.mark.parametrize("scale", [0.0, 1e4])
@pytest.mark.parametrize(
    "labels", [0, 2, IGNORE, None], ids=["first class", "last class", "all ignored", "mixed"]
)
def test_the_segmenters_loss(dice: float, scale: float, labels: int | None) -> None:
    if dice:
        pytest.importorskip("segmentation_models_pytorch")
    leaf = (torch.randn(3, 6, 5) * scale).requires_grad_()
    truth = torch.randint(0, 3, (6, 5)) if labels is None else torch.full((6, 5), labels)
    value = PixelLoss(torch.tensor([0.5, 1.0, 2.0]), dice)(leaf, truth.to(torch.uint8))
    if labels == IGNORE:
        assert value.item() == 0
    assert finite(value, leaf)


@pytest.mark.bar("D24", "losses of huge logits, one class, nothing that counts: finite")
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_dinos_loss(scale: float) -> None:
    pytest.importorskip("lightly")
    from lightly.loss import DINOLoss

    loss = DINOLoss(8, student_temp=0.1, center_momentum=0.9)
    leaf = (torch.randn(2, 2, 8) * scale).requires_grad_()
    teacher = torch.randn(2, 2, 8) * scale
    assert finite(loss(list(teacher), list(leaf), teacher_temp=0.04), leaf)


@pytest.mark.bar("D24", "losses of huge logits, one class, nothing that counts: finite")
def test_measures_of_one_class() -> None:
    for scale in (0.0, 1e4):
        found = measure(torch.randn(4, 3) * scale, torch.ones(4, dtype=torch.int64))
        assert np.isfinite([found.loss, found.top1, found.balanced_accuracy]).all()
        assert found.auc is None
