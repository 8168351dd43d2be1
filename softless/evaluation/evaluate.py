"""Running a model over a labelled set and measuring what comes out."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from softless.data.loader import EpochLoader
from softless.data.progress import track
from softless.data.samples import Samples
from softless.errors import UsageError, need, unknown
from softless.evaluation.intervals import wilson
from softless.evaluation.metrics import Metrics, measure
from softless.evaluation.run import LoadedRun
from softless.models.durable import write_stream
from softless.modes import evaluating

PREDICTIONS = "predictions.npz"
AMP = {"none": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Evaluation:
    """The outcome on one split: measures, and the logits (n, K) float32 and targets (n,) they came from, in order."""

    metrics: Metrics
    seen: int
    expected: int
    interval: tuple[float, float]  # Wilson's 95 % interval of top1
    logits: np.ndarray
    targets: np.ndarray
    classes: tuple[str, ...]

    @property
    def correct(self) -> np.ndarray:
        """(n,) bool: which images were classified rightly."""
        return self.logits.argmax(1) == self.targets

    def summary(self) -> dict[str, Any]:
        """What a log keeps of an epoch."""
        m = self.metrics
        return {
            "loss": m.loss,
            "top1": m.top1,
            "balanced_accuracy": m.balanced_accuracy,
            "auc": m.auc,
            "seen": self.seen,
            "expected": self.expected,
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything but the logits, as plain numbers, lists and texts."""
        return {
            **self.summary(),
            "top5": self.metrics.top5,
            "interval": list(self.interval),
            "classes": list(self.classes),
            "confusion": self.metrics.confusion.tolist(),
        }

    def write(self, folder: Path, samples: Samples) -> None:
        """predictions.npz: logits, targets and the samples' names."""
        names = np.array([samples.name(index) for index in range(len(samples))])
        write_stream(
            folder / PREDICTIONS,
            lambda file: np.savez(file, logits=self.logits, targets=self.targets, names=names),
        )

    def __str__(self) -> str:
        m, (low, high) = self.metrics, self.interval
        rows = [
            ("images", f"{self.seen} of {self.expected}"),
            ("top-1 accuracy", f"{m.top1:.4f}  (95 % interval {low:.4f} to {high:.4f})"),
            *([] if m.top5 is None else [("top-5 accuracy", f"{m.top5:.4f}")]),
            ("balanced accuracy", f"{m.balanced_accuracy:.4f}"),
            ("AUC, one against rest", "only one class occurs" if m.auc is None else f"{m.auc:.4f}"),
            ("cross-entropy", f"{m.loss:.4f}"),
        ]
        return "\n".join(f"{name:<22} {value}" for name, value in rows)


def evaluate(
    run_or_model: LoadedRun | nn.Module,
    loader: EpochLoader,
    classes: Sequence[str] | None = None,
    *,
    device: str | torch.device | None = None,
    amp: str = "none",
    label: str = "evaluating",
) -> Evaluation:
    """Measure a model on what an `eval_loader` yields. The model is left in the mode (training or not) it was in.

    Under torch.distributed, with a loader that yields each rank its part, all ranks get the result of the whole.

    Args:
        classes: names in index order; a loaded run knows its own.
        device: where to compute; None is where the model lies.
        amp: "none", "bfloat16" or "float16" (torch.autocast).

    Raises:
        MissingExtra: torchmetrics is not installed; said before the first image.
    """
    need("torchmetrics")
    model = run_or_model.model if isinstance(run_or_model, LoadedRun) else run_or_model
    names = tuple(classes) if classes is not None else getattr(run_or_model, "classes", None)
    if names is None:
        raise UsageError("evaluate needs the class names of a bare model: pass classes=splits.classes")
    place = torch.device(device) if device is not None else next(model.parameters()).device
    logits, targets = forward_all(model, loader, len(loader.positions), place, amp, label)
    logits, targets = gathered(loader, logits, targets)
    if logits.shape[1] != len(names):
        raise UsageError(
            f"the model gives {logits.shape[1]} logits and there are {len(names)} classes: they must agree"
        )
    metrics = measure(logits, targets)
    right = int(np.trace(metrics.confusion))
    return Evaluation(
        metrics=metrics,
        seen=len(targets),
        expected=len(loader.dataset),  # type: ignore[arg-type]
        interval=wilson(right, len(targets)),
        logits=logits.numpy(),
        targets=targets.numpy(),
        classes=names,
    )


@torch.no_grad()
def forward_all(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    total: int,
    device: torch.device,
    amp: str = "none",
    label: str = "evaluating",
) -> tuple[Tensor, Tensor]:
    """Logits (n, K) float32 and targets (n,) of all batches, on the processor."""
    logits, targets = [], []
    with evaluating(model):
        for images, truth in track(batches, total, label, size=lambda batch: len(batch[1])):
            with autocast(device, amp):
                output = model(images.to(device, non_blocking=True))
            logits.append(output.float().cpu())
            targets.append(truth)
    if not logits:
        return torch.empty(0, 0), torch.empty(0, dtype=torch.int64)
    return torch.cat(logits), torch.cat(targets)


def autocast(device: torch.device, amp: str) -> Any:
    """torch.autocast for a recipe's `amp`, or nothing for "none"."""
    dtype = AMP[amp]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def chosen_amp(amp: str | None, run: LoadedRun) -> str:
    """What a verb computes in: what is asked for, or what the run was trained and tested in, so that all give one answer.

    Raises:
        UsageError: no such name.
    """
    if amp is not None and amp not in AMP:
        raise unknown("precision", amp, AMP)
    return run.amp if amp is None else amp


def precision_of(amp: str) -> str:
    """What an output says of it: the type that matrix products are computed in."""
    return "float32" if amp == "none" else amp


def gathered(loader: EpochLoader, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """All ranks' parts in the order of the data set; a loader that yields everything has nothing to gather."""
    alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
    if alone or len(loader.positions) == len(loader.dataset):  # type: ignore[arg-type]
        return logits, targets
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, (list(loader.positions), logits, targets))
    order = torch.tensor([position for positions, _, _ in parts for position in positions]).argsort()
    filled = [part for part in parts if len(part[0])]
    return torch.cat([part[1] for part in filled])[order], torch.cat([part[2] for part in filled])[order]
