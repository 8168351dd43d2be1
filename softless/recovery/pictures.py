"""Images to recover on: tensors, or the files of a folder, which are read when they are needed."""

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from softless.convert.refit.refit import CHUNK, LEAST
from softless.data.datasets import stratified_cut
from softless.data.folder import images_at
from softless.data.notices import notice
from softless.data.places import by_part, class_splits, folders_in
from softless.data.readable import sift
from softless.data.samples import FileSamples, Samples
from softless.data.turns import in_turn
from softless.errors import DataError, UsageError, located
from softless.evaluation.run import LoadedRun
from softless.experiment.groups import DataSpec
from softless.experiment.ranges import Range
from softless.models import digests
from softless.recovery import dense
from softless.recovery.chunks import Chunks
from softless.saliency.viewer import channels_of, declared, evaluation_transform
from softless.words import few

UNLABELLED = -1
IMAGES = "images"  # of a folder with label images or annotations beside them
KEPT = 1 << 28  # bytes of prepared images that are held


@dataclass(frozen=True)
class Pictures(Chunks):
    """Chunks (b, C, h, w) of image files; each is read when it is asked for, and the first ones are
    kept.
    """

    samples: Any
    transform: Any
    chosen: tuple[int, ...]  # of the samples
    kept: dict[int, Tensor] = field(default_factory=dict, compare=False, repr=False)
    chunk: int = CHUNK

    def names(self) -> list[str]:
        """What the files are called."""
        return [self.samples.name(row) for row in self.chosen]

    def __len__(self) -> int:
        return math.ceil(len(self.chosen) / self.chunk)

    def made(self, index: int) -> Tensor:
        if index in self.kept:
            return self.kept[index]
        first = index * self.chunk
        chunk = torch.stack(self._read(range(first, min(first + self.chunk, len(self.chosen)))))
        if sum(other.nbytes for other in self.kept.values()) + chunk.nbytes <= KEPT:
            self.kept[index] = chunk
        return chunk

    def _read(self, rows: range) -> list[Tensor]:
        """Images of some rows of `chosen`."""
        return [self.transform(self.samples.image(self.chosen[row])) for row in rows]


@dataclass(frozen=True)
class Tiles(Pictures):
    """Chunks (b, C, height, width) of crops of image files, at places drawn from their number."""

    size: tuple[int, int] = (0, 0)
    chunk: int = dense.CHUNK

    def _read(self, rows: range) -> list[Tensor]:
        tiles, image, last = [], torch.empty(0), -1
        for row in rows:
            if self.chosen[row] != last:  # the tiles of an image lie side by side
                last = self.chosen[row]
                image = self.transform(self.samples.image(last))
            tiles.append(dense.tile(image, self.size, row))
        return tiles


@dataclass(frozen=True)
class Framing:
    """How a model's evaluation makes tensors of files, and what its classes are called."""

    transform: Callable[[Any], Tensor]  # image -> (C, h, w)
    channels: int
    scale: Range | None  # the declared range of the images' values
    data: DataSpec | None  # the same for a run of the trainer; None asks the model's pretrained_cfg
    classes: tuple[str, ...] = ()  # in the order of the outputs, where they have names
    outputs: int = 0
    tile: tuple[int, int] | None = None  # height and width of crops for a segmenter or a detector
    centred: bool = True  # whether the middle is cut out, as the trainer does

    @staticmethod
    def of(model: nn.Module | LoadedRun, classes: Sequence[str] = ()) -> "Framing":
        """That of a run, or of a module by its `pretrained_cfg`."""
        if isinstance(model, LoadedRun):
            best = model.best
            data = replace(
                model.recipe.data,
                source="folder",
                path=None,
                image_size=model.image_size,
                in_chans=model.in_chans,
                mean=tuple(best["mean"]),
                std=tuple(best["std"]),
                range=best.get("range"),
                interpolation=best["interpolation"],
                crop_pct=best["crop_pct"],
                limit=None,
                group=None,
                folds=None,
                fold=None,
            )
            names = tuple(classes) or (model.classes if model.named else ())
            number = getattr(model.model, "num_classes", len(names))
            centred = (best.get("crop_mode") or "center") == "center"
            tile = dense.tile_size(model.model)
            if tile is not None:
                return Framing(model.transform, model.in_chans, model.scale, None, tile=tile)
            return Framing(
                model.transform,
                model.in_chans,
                model.scale,
                data,
                names,
                number,
                centred=centred,
            )
        return Framing(
            evaluation_transform(model),
            channels_of(model),
            declared(model),
            None,
            tuple(classes),
            getattr(model, "num_classes", 0) or 0,
            dense.tile_size(model),
            (getattr(model, "pretrained_cfg", None) or {}).get("crop_mode", "center") == "center",
        )


@dataclass(frozen=True)
class Gathered:
    """Images to fit on, and others to measure on."""

    fit: Sequence[Tensor]
    measure: Sequence[Tensor]
    fit_labels: Tensor | None  # (n), -1 where there is none
    measure_labels: Tensor | None
    apart: bool  # whether nothing that is measured on is fitted on
    learned: Samples | None = None  # of a folder: what a distillation learns from
    held: Samples | None = None  # and what it measures on
    sources: Tensor | None = None  # (n) which file each image to fit on is a tile of

    @property
    def count(self) -> int:
        """Images to fit on."""
        return sum(len(chunk) for chunk in self.fit)

    def digest(self) -> str:
        """SHA-256 of names and labels of files, or of the numbers of tensors."""
        sha = hashlib.sha256()
        for samples in (self.learned, self.held):
            if samples is not None:
                samples.update(sha)
        for pictures in (self.fit, self.measure):
            if isinstance(pictures, Pictures):
                sha.update("\n".join(pictures.names()).encode(errors="surrogateescape"))
            else:
                for chunk in pictures:
                    sha.update(digests.of_tensor(chunk).encode())
        return sha.hexdigest()


def from_folder(
    folder: str | Path,
    framing: Framing,
    number: int,
    *,
    share: float = 0.25,
    seed: int = 0,
    learns: bool = False,
) -> Gathered:
    """Files of a folder, framed as a model's evaluation does: `number` to fit on, others to measure
    on.

    They are drawn from a fixed seed, in turn from each folder below, so that every class counts. Of
    a folder with parts, images of `train` are fitted on and those of `val` measured on, where there
    are some; those of `test` are left alone. A segmenter or a detector gets tiles of its training
    size, `number` to fit on and half as many to measure on, from other files.

    Args:
        folder: of images, of class folders, or of parts with either.
        framing: the model's.
        number: of images to fit on.
        share: of the images that is measured on, where there is no `val`.
        seed: of that cut.
        learns: whether a distillation follows, which learns from all but those that are measured
            on.

    Raises:
        DataError: no folder, no image in it, or too few.
        UsageError: `number` is none.
    """
    if number < 1:
        raise UsageError(f"number={number}: give a positive number of images to fit on")
    if learns and not framing.centred:
        raise UsageError(
            "the model's images are not cut out of the middle (crop_mode), and the trainer of a "
            "distillation cuts there: leave it out of the steps"
        )
    root = located(folder)
    if framing.tile is not None and (root / IMAGES).is_dir():
        notice(f"{root}: the images are those of {IMAGES}, and what lies beside it is left alone")
        root = root / IMAGES
    train, val = _opened(root, framing, whole=learns)
    if framing.tile is not None:
        if val is None and len(train) > 1:
            fewer, off = _cut(train, share, seed)
            train, val = train.take(fewer), train.take(off)
        return _tiles(train, val, framing, max(number, LEAST))
    if len(train) < LEAST:
        raise DataError(f"{folder} holds {len(train)} images to fit on: give at least {LEAST}")
    if val is None and learns:
        kept, off = _cut(train, share, seed)
        train, val = train.take(kept), train.take(off)
    order = drawn(train.files)
    chosen, others = order[:number], []
    if val is not None:
        others = drawn(val.files)[:number]
    elif len(order) >= (1 + share) * number:
        val, others = train, order[number : 2 * number]
    labelled = framing.outputs > 0 and any(
        part is not None and bool((part.targets >= 0).any()) for part in (train, val)
    )
    return Gathered(
        Pictures(train, framing.transform, tuple(chosen)),
        () if val is None else Pictures(val, framing.transform, tuple(others)),
        torch.from_numpy(train.targets[chosen]) if labelled else None,
        torch.from_numpy(val.targets[others]) if labelled and val is not None else None,
        apart=bool(others),
        learned=train if learns else None,
        held=val if learns else None,
    )


def _tiles(train: FileSamples, val: FileSamples | None, framing: Framing, number: int) -> Gathered:
    """Tiles of files; none of a file that is fitted on is measured on."""
    assert framing.tile is not None

    def tiles(samples: FileSamples, count: int) -> Tiles:
        files = drawn(samples.files)
        turns = [row for index, row in enumerate(files) for _ in range(index, count, len(files))]
        return Tiles(samples, framing.transform, tuple(turns), size=framing.tile or (0, 0))

    fit = tiles(train, number)
    measure = () if val is None else tiles(val, max(number // 2, 1))
    sources = torch.tensor(fit.chosen)
    return Gathered(fit, measure, None, None, apart=val is not None, sources=sources)


def _opened(root: Path, framing: Framing, *, whole: bool) -> tuple[FileSamples, FileSamples | None]:
    """Images to learn from, and those of a part for validation; targets are classes of the model,
    -1 where none is known. `whole` decodes each once, and stops at those that cannot be.
    """
    parts = _parts(root, classes=framing.tile is None) or {"train": ""}
    if "test" in parts:
        notice(f"{root}: the images of {parts['test']} are left alone, for a test of the model")
    read: dict[str, FileSamples] = {
        part: images_at(root / below, framing.channels, scale=framing.scale)
        for part, below in parts.items()
        if part != "test"
    }
    if whole:
        sift(root, read, "stop")
    names = _class_names(root, read["train"], framing)
    labelled = {part: _labelled(samples, names) for part, samples in read.items()}
    return labelled["train"], labelled.get("val")


def _parts(root: Path, *, classes: bool) -> dict[str, str]:
    """Where the parts of a data folder lie, with a training part among them; empty of a folder that
    is none. Beside a class that is called `train` there are others.
    """
    if not root.is_dir():
        return {}
    parts = (class_splits(root) if classes else {}) or by_part(root)
    others = set(folders_in(root)) - set(parts.values())
    return {} if "train" not in parts or others else parts


def _class_names(root: Path, samples: FileSamples, framing: Framing) -> tuple[str, ...]:
    """The classes of the outputs; of a model that names none those of the class folders, where
    there are as many.
    """
    folders = sorted({Path(file).parts[0] for file in samples.files if len(Path(file).parts) > 1})
    if framing.classes:
        if folders and not {name for file in samples.files for name in Path(file).parts} & {
            *framing.classes
        }:
            notice(
                f"{root}: {few(folders)} are none of the model's classes ({few(framing.classes)}), "
                "so no accuracy is told"
            )
        return framing.classes
    if len(folders) < 2 or len(folders) != framing.outputs:
        return ()
    notice(
        f"the model does not name its classes: the folders of {root} are taken to be in the order "
        f"of its outputs ({few(folders)})"
    )
    return tuple(folders)


def _labelled(samples: FileSamples, names: Sequence[str]) -> FileSamples:
    """The same with the class that a folder of each file is called by, -1 where there is none."""
    outputs = {name: output for output, name in enumerate(names)}
    known = (
        next((outputs[part] for part in Path(file).parts[:-1] if part in outputs), UNLABELLED)
        for file in samples.files
    )
    copied = copy(samples)
    copied.targets = np.fromiter(known, np.int64, len(samples))
    return copied


def _cut(samples: FileSamples, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions to learn from and to measure on: of each folder this share, where it has two."""
    folders = [Path(file).parent.as_posix() for file in samples.files]
    strata, counts = np.unique(folders, return_inverse=True, return_counts=True)[1:]
    alone = counts.min() < 2
    return stratified_cut(np.zeros_like(strata) if alone else strata, share, seed)


def drawn(files: Sequence[str]) -> list[int]:
    """The files in an order from a fixed seed, in turn from each folder."""
    order = random.Random(0).sample(range(len(files)), len(files))
    return in_turn(order, [Path(file).parent.as_posix() for file in files])
