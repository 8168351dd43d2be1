"""What the file of a detector or a segmenter is worth on labelled images, beside its model."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from softless.data.pictures import size_of
from softless.data.samples import Samples
from softless.evaluation.run import LoadedRun
from softless.exporting.measured import Measured
from softless.tasks.task import Task

LEAST_PIXELS = 0.9999  # of the pixels, that a file in float32 answers as its model does
LEAST_ANSWERS = 0.99  # of the boxes
NEAR = 0.1  # pixels between corners of the same box
ALIKE = 1e-3  # between its scores


class FromNormalised(nn.Module):
    """A file that takes bytes, called with images as its model takes them.

    Args:
        file: bytes -> answers.
        mean: of each channel of pixels in 0..1.
        std: the same.
    """

    def __init__(self, file: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.file = file
        self.mean, self.std = (torch.tensor(list(x))[:, None, None] for x in (mean, std))

    def forward(self, images: Any) -> Any:
        """Normalised images (B, C, h, w), or a list of images (C, h, w) -> the file's answers."""
        if isinstance(images, Tensor):
            return self.file(self._bytes(images))
        return self.file([self._bytes(image) for image in images])

    def _bytes(self, images: Tensor) -> Tensor:
        pixels = 255 * (images.double() * self.std + self.mean)
        return pixels.round().clamp(0, 255).to(torch.uint8)


def of_normalised(file: Any) -> nn.Module:
    """A file, or a model, as a module of normalised images, whatever it takes itself."""
    if not hasattr(file, "metadata") or file.metadata.pixels == "normalised":
        module: nn.Module = file
        return module.eval()
    best = file.metadata.best
    return FromNormalised(file, best["mean"], best["std"]).eval()


def dense_worth(
    run: LoadedRun, file: Any, task: Task, samples: Samples
) -> tuple[Measured | None, str]:
    """The measure of the run's own task, on those of its images that the file takes, and what is to
    say of the others.

    Args:
        run: detection or segmentation.
        file: an exported file of it.
        task: the run's.
        samples: labelled images of it.
    """
    taken = [
        index
        for index in range(len(samples))
        if not file.refuses(*size_of(samples.image(index))[::-1])
        and (file.metadata.pixels == "normalised" or _as_it_is(file, samples, index))
    ]
    note = ""
    if len(taken) < len(samples):
        note = (
            f"{len(taken)} of {len(samples)} test images have the size that the file takes; "
            "it refuses the others"
        )
    if not taken:
        return None, note
    chosen = samples.take(taken)
    answers = of_normalised(file)
    outcomes: list[Any] = [
        task.evaluate(model, task.eval_loader(chosen, 0, 1), amp="none", label=label)
        for model, label in ((answers, "measuring the file"), (run.model, "measuring the model"))
    ]
    of_file, of_model = outcomes
    if run.task == "segmentation":
        metric, agreement, least = "dice", _same_pixels(of_file, of_model), LEAST_PIXELS
    else:
        metric = "mask_ap" if "mask_ap" in of_model.summary() else "box_ap"
        agreement, least = _same_answers(of_file.answers, of_model.answers), LEAST_ANSWERS
    value, plain = of_file.summary()[metric], of_model.summary()[metric]
    if value is None or plain is None:
        return None, note
    worth = Measured(
        len(taken), metric, float(value), float(plain), None, None, agreement, None, least
    )
    return worth, note


def _as_it_is(file: Any, samples: Samples, index: int) -> bool:
    width, height = size_of(samples.image(index))
    return bool(file.reader.framed_size(height, width) == (height, width))


def _same_pixels(of_file: Any, of_model: Any) -> float:
    same = total = 0
    for one, other in zip(of_file.labels, of_model.labels, strict=True):
        first, second = (np.asarray(Image.open(io.BytesIO(label))) for label in (one, other))
        same += int((first == second).sum())
        total += second.size
    return same / max(total, 1)


def _same_answers(of_file: Sequence[Any], of_model: Sequence[Any]) -> float | None:
    """The share of the model's boxes that the file gives too, and none beyond them."""
    by_image: dict[int, list[Any]] = {}
    for answer in of_file:
        by_image.setdefault(answer["image_id"], []).append(answer)
    same = 0
    for answer in of_model:
        near = by_image.get(answer["image_id"], [])
        for position, other in enumerate(near):
            if (
                other["category_id"] == answer["category_id"]
                and abs(other["score"] - answer["score"]) <= ALIKE
                and np.abs(np.subtract(other["bbox"], answer["bbox"])).max() <= NEAR
            ):
                same += 1
                del near[position]
                break
    total = max(len(of_file), len(of_model))
    return same / total if total else None
