"""Images that a student sees its teacher answer: a folder, samples, or tensors that are ready for
both models. Labels, where there are any, tell the accuracy and may teach too.
"""

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softless.data.datasets import Splits, fingerprint, scaling, stratified_cut
from softless.data.pictures import Picture
from softless.data.samples import Samples
from softless.errors import DataError, UsageError
from softless.experiment.groups import DataSpec
from softless.models.given import held_in
from softless.tasks.dino.samples import open_unlabelled
from softless.tasks.distillation.settings import DistillationSpec

FEWEST = 8  # images, some of which are held out
UNLABELLED = -1  # the target of an image without a label


@dataclass(frozen=True)
class GivenImages:
    """Images that were given in Python, and whether their targets are labels."""

    samples: Samples
    labelled: bool
    measured: Samples | None = None  # what is measured on; None holds some of `samples` out


_given: ContextVar[GivenImages | None] = ContextVar("softless_given_images", default=None)


def images_given(images: GivenImages | None) -> AbstractContextManager[None]:
    """Within it, these are the images of distillations whose data were given."""
    return held_in(_given, images)


class TensorSamples(Samples):
    """Images that are ready for a model, held in memory.

    Args:
        images: (n, C, h, w) of finite numbers.
        targets: (n,) class indices, -1 where an image has no label; None is no label at all.

    Raises:
        DataError: another shape, no image, or a number that is not finite.
    """

    def __init__(self, images: Tensor, targets: Tensor | None = None) -> None:
        if images.ndim != 4 or not images.is_floating_point() or not images.numel():
            raise DataError(
                f"the images are {images.dtype} of the shape {tuple(images.shape)}: give floats "
                "(n, C, h, w), prepared as the models take them"
            )
        # a row at a time: a copy of them all in another type may not fit
        bad = next((i for i, image in enumerate(images) if not bool(image.isfinite().all())), None)
        if bad is not None:
            raise DataError(f"image {bad} has a value that is not finite: leave it out or mend it")
        self.images = images.detach().cpu().float().contiguous()
        self.channels = images.shape[1]
        self.targets = np.zeros(len(images), dtype=np.int64)
        self.places = np.arange(len(images))
        if targets is not None:
            numbers = torch.as_tensor(targets)
            if tuple(numbers.shape) != (len(images),) or numbers.is_floating_point():
                raise DataError(
                    f"the targets are {numbers.dtype} of the shape {tuple(numbers.shape)}, and "
                    f"there are {len(images)} images: give a class number for each, or -1"
                )
            self.targets = numbers.cpu().numpy().astype(np.int64)

    def image(self, index: int) -> Picture:
        """(h, w, C) float32, as the model takes it; a view."""
        return self.images[self.places[index]].permute(1, 2, 0).numpy()

    def name(self, index: int) -> str:
        return str(self.places[index])

    def take(self, indices: Sequence[int] | np.ndarray) -> "TensorSamples":
        """The samples at these positions, `indices` (m,), in this order; pixels are shared."""
        chosen = np.asarray(indices, dtype=np.int64)
        subset = TensorSamples.__new__(TensorSamples)
        subset.images, subset.channels = self.images, self.channels
        subset.targets, subset.places = self.targets[chosen], self.places[chosen]
        return subset

    def update(self, digest: Any) -> None:
        super().update(digest)
        pixels = hashlib.sha256()
        for index in self.places.tolist():
            pixels.update(self.images[index].numpy().tobytes())
        digest.update(pixels.digest())

    def lowest(self) -> list[float]:
        """The smallest value of each channel: black, where an image has some."""
        return self.images.amin((0, 2, 3)).tolist()


def open_images(data: DataSpec, seed: int) -> tuple[Splits, bool]:
    """The images cut into a training and a held-out part, and whether their targets are labels.

    Raises:
        DataError: fewer than eight, or whatever else is wrong with them.
    """
    splits, labelled = _given_splits(data, seed) if data.source == "given" else (None, False)
    if splits is None:
        splits = open_unlabelled(data, seed)
        labelled = bool(splits.classes)
    count = len(splits.train) + len(splits.val)
    if count < FEWEST:
        raise DataError(
            f"{count} images are too few to learn from and to hold some out: give {FEWEST} or more"
        )
    return splits, labelled


def _given_splits(data: DataSpec, seed: int) -> tuple[Splits, bool]:
    in_memory = _given.get()
    if in_memory is None:
        raise DataError(
            "the images of this run were given in Python: give them again to "
            "softless.recovery.distil.distil(…, resume=True)"
        )
    samples = in_memory.samples
    if len(samples) < FEWEST:
        raise DataError(
            f"{len(samples)} images are too few to learn from and to hold some out: give "
            f"{FEWEST} or more"
        )
    train, val = samples, in_memory.measured
    if val is None:
        labelled = in_memory.labelled
        counts = np.unique(samples.targets, return_counts=True)[1] if labelled else [0]
        strata = samples.targets if min(counts) > 1 else np.zeros(len(samples), dtype=np.int64)
        remaining, held_out = stratified_cut(strata, data.val_fraction, seed)
        train, val = samples.take(remaining), samples.take(held_out)
    if data.limit is not None and data.limit < len(train):
        order = np.random.default_rng(seed).permutation(len(train))
        train = train.take(np.sort(order[: data.limit]))
    mean, std = scaling(data, train)
    identity = fingerprint(data.source, (), {"train": train, "val": val, "test": None})
    splits = Splits(train, val, None, (), data.in_chans, mean, std, identity)
    return splits, in_memory.labelled


def with_outputs(
    splits: Splits, spec: DistillationSpec, outputs: int, *, labelled: bool
) -> tuple[Splits, bool]:
    """The images with a class name for each output of the models, and whether their targets say
    which output is right.

    Raises:
        UsageError: labels are to teach, and they do not go with the outputs.
    """
    if spec.compared == "features":
        return replace(splits, classes=()), False
    numbers = tuple(map(str, range(outputs)))
    if spec.classes and len(spec.classes) != outputs:
        raise UsageError(
            f"{len(spec.classes)} classes are named and the models have {outputs} outputs: name "
            "each output once"
        )
    if labelled and splits.classes and spec.classes:
        return splits.ordered(spec.classes, "the models", "the images", partly=True), True
    names = spec.classes or (splits.classes if len(splits.classes) == outputs else numbers)
    fits = len(splits.classes) == outputs if splits.classes else _largest(splits) < outputs
    if labelled and not fits and isinstance(splits.train, TensorSamples):
        raise DataError(
            f"a target is class {_largest(splits)} and the models have {outputs} outputs, "
            "counted from 0: give targets of these"
        )
    if spec.labels and labelled and splits.classes:
        raise UsageError(
            "labels are to teach the student, and nothing says which class each output stands "
            "for: name the models' classes in their order with classes=…"
        )
    if spec.labels and not (labelled and fits):
        why = f"go beyond the {outputs} outputs of the models" if labelled else "are not there"
        raise UsageError(f"labels are to teach the student, and they {why}: leave labels out")
    return replace(splits, classes=names), labelled and fits


def _largest(splits: Splits) -> int:
    return max(int(part.targets.max()) for part in (splits.train, splits.val))
