"""What a classifier of several labels an image is worth: the area under the ROC curve of each
label, with a bootstrap interval.

    AUC = sum_{i positive, j negative} ([s_i > s_j] + [s_i = s_j] / 2) / (positives * negatives)

The bootstrap draws images with replacement; where images belong to groups (patients), whole
groups, since the images of one are alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softless.data.loader import EpochLoader
from softless.data.samples import Samples
from softless.errors import DivergedError, UsageError
from softless.evaluation.evaluate import forward_all, gathered, write_answers
from softless.evaluation.intervals import Interval
from softless.words import aligned

REPLICATES = 1000
LEVEL = 0.95
_BLOCK = 1_000_000  # numbers of one block of weights


def weighted_auc(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The area under the ROC curve for each row of weights.

    Args:
        scores: (n,) the higher, the likelier.
        truth: (n,) 0 or 1.
        weights: (R, n) how often each image counts.

    Returns:
        (R,); NaN where only positive or only negative images count.
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])  # of runs of equal scores
    ordered, positive = weights[:, order], truth[order] > 0
    hits = np.add.reduceat(ordered * positive, starts, axis=1)
    misses = np.add.reduceat(ordered * ~positive, starts, axis=1)
    below = misses.cumsum(1) - misses / 2
    pairs = hits.sum(1) * misses.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        areas: np.ndarray = (hits * below).sum(1) / pairs
    return areas


def resampled(
    count: int, groups: np.ndarray | None, replicates: int, seed: int = 0
) -> "Sequence[np.ndarray] | Any":
    """Blocks (r, n) float64 of how often each image is drawn; images of a group together.

    Args:
        count: n, the images.
        groups: (n,) of each image; None where each stands for itself.
        replicates: rows of all blocks together.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    names = np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1]
    total = int(names.max()) + 1
    block = max(1, _BLOCK // count)
    for start in range(0, replicates, block):
        drawn = rng.multinomial(total, [1 / total] * total, size=min(block, replicates - start))
        yield drawn[:, names].astype(np.float64)


@dataclass(frozen=True)
class LabelEvaluation:
    """The outcome on one split: logits (n, K) float32 and targets (n, K) of 0 and 1, in order,
    and what follows from them.
    """

    logits: np.ndarray
    targets: np.ndarray
    expected: int
    classes: tuple[str, ...]  # the labels
    threshold: float  # a probability from which a label is said
    groups: np.ndarray | None = None  # (n,)

    @property
    def probabilities(self) -> np.ndarray:
        """(n, K) float64."""
        probabilities = torch.as_tensor(self.logits).double().sigmoid()
        return probabilities.numpy()

    @cached_property
    def loss(self) -> float:
        """Mean binary cross-entropy, without label smoothing and class weights."""
        logits, targets = (
            torch.as_tensor(self.logits).double(),
            torch.as_tensor(self.targets).double(),
        )
        return float(F.binary_cross_entropy_with_logits(logits, targets))

    @cached_property
    def areas(self) -> tuple[float | None, ...]:
        """AUC of each label; None where all images have it, or none."""
        once = np.ones((1, len(self.targets)))
        areas = [
            weighted_auc(self.logits[:, k], self.targets[:, k], once)[0]
            for k in range(len(self.classes))
        ]
        return tuple(None if np.isnan(area) else float(area) for area in areas)

    @property
    def auc(self) -> float | None:
        """The mean over the labels that have an AUC."""
        areas = [area for area in self.areas if area is not None]
        return float(np.mean(areas)) if areas else None

    @cached_property
    def _ends(self) -> tuple[list[tuple[float, float] | None], tuple[float, float] | None]:
        """The ends of each label's interval, and of the mean's."""
        labels = [k for k, area in enumerate(self.areas) if area is not None]
        drawn: list[np.ndarray] = [
            np.stack([weighted_auc(self.logits[:, k], self.targets[:, k], weights) for k in labels])
            for weights in (resampled(len(self.targets), self.groups, REPLICATES) if labels else ())
        ]
        if not drawn:
            return [None] * len(self.classes), None
        areas = np.concatenate(drawn, axis=1)  # (labels, replicates)
        by_label = {k: _percentiles(row) for k, row in zip(labels, areas, strict=True)}
        complete = areas[:, ~np.isnan(areas).any(0)]
        return [by_label.get(k) for k in range(len(self.classes))], _percentiles(
            complete.mean(0)
        ) if complete.size else None

    @property
    def intervals(self) -> tuple[Interval | None, ...]:
        """AUC of each label with the ends of its 95 % interval."""
        return tuple(
            None if area is None or ends is None else Interval(area, *ends)
            for area, ends in zip(self.areas, self._ends[0], strict=True)
        )

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of the mean AUC."""
        return self._ends[1]

    def per_class(self) -> dict[str, dict[str, float | None]]:
        """Measure -> label -> value."""
        predicted, truth = self.probabilities >= self.threshold, self.targets > 0
        intervals = self.intervals
        columns: dict[str, list[float | None]] = {
            "auc": list(self.areas),
            "auc_low": [None if interval is None else interval.low for interval in intervals],
            "auc_high": [None if interval is None else interval.high for interval in intervals],
            "share": truth.mean(0).tolist(),
            "sensitivity": [_share(predicted[:, k], truth[:, k]) for k in range(len(self.classes))],
            "specificity": [
                _share(~predicted[:, k], ~truth[:, k]) for k in range(len(self.classes))
            ],
            "precision": [_share(truth[:, k], predicted[:, k]) for k in range(len(self.classes))],
        }
        return {
            name: dict(zip(self.classes, column, strict=True)) for name, column in columns.items()
        }

    def summary(self) -> dict[str, Any]:
        """What a log keeps of an epoch."""
        return {
            "loss": self.loss,
            "auc": self.auc,
            "seen": len(self.targets),
            "expected": self.expected,
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything but the logits, as plain numbers, lists and texts."""
        return {
            **self.summary(),
            "interval": None if self.interval is None else list(self.interval),
            "classes": list(self.classes),
            "threshold": self.threshold,
            "per_class": self.per_class(),
        }

    def write(self, folder: Path, samples: Samples) -> None:
        """predictions.npz: logits, targets and the samples' names."""
        write_answers(folder, samples, self.logits, self.targets)

    def __str__(self) -> str:
        ends = (
            ""
            if self.interval is None
            else f"  (95 % interval {self.interval[0]:.4f} to {self.interval[1]:.4f})"
        )
        rows = [
            ("images", f"{len(self.targets)} of {self.expected}"),
            (
                "mean AUC",
                "no label has images with and without it"
                if self.auc is None
                else f"{self.auc:.4f}{ends}",
            ),
            ("binary cross-entropy", f"{self.loss:.4f}"),
        ]
        lines = [f"{name:<22} {value}" for name, value in rows]
        measures = self.per_class()
        labels = [
            (
                name,
                "all images have it, or none"
                if interval is None
                else f"{interval}  {_rates(measures, name)}",
            )
            for name, interval in zip(self.classes, self.intervals, strict=True)
        ]
        head = (
            "AUC of each label [95 % interval], and rates from a probability of "
            f"{self.threshold:g} on"
        )
        return "\n".join([*lines, "", head, *aligned(labels)])


def evaluate_labels(
    model: nn.Module,
    loader: EpochLoader,
    classes: Sequence[str],
    *,
    threshold: float = 0.5,
    device: str | torch.device | None = None,
    amp: str = "none",
    label: str = "evaluating",
) -> LabelEvaluation:
    """Measure a model on what an `eval_loader` yields; under torch.distributed all ranks get the
    result of the whole.

    Args:
        model: images (B, C, H, W) to logits (B, K), one for each label.
        loader: yields images (B, C, H, W) and targets (B, K) of 0 and 1.
        classes: the labels in index order.
        threshold: a probability from which a label is said.
        device: where to compute; None is where the model lies.
        amp: "none", "bfloat16" or "float16" (torch.autocast).
        label: of the progress bar.

    Raises:
        UsageError: other numbers of logits or targets than of labels.
        DivergedError: some logits are not finite.
    """
    compute_device = torch.device(device) if device is not None else next(model.parameters()).device
    own_rows = forward_all(model, loader, len(loader.positions), compute_device, amp, label)
    logits, targets = gathered(loader, *own_rows)
    _refuse(logits, targets, classes)
    samples = getattr(loader.dataset, "samples", None)
    return LabelEvaluation(
        logits=logits.numpy(),
        targets=targets.numpy(),
        expected=len(loader.dataset),  # type: ignore[arg-type]
        classes=tuple(classes),
        threshold=threshold,
        groups=getattr(samples, "groups", None) if len(targets) == len(loader.dataset) else None,  # type: ignore[arg-type]
    )


def _refuse(logits: Tensor, targets: Tensor, classes: Sequence[str]) -> None:
    if logits.shape[1] != len(classes) or targets.shape != logits.shape:
        raise UsageError(
            f"the model gives {logits.shape[1]} logits, and there are {len(classes)} labels "
            f"with targets {tuple(targets.shape)}: they must agree"
        )
    bad = int((~logits.isfinite()).any(1).sum())
    if bad:
        raise DivergedError(
            f"the model's output is not finite for {bad} of {len(logits)} images: its weights "
            "diverged"
        )


def _percentiles(areas: np.ndarray) -> tuple[float, float] | None:
    valid = areas[~np.isnan(areas)]
    if not valid.size:
        return None
    low, high = np.quantile(valid, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _share(part: np.ndarray, base: np.ndarray) -> float | None:
    """The share of `base` that is `part` too; None where nothing is in it."""
    return float((part & base).sum() / base.sum()) if base.any() else None


def _rates(measures: dict[str, dict[str, float | None]], name: str) -> str:
    rates = {key: measures[key][name] for key in ("sensitivity", "specificity")}
    return ", ".join(
        f"{key} {'n/a' if value is None else f'{value:.3f}'}" for key, value in rates.items()
    )
