"""What label images a model makes are worth: every pixel of every image at its own size, one image
at a time.

With h_c hits, p_c predicted and t_c true pixels of class c, summed over all images,

    IoU_c = h_c / (p_c + t_c - h_c),     Dice_c = 2 h_c / (p_c + t_c)

`miou` is the mean IoU over the classes that occur in truth or prediction. `dice` is the mean Dice
over them; of two classes it is the Dice of the second alone, the foreground. Ignored pixels count
nowhere.
"""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from softless import ranks
from softless.data.loader import EpochLoader
from softless.data.progress import track
from softless.data.samples import Samples
from softless.errors import DivergedError
from softless.evaluation.evaluate import autocast
from softless.evaluation.spread import Estimate, draws, estimate
from softless.models.durable import make_folder, write_bytes, write_text
from softless.modes import evaluating
from softless.tasks.segmentation.samples import IGNORE, LabelImages
from softless.words import visible

FOLDER, SCORES, COUNTS = "predictions", "scores.json", "counts.npz"
HITS, PREDICTED, TRUE = range(3)  # of the last axis of counts


@dataclass(frozen=True)
class SegmentationScores:
    """The outcome on one split."""

    classes: tuple[str, ...]
    confusion: np.ndarray  # (K, K) int64 pixels: row truth, column prediction
    counts: np.ndarray  # (n, K, 3) int64 pixels of each image: hits, predicted, true
    loss: float | None  # mean over the images
    expected: int
    labels: tuple[bytes, ...] = ()  # the predictions as PNG files, in order

    @property
    def seen(self) -> int:
        """Images that were answered."""
        return len(self.counts)

    @property
    def scores(self) -> "Scores":
        """Of the pixels of all images together."""
        return Scores(self.counts.sum(0))

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """The measures with intervals over images: pixels of one image are not independent, so
        images are drawn and not pixels.
        """
        drawn = (
            [
                Scores(counts)
                for block in draws(self.seen)
                for counts in np.tensordot(block, self.counts.astype(np.float64), axes=1)
            ]
            if self.seen
            else []
        )
        return {
            name: _estimated(value, [of[name] for of in map(_whole, drawn)], self.seen)
            for name, value in _whole(self.scores).items()
        }

    @property
    def commonest(self) -> float | None:
        """The pixel accuracy of the commonest class everywhere."""
        true = self.confusion.sum(1)
        return float(true.max() / true.sum()) if true.sum() else None

    def summary(self) -> dict[str, Any]:
        """What a log keeps of an epoch."""
        scores = self.scores
        loss = {} if self.loss is None else {"loss": self.loss}
        measures = {
            "miou": scores.miou,
            "dice": scores.mean_dice,
            "pixel_accuracy": scores.pixel_accuracy,
            "commonest": self.commonest,
            **loss,
        }
        return {**measures, "seen": self.seen, "expected": self.expected}

    def to_dict(self) -> dict[str, Any]:
        """Everything but the predictions."""
        scores = self.scores
        return {
            **self.summary(),
            "classes": list(self.classes),
            "per_class": {"iou": self._by_class(scores.iou), "dice": self._by_class(scores.dice)},
            "intervals": {name: estimate.interval for name, estimate in self.estimates.items()},
            "reasons": {
                name: estimate.why for name, estimate in self.estimates.items() if estimate.why
            },
            "confusion": self.confusion.tolist(),
        }

    def _by_class(self, values: np.ndarray) -> dict[str, float | None]:
        listed = [None if np.isnan(value) else float(value) for value in values]
        return dict(zip(self.classes, listed, strict=True))

    def write(self, folder: Path, samples: Samples) -> None:
        """predictions/NAME.png: label images with the data set's own values; counts.npz and
        scores.json beside them.
        """
        assert isinstance(samples, LabelImages)
        root = folder / FOLDER
        keys = [samples.key(index) for index in range(len(samples))]
        for key, label in zip(keys, self.labels, strict=True):
            path = root / f"{key}.png"
            make_folder(path.parent)
            write_bytes(path, label)
        make_folder(root)
        packed = io.BytesIO()
        np.savez_compressed(packed, counts=self.counts, names=np.array(keys))
        write_bytes(root / COUNTS, packed.getvalue())
        write_text(root / SCORES, json.dumps(self.to_dict(), indent=1))

    def __str__(self) -> str:
        scores, loss = self.scores, self.loss
        rows = [
            ("images", f"{self.seen} of {self.expected}"),
            ("mean IoU", str(self.estimates["miou"])),
            (
                "Dice" if len(self.classes) > 2 else f"Dice of {visible(self.classes[1])}",
                str(self.estimates["dice"]),
            ),
            ("pixel accuracy", str(self.estimates["pixel_accuracy"])),
            ("always the commonest", f"{_four(self.commonest)}  (of the pixels)"),
            *([] if loss is None else [("loss", _four(loss))]),
        ]
        classes = [visible(name) for name in self.classes]
        width = max(len(name) for name in (*classes, *(row[0] for row in rows)))
        lines = [f"{name:<{width}}  {value}" for name, value in rows]
        per_class = zip(classes, scores.iou, scores.dice, strict=True)
        lines += ["", f"{'class':<{width}}  IoU     Dice"]
        lines += [
            f"{name:<{width}}  {_four(iou):<6}  {_four(dice)}" for name, iou, dice in per_class
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class Scores:
    """Measures of counts (K, 3); NaN for a class that occurs neither in truth nor in prediction."""

    counts: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """(K,) intersection over union of each class, 0..1."""
        hits, predicted, true = self.counts.T
        return _share(hits, predicted + true - hits)

    @property
    def dice(self) -> np.ndarray:
        """(K,) Dice of each class, 0..1."""
        hits, predicted, true = self.counts.T
        return _share(2 * hits, predicted + true)

    @property
    def miou(self) -> float | None:
        """The mean IoU over the classes that occur; None where none does."""
        return _mean(self.iou)

    @property
    def mean_dice(self) -> float | None:
        """The mean over classes, or the second of two."""
        return _mean(self.dice[1:] if len(self.counts) == 2 else self.dice)

    @property
    def pixel_accuracy(self) -> float | None:
        """The share of the pixels that are classified rightly; None without pixels."""
        return _mean(
            _share(self.counts[:, HITS].sum(keepdims=True), self.counts[:, TRUE].sum(keepdims=True))
        )


def evaluate(
    model: nn.Module,
    loader: EpochLoader,
    classes: Sequence[str],
    values: Sequence[int],
    *,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    amp: str = "none",
    label: str = "evaluating",
) -> SegmentationScores:
    """Measure a segmenter on what an `eval_loader` of label images yields; it is left in the mode
    it was in.

    Under torch.distributed, with a loader that yields each rank its part, all ranks get the result
    of the whole.

    Args:
        model: (1, C, h, w) to logits (1, K, h, w).
        loader: batches of (list of images (C, h, w), list of labels (h, w)).
        classes: names in index order.
        values: what label images call them.
        loss: of logits (K, h, w) and labels (h, w), for the log.
        amp: "none", "bfloat16" or "float16".
        label: of the progress line.

    Raises:
        DivergedError: logits that are not finite.
    """
    device = next(model.parameters()).device
    tally = Tally(len(classes))
    with evaluating(model), torch.no_grad():
        for images, labels in track(
            loader, len(loader.positions), label, size=lambda batch: len(batch[0])
        ):
            for image, truth in zip(images, labels, strict=True):
                with autocast(device, amp):
                    logits = model(image.to(device)[None])[0].float()
                if not bool(logits.isfinite().all()):
                    raise DivergedError("the model's output is not finite: its weights diverged")
                measured = None if loss is None else float(loss(logits, truth.to(device)))
                tally.add(logits.argmax(0).cpu().numpy(), truth.numpy(), values, measured)
    return _of_all_ranks(loader, tally).outcome(classes, len(loader.dataset))  # type: ignore[arg-type]


class Tally:
    """What is kept of the images, one after the other."""

    def __init__(self, classes: int) -> None:
        self.confusion = np.zeros((classes, classes), dtype=np.int64)
        self.counts: list[np.ndarray] = []  # (K, 3) of each image
        self.losses: list[float | None] = []
        self.labels: list[bytes] = []

    def add(
        self,
        predicted: np.ndarray,
        truth: np.ndarray,
        values: Sequence[int],
        loss: float | None = None,
    ) -> None:
        """Count an image: class indices (h, w), of the truth also IGNORE."""
        matrix = confusion_of(predicted, truth, len(values))
        self.confusion += matrix
        self.counts.append(np.stack([matrix.diagonal(), matrix.sum(0), matrix.sum(1)], axis=-1))
        self.losses.append(loss)
        self.labels.append(label_png(predicted, values))

    def outcome(self, classes: Sequence[str], expected: int) -> SegmentationScores:
        """What the images add up to, of `expected` that there are; the loss is their mean."""
        losses = [loss for loss in self.losses if loss is not None]
        counts = np.array(self.counts, dtype=np.int64).reshape(-1, len(classes), 3)
        mean = float(np.mean(losses)) if losses else None
        return SegmentationScores(
            tuple(classes), self.confusion, counts, mean, expected, tuple(self.labels)
        )


def confusion_of(predicted: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """(K, K) int64 pixels, row truth, column prediction, of label arrays (h, w), of the truth also
    IGNORE.
    """
    counts = truth != IGNORE
    cells = truth[counts].astype(np.int64) * classes + predicted[counts]
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes).astype(np.int64)


def label_png(indices: np.ndarray, values: Sequence[int]) -> bytes:
    """A label image (h, w) of class indices as an 8-bit grey PNG file of the data set's values."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(values, dtype=np.uint8)[indices]).save(
        buffer, "PNG", compress_level=3
    )
    return buffer.getvalue()


def _of_all_ranks(loader: EpochLoader, mine: Tally) -> Tally:
    """All ranks' images in the order of the data set; a loader that ranks do not share has nothing
    to gather.
    """
    if loader.rounds is None:
        return mine
    parts = ranks.gather((list(loader.positions), mine))
    order = np.argsort([position for positions, _ in parts for position in positions])
    merged = Tally(len(mine.confusion))
    merged.confusion = np.sum([part.confusion for _, part in parts], axis=0)
    for name in ("counts", "losses", "labels"):
        joined = [image_value for _, part in parts for image_value in getattr(part, name)]
        setattr(merged, name, [joined[position] for position in order])
    return merged


def _share(part: np.ndarray, total: np.ndarray) -> np.ndarray:
    return np.divide(part, total, out=np.full(part.shape, np.nan), where=total > 0)


def _mean(values: np.ndarray) -> float | None:
    valid = values[~np.isnan(values)]
    return float(valid.mean()) if len(valid) else None


def _whole(scores: Scores) -> dict[str, float | None]:
    return {"miou": scores.miou, "dice": scores.mean_dice, "pixel_accuracy": scores.pixel_accuracy}


def _estimated(value: float | None, drawn: Sequence[float | None], images: int) -> Estimate:
    valid = [draw for draw in drawn if draw is not None]
    deviation = float(np.std(valid)) if len(valid) > 1 else 0.0
    return estimate(value, deviation, images, why="no pixel counts")


def _four(value: float | None) -> str:
    return "n/a" if value is None or np.isnan(value) else f"{value:.4f}"
