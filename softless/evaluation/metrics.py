"""What a classifier's logits are worth: accuracies, area under the curve, confusion. Counted by torchmetrics."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from softless.errors import DivergedError, need


@dataclass(frozen=True)
class Metrics:
    """Measures of n images in K classes."""

    loss: float  # mean cross-entropy, without label smoothing and class weights
    top1: float
    top5: float | None  # None up to five classes, where it is always 1
    balanced_accuracy: float  # mean recall of the classes that occur
    auc: float | None  # one class against the rest, mean over the classes that occur; None if only one occurs
    confusion: np.ndarray  # (K, K) int64: row truth, column prediction


def measure(logits: Tensor, targets: Tensor) -> Metrics:
    """Measure logits (n, K) against targets (n,).

    Raises:
        DivergedError: some logits are not finite; no accuracy of them means anything.
    """
    need("torchmetrics")
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix

    classes = logits.shape[1]
    logits, targets = logits.double().cpu(), targets.long().cpu()
    bad = int((~logits.isfinite()).any(1).sum())
    if bad:
        raise DivergedError(f"the model's output is not finite for {bad} of {len(logits)} images: its weights diverged")
    confusion = multiclass_confusion_matrix(logits.argmax(1), targets, classes)
    right, support = confusion.diag().double(), confusion.sum(1)
    top5 = multiclass_accuracy(logits, targets, classes, average="micro", top_k=5).item() if classes > 5 else None
    return Metrics(
        loss=F.cross_entropy(logits, targets).item(),
        top1=(right.sum() / len(targets)).item(),
        top5=top5,
        balanced_accuracy=(right / support)[support > 0].mean().item(),
        auc=macro_auc(logits.softmax(1), targets),
        confusion=confusion.numpy(),
    )


def macro_auc(probabilities: Tensor, targets: Tensor) -> float | None:
    """Mean area under the ROC curve of each class against the rest, over the classes that occur; exact, no bins.

    torchmetrics' own mean counts a class that does not occur as 0 and warns; here it is left out.
    """
    from torchmetrics.functional.classification import binary_auroc

    present = targets.unique().tolist()
    if len(present) < 2:
        return None
    areas = [binary_auroc(probabilities[:, label], (targets == label).long()) for label in present]
    return torch.stack(areas).mean().item()
