"""Running a model over a labelled set and measuring what comes out."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from softless import ranks
from softless.data.loader import EpochLoader
from softless.data.progress import track
from softless.data.samples import Samples
from softless.errors import UsageError, unknown
from softless.evaluation.details import Details, Operating, details, operating, youden
from softless.evaluation.intervals import wilson
from softless.evaluation.metrics import Calibration, Metrics, measure, second_class
from softless.evaluation.run import LoadedRun
from softless.evaluation.spread import Estimate
from softless.models.durable import write_stream
from softless.modes import evaluating
from softless.words import counted, visible

PREDICTIONS = "predictions.npz"
AMP = {"none": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def write_answers(folder: Path, samples: Samples, logits: np.ndarray, targets: np.ndarray) -> None:
    """Write predictions.npz: logits (n, K), targets (n,) or (n, K), and the samples' names."""
    names = np.array([samples.name(index) for index in range(len(samples))])
    write_stream(
        folder / PREDICTIONS,
        lambda file: np.savez(file, logits=logits, targets=targets, names=names),
    )


@dataclass(frozen=True)
class Evaluation:
    """The outcome on one split: measures, and the logits (n, K) float32 and targets (n,) they came
    from, in order.
    """

    metrics: Metrics
    seen: int
    expected: int
    interval: tuple[float, float]  # Wilson's 95 % interval of top1
    logits: np.ndarray
    targets: np.ndarray
    classes: tuple[str, ...]
    threshold: float | None = None  # of the second of two classes, as validation chose it

    @property
    def correct(self) -> np.ndarray:
        """(n,) bool: which images were classified rightly."""
        return self.logits.argmax(1) == self.targets

    @cached_property
    def details(self) -> Details:
        """Each class, and the intervals: some seconds on many images."""
        return details(self.metrics, self.logits, self.targets, self.classes)

    @property
    def operating(self) -> Operating | None:
        """Sensitivity and specificity at the threshold."""
        if self.threshold is None or len(self.classes) != 2:
            return None
        return operating(self.logits, self.targets, self.classes, self.threshold)

    def summary(self) -> dict[str, Any]:
        """What a log keeps of an epoch; of two classes with the threshold that these images would
        choose.
        """
        m = self.metrics
        chosen = (
            {"threshold": youden(second_class(self.logits), self.targets == 1)}
            if len(self.classes) == 2
            else {}
        )
        return {
            "loss": m.loss,
            "top1": m.top1,
            "balanced_accuracy": m.balanced_accuracy,
            "auc": m.auc,
            "commonest": m.commonest,
            "chance": m.chance,
            **chosen,
            "seen": self.seen,
            "expected": self.expected,
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything but the logits, as plain numbers, lists and texts.

        `reasons` says of what there is no interval, or no value, and why.
        """
        m, overall, of_class = self.metrics, self.details.overall, self.details.of_class
        named = {
            name: dict(zip(self.classes, estimates, strict=True))
            for name, estimates in of_class.items()
        }
        reasons = {name: estimate.why for name, estimate in overall.items() if estimate.why}
        reasons |= {
            f"{name} of {label}": estimate.why
            for name, estimates in named.items()
            for label, estimate in estimates.items()
            if estimate.why
        }
        return {
            **{name: value for name, value in self.summary().items() if name != "threshold"},
            "top5": m.top5,
            "brier": m.brier,
            "ece": m.calibration.error,
            "interval": list(self.interval),
            "intervals": {name: estimate.interval for name, estimate in overall.items()},
            "classes": list(self.classes),
            "images": dict(zip(self.classes, m.confusion.sum(1).tolist(), strict=True)),
            "per_class": {
                name: {label: estimate.value for label, estimate in estimates.items()}
                for name, estimates in named.items()
            },
            "class_intervals": {
                name: {label: estimate.interval for label, estimate in estimates.items()}
                for name, estimates in named.items()
            },
            "at_threshold": None if self.operating is None else self.operating.to_dict(),
            "calibration": _curve(m.calibration),
            "reasons": reasons,
            "confusion": m.confusion.tolist(),
        }

    def write(self, folder: Path, samples: Samples) -> None:
        """predictions.npz: logits, targets and the samples' names."""
        write_answers(folder, samples, self.logits, self.targets)

    def __str__(self) -> str:
        m, (low, high), overall = self.metrics, self.interval, self.details.overall
        commonest = self.classes[int(m.confusion.sum(1).argmax())]
        two = f"of {self.classes[1]}" if len(self.classes) == 2 else "one against rest"
        rows = [
            ("images", f"{self.seen} of {self.expected}"),
            ("top-1 accuracy", f"{m.top1:.4f}  (95 % interval {low:.4f} to {high:.4f})"),
            ("always the commonest", f"{m.commonest:.4f}  ({commonest})"),
            ("chance", f"{m.chance:.4f}  ({counted(len(self.classes), 'class', 'classes')})"),
            *([] if m.top5 is None else [("top-5 accuracy", f"{m.top5:.4f}")]),
            ("balanced accuracy", str(overall["balanced_accuracy"])),
            (f"AUC {two}", str(overall["auc"])),
            *_at(self.operating),
            ("Brier score", f"{m.brier:.4f}"),
            ("calibration error", f"{m.calibration.error:.4f}"),
            ("cross-entropy", f"{m.loss:.4f}"),
        ]
        width = max(22, *(len(visible(name)) for name, _ in rows))
        return "\n".join(f"{visible(name):<{width}} {visible(value)}" for name, value in rows)

    def by_class(self) -> str:
        """Precision, recall and AUC of each class with their intervals, as a table."""
        estimates = self.details.of_class
        names = [visible(name) for name in self.classes]
        width = max(5, *map(len, names))
        heads = {"precision": "precision", "recall": "recall", "auc": "AUC"}
        lines = [
            f"{'class':<{width}}  images  "
            + "  ".join(f"{head:<24}" for head in heads.values()).rstrip()
        ]
        for index, (name, images) in enumerate(
            zip(names, self.metrics.confusion.sum(1).tolist(), strict=True)
        ):
            cells = [f"{_short(estimates[measure][index]):<24}" for measure in heads]
            lines.append(f"{name:<{width}}  {images:>6}  {'  '.join(cells)}".rstrip())
        return "\n".join(lines)


def _short(estimate: Estimate) -> str:
    """An estimate in a cell."""
    if estimate.value is None:
        return "n/a"
    return f"{estimate.value:.4f}" + (
        "" if estimate.interval is None else f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    )


def _at(point: Operating | None) -> list[tuple[str, str]]:
    """The lines of a threshold."""
    if point is None:
        return []
    return [
        (
            "threshold",
            (
                f"{point.threshold:.4f}  ({point.positive} from this probability on, chosen on "
                "validation images)"
            ),
        ),
        ("sensitivity", str(point.sensitivity)),
        ("specificity", str(point.specificity)),
    ]


def _curve(curve: Calibration) -> dict[str, Any]:
    """A calibration curve as JSON holds it, null where a bin has no image."""
    lists = {"sure": curve.sure, "right": curve.right}
    return {
        "counts": curve.counts.tolist(),
        **{
            name: [None if np.isnan(value) else float(value) for value in values]
            for name, values in lists.items()
        },
    }


def evaluate(
    run_or_model: LoadedRun | nn.Module,
    loader: EpochLoader,
    classes: Sequence[str] | None = None,
    *,
    device: str | torch.device | None = None,
    amp: str = "none",
    label: str = "evaluating",
) -> Evaluation:
    """Measure a model on what an `eval_loader` yields. The model is left in the mode (training or
    not) it was in.

    Under torch.distributed, with a loader that yields each rank its part, all ranks get the result
    of the whole.

    Args:
        run_or_model: images (B, C, H, W) to logits (B, K).
        loader: yields images (B, C, H, W) and class indices (B,).
        classes: names in index order; a loaded run knows its own.
        device: where to compute; None is where the model lies.
        amp: "none", "bfloat16" or "float16" (torch.autocast).
        label: of the progress line.

    Raises:
        UsageError: no class names, or others than the model has logits for.
        DivergedError: some logits are not finite.
    """
    model = run_or_model.model if isinstance(run_or_model, LoadedRun) else run_or_model
    names = tuple(classes) if classes is not None else getattr(run_or_model, "classes", None)
    if names is None:
        raise UsageError(
            "evaluate needs the class names of a bare model: pass classes=splits.classes"
        )
    compute_device = torch.device(device) if device is not None else next(model.parameters()).device
    logits, targets = forward_all(model, loader, len(loader.positions), compute_device, amp, label)
    logits, targets = gathered(loader, logits, targets)
    if logits.shape[1] != len(names):
        raise UsageError(
            f"the model gives {logits.shape[1]} logits and there are {len(names)} classes: they "
            "must agree"
        )
    return evaluated(logits.numpy(), targets.numpy(), names, expected=len(loader.dataset))  # type: ignore[arg-type]


def evaluated(
    logits: np.ndarray,
    targets: np.ndarray,
    classes: tuple[str, ...],
    *,
    expected: int | None = None,
    threshold: float | None = None,
) -> Evaluation:
    """Measure answers that are at hand.

    Args:
        logits: (n, K) float32.
        targets: (n,) class indices.
        classes: names in index order.
        expected: how many images there are, where some may be missing.
        threshold: of the second of two classes, as validation chose it.

    Raises:
        DivergedError: some logits are not finite.
    """
    metrics = measure(torch.from_numpy(logits), torch.from_numpy(targets))
    correct, images = int(np.trace(metrics.confusion)), len(targets)
    expected_images = images if expected is None else expected
    return Evaluation(
        metrics,
        images,
        expected_images,
        wilson(correct, images),
        logits,
        targets,
        classes,
        threshold,
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
    """Logits (n, K) float32 and targets (n,) of all batches, on the processor.

    Further axes of outputs and targets are kept: features are (n, D), targets of several labels
    (n, K). Without a batch both are empty.

    Args:
        model: images (B, C, H, W) to outputs (B, K); left in the mode it was in.
        batches: of images (B, C, H, W) and targets (B,).
        total: how many images there are at most; n is how many came.
        device: where to compute.
        amp: "none", "bfloat16" or "float16".
        label: of the progress line.
    """
    logits = targets = None
    done = 0
    with evaluating(model):
        for images, truth in track(batches, total, label, size=lambda batch: len(batch[1])):
            with autocast(device, amp):
                output = model(images.to(device, non_blocking=True))
            # parts that are joined at the end would take the room twice
            if logits is None or targets is None:
                logits = torch.empty(total, *output.shape[1:])
                targets = torch.empty(total, *truth.shape[1:], dtype=truth.dtype)
            logits[done : done + len(truth)], targets[done : done + len(truth)] = (
                output.float(),
                truth,
            )
            done += len(truth)
    if logits is None or targets is None:
        return torch.empty(0, 0), torch.empty(0, dtype=torch.int64)
    return logits[:done], targets[:done]


def autocast(device: torch.device, amp: str) -> Any:
    """torch.autocast for a recipe's `amp`, or nothing for "none"."""
    dtype = AMP[amp]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def chosen_amp(amp: str | None, run: LoadedRun) -> str:
    """What a verb computes in: what is asked for, or what the run was trained and tested in, so
    that all give one answer.

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
    """All ranks' parts in the order of the data set; a loader that ranks do not share has nothing
    to gather.

    Args:
        loader: whose positions the rows have in the data set.
        logits: (n_r, K) of this rank, or features (n_r, D).
        targets: (n_r,) or (n_r, K).

    Returns:
        Both with the rows of all ranks, (n, K) and (n,) or (n, K).
    """
    if loader.rounds is None:
        return logits, targets
    parts = ranks.gather((np.asarray(loader.positions), logits, targets))
    order = torch.from_numpy(np.concatenate([positions for positions, _, _ in parts])).argsort()
    filled = [part for part in parts if len(part[0])]
    return torch.cat([part[1] for part in filled])[order], torch.cat([part[2] for part in filled])[
        order
    ]
