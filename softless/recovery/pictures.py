"""Images to recover on: tensors, or the files of a folder, which are read when they are needed."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

from softless.convert.refit.refit import CHUNK
from softless.data.folder import images_at
from softless.errors import DataError, UsageError, located
from softless.saliency.viewer import channels_of, declared, evaluation_transform


@dataclass(frozen=True)
class Pictures(Sequence[Tensor]):
    """Chunks (b, C, h, w) of image files; each is read when it is asked for."""

    samples: Any
    transform: Any
    chosen: tuple[int, ...]  # of the samples

    def __len__(self) -> int:
        return math.ceil(len(self.chosen) / CHUNK)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        first = index % len(self) * CHUNK
        rows = self.chosen[first : first + CHUNK]
        return torch.stack([self.transform(self.samples.image(row)) for row in rows])


@dataclass(frozen=True)
class Gathered:
    """Images to fit on, and others to measure on."""

    fit: Sequence[Tensor]
    measure: Sequence[Tensor]
    fit_labels: Tensor | None  # (n), -1 where there is none
    measure_labels: Tensor | None
    apart: bool  # whether nothing that is measured on is fitted on

    @property
    def count(self) -> int:
        """Images to fit on."""
        return sum(len(chunk) for chunk in self.fit)


def from_folder(
    folder: str | Path, model: nn.Module, number: int, classes: Sequence[str] = ()
) -> Gathered:
    """Files of a folder, framed as the model's evaluation does: `number` to fit on, as many others
    to measure on.

    They are drawn from a fixed seed, in turn from each folder below, so that every class counts.

    Args:
        folder: of images, or of class folders.
        model: whose evaluation prepares them.
        number: of images to fit on.
        classes: names of the model's classes; images in a folder of that name have a label.

    Raises:
        DataError: no folder, or no image in it.
        UsageError: `number` is none.
    """
    if number < 1:
        raise UsageError(f"number={number}: give a positive number of images to fit on")
    samples = images_at(located(folder), channels_of(model), scale=declared(model))
    transform = evaluation_transform(model)
    order = drawn(samples.files)
    if not order:
        raise DataError(f"{folder} holds no image: give a folder of images")
    places = {name: place for place, name in enumerate(classes)}
    labels = torch.tensor([places.get(_class_of(file), -1) for file in samples.files])
    first, others = order[:number], order[number : 2 * number]
    known = bool((labels >= 0).any())
    return Gathered(
        Pictures(samples, transform, tuple(first)),
        Pictures(samples, transform, tuple(others)),
        labels[first] if known else None,
        labels[others] if known else None,
        apart=bool(others),
    )


def drawn(files: Sequence[str]) -> list[int]:
    """The files in an order from a fixed seed, in turn from each folder."""
    folders: dict[str, list[int]] = {}
    for index in random.Random(0).sample(range(len(files)), len(files)):
        folders.setdefault(Path(files[index]).parent.as_posix(), []).append(index)
    turns = [indices for _, indices in sorted(folders.items())]
    return [
        indices[turn]
        for turn in range(max(map(len, turns), default=0))
        for indices in turns
        if turn < len(indices)
    ]


def _class_of(file: str) -> str:
    return Path(file).parent.name
