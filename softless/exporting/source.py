"""What is exported: the run in a folder, a published folder, a module, or a model by its name."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from softless.data.loader import eval_loader
from softless.data.notices import notice
from softless.data.samples import Samples
from softless.data.sources import images_of
from softless.data.transforms import Pipeline, prepared_as
from softless.errors import DataError, UsageError
from softless.evaluation.run import LoadedRun
from softless.experiment.ranges import Range
from softless.inference.model import InferenceModel
from softless.layers.attention import Attention
from softless.models import digests
from softless.models.bag import refuse_bags
from softless.models.create import create_model
from softless.models.published import names_folder
from softless.models.records import is_number
from softless.tasks.detection.model import Detector
from softless.tasks.labelled import check_there, samples_of, source_of
from softless.tasks.loaded import load_run
from softless.tasks.published import described
from softless.tasks.segmentation.model import Segmenter

T = TypeVar("T")

CALIBRATION = 256  # images
FEWEST = 32  # images that a calibration needs


@dataclass(frozen=True)
class Source:
    """A model in evaluation, in float32 on the processor, and what is known of it."""

    name: str  # for people
    model: nn.Module
    best: Mapping[str, Any]  # classes and preparation of images, as best.json has them
    run: LoadedRun | None = None

    @property
    def task(self) -> str:
        """One of `softless.experiment.groups.TASKS`."""
        return str(self.best.get("task", "classification"))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in index order; () of a model that was never trained on named ones."""
        return tuple(self.best["classes"])

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of a typical image."""
        height, width = self.best["pixels"]
        return int(height), int(width)

    @property
    def scale(self) -> Range | None:
        """The declared range of the images' values."""
        return Range.of(self.best.get("range"))

    def at(self, size: tuple[int, int]) -> "Source":
        """The same for images of another height and width in pixels."""
        return replace(self, best={**self.best, "image_size": list(size), "pixels": list(size)})

    @property
    def transform(self) -> Pipeline:
        """image -> (C, H, W), as images are prepared in evaluation."""
        return prepared_as(self.best)

    def test_images(self, path: str | Path | None) -> Samples | None:
        """Images with labels: those of a folder, the run's test split, or its validation split
        where it has no other; None of a model that was not trained here.

        Raises:
            DataError: they cannot be read, or have other classes.
            UsageError: the model names no classes.
        """
        if self.run is None:
            if path is not None:
                raise UsageError(
                    f"--test measures a run on labelled images, and {self.name} is none: export "
                    "the folder of a run; softless eval FILE DATA measures files with class names"
                )
            return None
        if self.task == "dino":
            if path is None:
                return None
            raise UsageError(
                f"--test measures answers, and {self.name} learned features without labels: leave "
                "it out; softless eval FILE DATA --knn 20 measures those"
            )
        if path is None and not self.is_there():
            return None
        return of_split(path, lambda split: self._labelled(path, split))

    def is_there(self) -> bool:
        """Whether the data of a run lie where it found them; that they do not is said."""
        assert self.run is not None
        try:
            check_there(self.run, None, None)
        except DataError as error:
            notice(f"nothing is measured on test images: {error}")
            return False
        return True

    def _labelled(self, path: str | Path | None, split: str) -> Samples:
        assert self.run is not None
        return samples_of(self.run, source_of(self.run, path, None), split).samples

    def calibration_images(self, path: str | Path | None) -> Samples | None:
        """At most 256 images without labels, drawn alike each time: those of a folder, or the run's
        training images; None where there are neither.

        Raises:
            DataError: they cannot be read, have other channels, or are too few.
        """
        if path is not None:
            samples: Samples = images_of(path, int(self.best["in_chans"]), scale=self.scale)
        elif self.run is None:
            return None
        else:
            check_there(self.run, None, None)
            samples = samples_of(self.run, source_of(self.run, None, None), "train").samples
        if len(samples) < FEWEST:
            raise DataError(
                f"{len(samples)} images to calibrate with, and {FEWEST} are the fewest: give more "
                "with --calibrate FOLDER"
            )
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(samples), generator=generator)[:CALIBRATION]
        return samples.take(sorted(order.tolist()))


def of_split(path: str | Path | None, work: Callable[[str], T]) -> T:
    """Work on the test split, or on that of the validation where the run's own data have no
    other.
    """
    try:
        return work("test")
    except DataError:
        if path is not None:
            raise
        return work("val")


def opened(source: nn.Module | str | Path) -> Source:
    """The source that somebody names.

    Raises:
        UsageError: no such model or folder, or a copy that `optimize` made.
        DataError: a folder without a finished epoch, or a damaged one.
    """
    if isinstance(source, nn.Module):
        return _module(type(source).__name__, source)
    if names_folder(source):
        run = load_run(source)
        refuse_bags(run.model, "export")
        if run.stored:
            return _module(run.path.name, run.model)
        return Source(run.path.name, run.model, {**run.best, "pixels": list(run.pixels)}, run)
    if "/" in str(source):
        raise UsageError(
            f"no run folder at {source}: give the --out folder of `softless train`, or the name "
            "of a model"
        )
    torch.manual_seed(0)
    model = create_model(str(source))
    notice(f"'{source}' is exported with NEW, UNTRAINED weights: its answers mean nothing")
    return _module(str(source), model)


def _module(name: str, model: nn.Module) -> Source:
    refuse_bags(model, "export")
    if isinstance(model, InferenceModel):
        raise UsageError(
            "the model is an inference copy of softless.optimize, with packed weights: export the "
            "one it was made of"
        )
    best = described(model, name) | _dense(model)
    return Source(name, copy.deepcopy(_ready(model)).eval(), best)


def _dense(model: nn.Module) -> dict[str, str]:
    """The task of a detector or a segmenter."""
    if isinstance(model, Detector):
        return {"task": "detection"}
    return {"task": "segmentation"} if isinstance(model, Segmenter) else {}


def _ready(model: nn.Module) -> nn.Module:
    """In evaluation and in float32; another device or dtype is refused, since the model is the
    caller's.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.device.type != "cpu":
            raise UsageError(
                f"{name} lies on {tensor.device}: export a model on the processor (model.cpu())"
            )
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise UsageError(f"{name} is in {tensor.dtype}: export float32 (model.float())")
    return model


def weights_digest(source: Source) -> str:
    """SHA-256 of the weights: that of the run's file, or over all tensors by name."""
    stored = source.best.get("weights_sha256")
    if stored is not None:
        return str(stored)
    tensors = source.model.state_dict()
    content = {name: digests.of_tensor(tensor) for name, tensor in sorted(tensors.items())}
    return digests.of_texts(content)


def tensors(samples: Samples, transform: Pipeline, most: int | None = None) -> Tensor:
    """Prepared images (n, C, H, W), all of one size; `most` of them, evenly spread."""
    if most is not None and len(samples) > most:
        samples = samples.take([index * len(samples) // most for index in range(most)])
    loader = eval_loader(samples, transform, batch=64, workers=0, keep=False)
    return torch.cat([images for images, _ in loader])


def token_scale_of(model: nn.Module) -> str | float | None:
    """The token scale that the model's attention was trained with, where all of it has one."""
    scales = {
        module.options.get("token_scale")
        for module in model.modules()
        if isinstance(module, Attention)
    }
    scale = scales.pop() if len(scales) == 1 else None
    return scale if isinstance(scale, str) or is_number(scale) else None
