"""A classifier between epochs, measured by several ranks: each keeps its own logits, and counts are
summed over the ranks.

For the areas under curves the logits of a few classes at a time are exchanged; each rank sorts some
of them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from softless import ranks
from softless.data.loader import EpochLoader
from softless.errors import UsageError
from softless.evaluation.areas import area_of
from softless.evaluation.details import youden
from softless.evaluation.evaluate import forward_all
from softless.evaluation.metrics import second_class, walked

AT_ONCE = 64  # classes whose logits are exchanged together: 13 MB of 50,000 images


def validate(
    model: nn.Module,
    loader: EpochLoader,
    classes: Sequence[str],
    *,
    amp: str = "none",
    label: str = "validating",
) -> dict[str, Any]:
    """The summary of `evaluate` on what all ranks' loaders yield, without the logits of the whole
    on any rank.

    Args:
        model: images (B, C, H, W) to logits (B, K); left in the mode it was in.
        loader: an `eval_loader` that ranks share; yields images and class indices (B,).
        classes: names in index order.
        amp: "none", "bfloat16" or "float16".
        label: of the progress line.

    Raises:
        UsageError: other classes than the model has logits for.
        DivergedError: logits that are not finite, on any rank.
    """
    device = next(model.parameters()).device
    logits, targets = forward_all(model, loader, len(loader.positions), device, amp, label)
    number = len(classes)
    logits = logits if len(logits) else logits.reshape(0, number)
    if logits.shape[1] != number:
        raise UsageError(
            f"the model gives {logits.shape[1]} logits and there are {number} classes: they must "
            "agree"
        )
    walk = walked(logits, targets)
    truth = targets.numpy()
    support, correct = (
        np.bincount(truth, minlength=number),
        np.bincount(truth[walk.hits], minlength=number),
    )
    support, correct = np.sum(ranks.gather((support, correct)), axis=0)
    sums = np.sum(ranks.gather((walk.bad, walk.log)), axis=0)
    images = int(support.sum())
    replace(walk, bad=int(sums[0])).refuse_bad(images)
    areas = [area for area in _areas(logits, truth, walk.totals) if area is not None]
    summary: dict[str, Any] = {
        "loss": float(-sums[1] / images),
        "top1": float(correct.sum() / images),
        "balanced_accuracy": float((correct[support > 0] / support[support > 0]).mean()),
        "auc": float(np.mean(areas)) if areas else None,
        "commonest": float(support.max() / images),
        "chance": 1 / number,
    }
    if number == 2:
        summary["threshold"] = youden(*_joined(second_class(logits.numpy()), truth == 1))
    return {**summary, "seen": images, "expected": len(loader.dataset)}  # type: ignore[arg-type]


def _joined(*mine: np.ndarray) -> list[np.ndarray]:
    """Arrays (n_r, …) of all ranks one behind the other, rank by rank."""
    return [np.concatenate(parts) for parts in zip(*ranks.gather(mine), strict=True)]


def _areas(logits: Tensor, targets: np.ndarray, totals: np.ndarray) -> list[float | None]:
    """The area of each class, (K,), from logits (n_r, K) of this rank and those of the others."""
    sizes = ranks.gather(len(logits))
    truth, log_totals = _joined(targets, totals)
    order = np.argsort(truth, kind="stable")
    starts = np.searchsorted(truth[order], np.arange(logits.shape[1] + 1))
    mine: list[float | None] = []
    for first in range(0, logits.shape[1], AT_ONCE):
        columns = _columns(logits[:, first : first + AT_ONCE], sizes)
        for column in range(ranks.rank(), columns.shape[1], ranks.size()):
            scores = columns[:, column].astype(np.float64) - log_totals
            mine.append(area_of(scores, order[starts[first + column] : starts[first + column + 1]]))
    return _in_place(ranks.gather(mine), logits.shape[1])


def _in_place(parts: Sequence[Sequence[float | None]], classes: int) -> list[float | None]:
    """What the ranks computed, by class: of each AT_ONCE classes they took turns."""
    areas: list[float | None] = [None] * classes
    for rank, part in enumerate(parts):
        turns = (
            first + column
            for first in range(0, classes, AT_ONCE)
            for column in range(rank, min(AT_ONCE, classes - first), len(parts))
        )
        for label, area in zip(turns, part, strict=True):
            areas[label] = area
    return areas


def _columns(mine: Tensor, sizes: Sequence[int]) -> np.ndarray:
    """(n, k) of all ranks, from this rank's (n_r, k)."""
    if ranks.size() == 1:
        return mine.numpy()
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    padded = torch.zeros(max(sizes), mine.shape[1], device=device)
    padded[: len(mine)] = mine
    parts = [torch.zeros_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return np.concatenate([
        part[:size].cpu().numpy() for part, size in zip(parts, sizes, strict=True)
    ])
