"""From an image and its label image to two tensors: torchvision's joint transforms, drawn from the
generators that the loader seeds.
"""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from softless.data.pictures import Picture, scaled, tensor_of
from softless.data.transforms import Normalised, Pipeline, Step
from softless.tasks.segmentation.samples import IGNORE
from softless.tasks.segmentation.settings import SegmentationSpec

TRIES = 10  # crops that are drawn until one is varied enough

Pair = tuple[Any, Any]


class LabelPipeline(Pipeline):
    """(image, label array (h, w)) to (tensor (C, h, w) normalised, tensor (h, w) uint8 of class
    indices).
    """

    joint = True


def train_pipeline(
    spec: SegmentationSpec, mean: Sequence[float], std: Sequence[float]
) -> LabelPipeline:
    """Scale, crop, flips, quarter turns, colours, as the recipe says.

    Raises:
        UsageError: a setting that cannot be used.
    """
    spec.check()
    steps: list[Step] = []
    if spec.scale != (1.0, 1.0):
        steps.append(RandomScale(*spec.scale))
    if spec.crop is not None:
        steps.append(VariedCrop(spec.crop, spec.crop_share, mean))
    chances = ((spec.hflip, v2.RandomHorizontalFlip), (spec.vflip, v2.RandomVerticalFlip))
    steps += [Both(flip(chance)) for chance, flip in chances if chance > 0]
    steps += [quarter_turn] if spec.quarter_turns else []
    steps += [Both(v2.ColorJitter(*[spec.color_jitter] * 3))] if spec.color_jitter else []
    steps += [Both(v2.RandomPhotometricDistort())] if spec.photometric else []
    return LabelPipeline([as_tensors], [*steps, Plain(mean, std)], fixed=False)


def eval_pipeline(mean: Sequence[float], std: Sequence[float]) -> LabelPipeline:
    """The whole image, normalised, at its own size."""
    return LabelPipeline([Whole(mean, std)], [], fixed=True)


def as_tensors(sample: tuple[Picture, np.ndarray]) -> Pair:
    """(C, h, w), uint8 or float32, and (h, w) uint8, with the types by which torchvision tells them
    apart.
    """
    image, label = sample
    return tensor_of(image).as_subclass(tv_tensors.Image), tv_tensors.Mask(torch.from_numpy(label))


class Both:
    """A transform of torchvision as a step on a pair: image (C, h, w) and label image (h, w)."""

    def __init__(self, transform: v2.Transform) -> None:
        self.transform = transform

    def __call__(self, sample: Pair) -> Pair:
        moved: Pair = self.transform(*sample)
        return moved

    def __repr__(self) -> str:
        return repr(self.transform)


def quarter_turn(sample: Pair) -> Pair:
    """Image (C, h, w) and label image (h, w) turned by 0, 90, 180 or 270 degrees; 90 and 270
    exchange h and w.
    """
    turns = random.randrange(4)
    image, label = (
        torch.rot90(tensor.as_subclass(torch.Tensor), turns, (-2, -1)) for tensor in sample
    )
    return tv_tensors.Image(image), tv_tensors.Mask(label)


class RandomScale:
    """Both sides times a number between `low` and `high`; labels by the nearest pixel.

    Image (C, h, w) and label image (h, w) become (C, h', w') and (h', w'), a pixel a side at least.
    """

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def __call__(self, sample: Pair) -> Pair:
        factor = random.uniform(self.low, self.high)
        size = [max(1, round(factor * side)) for side in sample[0].shape[-2:]]
        image, label = (F.resize(tensor, size, antialias=True) for tensor in sample)
        return image, label

    def __repr__(self) -> str:
        return f"RandomScale({self.low}, {self.high})"


class VariedCrop:
    """A random crop, filled up with the mean colour and IGNORE where the image is smaller.

    Image (C, h, w) and label image (h, w) become (C, H, W) and (H, W) with (H, W) = `size`. A crop
    in which a single class has more than `share` of the pixels that count is drawn again, ten times
    at most (mmsegmentation's cat_max_ratio).
    """

    def __init__(self, size: tuple[int, int], share: float, mean: Sequence[float]) -> None:
        self.share = share
        self.crops = {
            torch.uint8: _crop(size, [round(255 * value) for value in mean]),
            torch.float32: _crop(size, list(mean)),
        }
        self.size = size

    def __call__(self, sample: Pair) -> Pair:
        crop = self.crops[sample[0].dtype]
        for _ in range(TRIES if self.share < 1 else 1):
            image, label = crop(*sample)
            counts = torch.bincount(
                label.reshape(-1).as_subclass(torch.Tensor), minlength=IGNORE + 1
            )[:IGNORE]
            if counts.max() <= self.share * counts.sum():
                break
        return image, label

    def __repr__(self) -> str:
        return f"VariedCrop({self.size}, share={self.share})"


def _crop(size: tuple[int, int], colour: Sequence[float]) -> v2.RandomCrop:
    return v2.RandomCrop(
        size, pad_if_needed=True, fill={tv_tensors.Image: list(colour), tv_tensors.Mask: IGNORE}
    )


class Whole:
    """The image (C, h, w), normalised, and its label image (h, w), as plain tensors of their own
    size.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.normalised = Normalised(mean, std)

    def __call__(self, sample: tuple[Picture, np.ndarray]) -> tuple[Tensor, Tensor]:
        return self.normalised(sample[0]), torch.from_numpy(sample[1])

    def __repr__(self) -> str:
        return "Whole()"


class Plain:
    """Pixels (C, h, w) scaled to 0..1 and normalised, and label image (h, w), as plain tensors."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = list(mean), list(std)

    def __call__(self, sample: Pair) -> tuple[Tensor, Tensor]:
        image, label = (tensor.as_subclass(torch.Tensor) for tensor in sample)
        return F.normalize(scaled(image), self.mean, self.std, inplace=True), label

    def __repr__(self) -> str:
        return "Plain()"
