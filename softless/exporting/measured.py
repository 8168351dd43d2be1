"""What an exported file answers, beside the model that it was made of."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from softless.data.loader import eval_loader
from softless.data.progress import track
from softless.data.samples import Samples
from softless.data.transforms import Pipeline
from softless.evaluation.intervals import Interval, paired_bootstrap, wilson
from softless.modes import evaluating

LEAST_AGREEMENT = 0.97  # of the answers of a file in eight bits
LARGEST_DROP = 0.01  # of its accuracy: what the paired interval must not lie below
AT_ONCE = 64  # images
ROUNDING = 1e-5  # of the largest logit: whose classes are as near answer alike


@dataclass(frozen=True)
class Parity:
    """The answers of a file beside the model's on the same prepared images."""

    images: int
    difference: float  # the largest of any answer, relative to the largest answer
    same: int  # images whose largest logit is the same

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Measured:
    """What a file is worth on test images, beside the model."""

    images: int
    metric: str  # top1, or the measure of another task
    value: float  # of the file
    plain: float  # of the model
    interval: tuple[float, float] | None  # of the file's value
    drop: Interval | None  # file less model, paired over the images
    agreement: float | None  # share of the images that both answer alike
    difference: float | None  # |file - model| over |model|, of all logits
    least: float = 1.0  # of agreement, where the file is in float32
    # (n,) of the file and of the model: whether it got each image right, in order
    right: tuple[np.ndarray, np.ndarray] | None = field(default=None, repr=False, compare=False)

    def faults(self, *, eight_bits: bool) -> list[str]:
        """Why the file must not be used, as sentences; files in eight bits have room to differ."""
        sentences = []
        least = LEAST_AGREEMENT if eight_bits else self.least
        if self.difference is not None and not math.isfinite(self.difference):
            sentences.append("some of its answers are no numbers")
        if self.agreement is not None and self.agreement < least:
            sentences.append(
                f"it answers {self.agreement:.1%} of {self.images} test images as the model does, "
                f"and {least:.0%} is the least"
            )
        if self.drop is not None and self.drop.high < -LARGEST_DROP:
            sentences.append(
                f"its accuracy is {-100 * self.drop.high:.1f} to {-100 * self.drop.low:.1f} points "
                f"below the model's (95 % interval), and {100 * LARGEST_DROP:.0f} is the most"
            )
        return sentences

    def doubts(self) -> list[str]:
        """What these images are too few to rule out, as sentences."""
        if self.drop is None or not self.drop.low < -LARGEST_DROP <= self.drop.high:
            return []
        sentence = (
            f"{self.images} test images leave open whether its accuracy is up to "
            f"{-100 * self.drop.low:.1f} points below the model's (95 % interval)"
        )
        return [sentence]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        content = {name: value for name, value in asdict(self).items() if name != "right"}
        return content | {"drop": None if self.drop is None else list(self.drop)}


def parity(
    answer: Callable[[Tensor], tuple[Tensor, ...]],
    model: nn.Module,
    images: Tensor,
    same_images: Tensor | None = None,
) -> Parity:
    """Compare all outputs of a file and a module.

    Args:
        answer: the file: images (B, C, H, W) -> its outputs.
        model: the module that it was made of.
        images: (B, C, H, W), prepared for the module.
        same_images: the same images as the file takes them, where that is otherwise.
    """
    with evaluating(model), torch.no_grad():
        expected = model(images)
    expected = (expected,) if isinstance(expected, Tensor) else tuple(expected)
    answers = answer(images if same_images is None else same_images)
    worst = 0.0
    for one, other in zip(answers, expected, strict=True):
        size = float(other.abs().max().clamp_min(torch.finfo(torch.float32).tiny))
        apart = float((one.reshape(other.shape) - other).abs().max()) / size
        # a difference that is no number is the largest there is
        worst = max(worst, apart if apart == apart else float("inf"))  # noqa: PLR0124
    same = int((answers[0].flatten(1).argmax(1) == expected[0].flatten(1).argmax(1)).sum())
    return Parity(len(images), worst, same)


def measured(
    answer: nn.Module,
    model: nn.Module,
    samples: Samples,
    *,
    prepared: Pipeline,
    same_prepared: Pipeline,
    several: bool,
    threshold: float = 0.5,
) -> Measured:
    """Measure a classifier's file and its model on labelled images.

    Args:
        answer: the file, images (B, C, H, W) -> logits (B, K).
        model: the module that it was made of.
        samples: images with labels.
        prepared: how the module takes an image.
        same_prepared: how the file takes it.
        several: an image has several labels.
        threshold: of the probability of each of several labels.
    """
    of_model, targets = _logits(model, samples, prepared, "measuring the model")
    of_file, _ = _logits(answer, samples, same_prepared, "measuring the file")
    apart = of_file - of_model
    size = float(np.linalg.norm(of_model))
    relative = float(np.linalg.norm(apart)) / max(size, 1e-30)
    if several:
        cut = float(np.log(threshold / (1 - threshold)))
        labels_file, labels_model = of_file > cut, of_model > cut
        right_file, right_model = ((x == (targets > 0)) for x in (labels_file, labels_model))
        same = (labels_file == labels_model).all(1)
        drop = paired_bootstrap(right_file.mean(1), right_model.mean(1))
        values = float(right_file.mean()), float(right_model.mean())
        return Measured(
            len(samples), "label_accuracy", *values, None, drop, float(same.mean()), relative
        )
    answers_file, answers_model = of_file.argmax(1), of_model.argmax(1)
    alike = (answers_file == answers_model) | _as_near(of_model, answers_file)
    right_file, right_model = answers_file == targets, answers_model == targets
    return Measured(
        len(samples),
        "top1",
        float(right_file.mean()),
        float(right_model.mean()),
        wilson(int(right_file.sum()), len(samples)),
        paired_bootstrap(right_file, right_model),
        float(alike.mean()),
        relative,
        right=(right_file, right_model),
    )


def _as_near(logits: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Of each image (n,), whether the model's own logits (n, K) of its class and of the answer
    differ by no more than float32 rounds.
    """
    rows = np.arange(len(logits))
    return logits.max(1) - logits[rows, answers] <= ROUNDING * np.abs(logits).max(1)


def _logits(
    model: nn.Module, samples: Samples, transform: Pipeline, label: str
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n, K) and targets of all images, in order."""
    loader = eval_loader(samples, transform, batch=AT_ONCE, workers=0, keep=False)
    logits, targets = [], []
    with evaluating(model), torch.no_grad():
        for images, labels in track(loader, len(samples), label, size=lambda batch: len(batch[1])):
            logits.append(model(images).float().numpy().copy())
            targets.append(np.asarray(labels))
    return np.concatenate(logits), np.concatenate(targets)


def summary(measurement: Measured | None) -> Mapping[str, Any] | None:
    """What a file says of its own worth."""
    if measurement is None:
        return None
    content = measurement.to_dict()
    kept = ("images", "metric", "value", "interval", "agreement", "drop")
    return {name: content[name] for name in kept}
