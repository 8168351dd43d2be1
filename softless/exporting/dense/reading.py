"""How the outputs of a detector's or a segmenter's file become answers to images."""

# B images, C channels, K classes

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection.transform import resize_boxes

from softless.errors import DataError, UsageError
from softless.exporting.dense.decoding import KEYS, OF_HEAD, Boxes, Graph, decoded
from softless.exporting.metadata import Metadata
from softless.models.features import STRIDES, pad
from softless.tasks.detection.model import EvaluationSizes, pasted

PIXEL_KEYS = frozenset({"divisor", "values"})

# images (B, C, H, W) -> outputs of the file
Outputs = Callable[[Tensor], tuple[Tensor, ...]]


class Reader(Protocol):
    """What makes answers of a file's outputs."""

    def __call__(self, outputs: Outputs, images: Sequence[Tensor] | Tensor) -> Any:
        """Images as the task's model takes them -> what it answers."""

    def framed_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width at which the file sees an image of so many pixels."""


def reader_of(metadata: Metadata, parts: Mapping[str, Outputs]) -> Reader | None:
    """What reads the outputs of a file; None where they are the answers.

    Args:
        metadata: of the file.
        parts: what runs the further graphs of a detector of two stages.

    Raises:
        DataError: what the file says of them is damaged.
    """
    decoding = metadata.decoding
    if decoding is None:
        return None
    pixels = metadata.task == "segmentation"
    needed = PIXEL_KEYS if pixels else KEYS | OF_HEAD.get(str(decoding.get("head")), frozenset())
    missing = sorted(needed - decoding.keys())
    if missing or not (pixels or decoding["head"] in OF_HEAD):
        raise DataError(
            f"a file of {metadata.name} does not say how its outputs become answers "
            f"({', '.join(missing) or 'head'}): export the model anew"
        )
    return PixelReader(metadata) if pixels else BoxReader(metadata, parts)


class PixelReader:
    """Logits of each pixel, of images that are filled up to the grid here where the file's graph
    takes any size.
    """

    def __init__(self, metadata: Metadata) -> None:
        assert metadata.decoding is not None
        self.any_size = metadata.dynamic in {"size", "both"}
        self.divisor = int(metadata.decoding["divisor"])

    def framed_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width at which the file sees an image of so many pixels."""
        if not self.any_size:
            return height, width
        step = self._step(height, width)
        return height + -height % step, width + -width % step

    def _step(self, height: int, width: int) -> int:
        return self.divisor if min(height, width) > STRIDES[-1] else STRIDES[-1]

    def __call__(self, outputs: Outputs, images: Sequence[Tensor] | Tensor) -> Tensor:
        """Images (B, C, h, w) of any size -> logits (B, K, h, w)."""
        batch = images if isinstance(images, Tensor) else torch.stack(list(images))
        if batch.ndim != 4 or not self.any_size:
            return outputs(batch)[0]
        height, width = batch.shape[-2:]
        filled = filled_up(batch, self._step(height, width))
        return outputs(filled)[0][..., :height, :width]


class BoxReader:
    """Boxes, labels, scores and masks in each image's own pixels."""

    def __init__(self, metadata: Metadata, parts: Mapping[str, Outputs]) -> None:
        assert metadata.decoding is not None
        self.parameters = metadata.decoding
        resize = self.parameters["resize"]
        self.sizes = EvaluationSizes(
            resize, self.parameters["longest"], self.parameters["divisor"]
        ).eval()
        self.any_size = metadata.dynamic in {"size", "both"}
        self.graphs = {name: _on_arrays(run) for name, run in parts.items()}

    def framed_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width at which the file sees an image of so many pixels."""
        height, width = self._resized_size(height, width)
        if not self.any_size:
            return height, width
        step = int(self.parameters["divisor"])
        return height + -height % step, width + -width % step

    def _resized_size(self, height: int, width: int) -> tuple[int, int]:
        if self.sizes.as_given:
            return height, width
        factor = min(
            self.parameters["resize"] / min(height, width),
            self.parameters["longest"] / max(height, width),
        )
        return int(factor * height), int(factor * width)

    def __call__(
        self, outputs: Outputs, images: Sequence[Tensor] | Tensor
    ) -> list[dict[str, Tensor]]:
        """For each image (C, h, w) its boxes (n, 4) as corners, labels (n,) from 0, scores (n,),
        and masks (n, h, w) bool where the run has them.
        """
        return [self._answered(outputs, image) for image in images]

    def _answered(self, outputs: Outputs, image: Tensor) -> dict[str, Tensor]:
        if image.ndim != 3:
            raise UsageError(
                f"an image of shape {tuple(image.shape)}: give a list of images (C, h, w), or a "
                "batch (B, C, h, w)"
            )
        size = (int(image.shape[-2]), int(image.shape[-1]))
        resized_size = self._resized_size(*size)
        if resized_size == size:
            resized = image
        elif image.dtype == torch.uint8:
            raise UsageError(
                f"an image of {size[0]} x {size[1]} pixels: a file of bytes takes images of "
                f"{resized_size[0]} x {resized_size[1]} as they are, since resizing would round "
                "them; export it with --pixels normalised"
            )
        else:
            resized = self.sizes.resize(image)[0]
        divisor = int(self.parameters["divisor"])
        batch = resized[None]
        if self.any_size:
            batch = filled_up(batch, divisor)
        canvas = (
            resized_size[0] + -resized_size[0] % divisor,
            resized_size[1] + -resized_size[1] % divisor,
        )
        maps = [output[0].numpy() for output in outputs(batch)]
        answer = decoded(maps, resized_size, canvas, self.parameters, self.graphs)
        return in_pixels(answer, resized_size, size)


def in_pixels(
    answer: Boxes, resized_size: tuple[int, int], size: tuple[int, int]
) -> dict[str, Tensor]:
    """An answer to a resized image, in the pixels (h, w) of the image itself."""
    boxes = resize_boxes(torch.from_numpy(answer.corners), list(resized_size), list(size))
    written = {
        "boxes": boxes,
        "labels": torch.from_numpy(answer.labels),
        "scores": torch.from_numpy(answer.scores),
    }
    if answer.masks is None:
        return written
    return {**written, "masks": pasted(torch.from_numpy(answer.masks)[:, None], boxes, size)}


def filled_up(images: Tensor, step: int) -> Tensor:
    """Images (B, C, h, w) with the mean colour at the right and below, up to multiples of a step.

    Raises:
        UsageError: images in bytes, in which that colour is none.
    """
    filled = pad(images, step)
    if images.dtype == torch.uint8 and filled.shape != images.shape:
        height, width = images.shape[-2:]
        raise UsageError(
            f"an image of {height} x {width} pixels: a file of bytes takes sides that are "
            f"multiples of {step}, since bytes cannot be filled up with the mean colour; export "
            "it with --pixels normalised"
        )
    return filled


def _on_arrays(run: Outputs) -> Graph:
    def answer(regions: np.ndarray) -> list[np.ndarray]:
        return [output.numpy() for output in run(torch.from_numpy(regions))]

    return answer
