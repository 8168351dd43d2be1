"""Brightness: the mean of all values of an image, learned from the images alone.

loss = 1/B sum_b |f(x_b) - mean(x_b)|^power
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from softless.data.datasets import open_splits
from softless.data.loader import EpochLoader
from softless.data.samples import Samples
from softless.data.transforms import Pipeline, build_transforms
from softless.experiment.recipe import Recipe
from softless.modes import evaluating
from softless.tasks.brightness.settings import BrightnessSpec
from softless.tasks.classification.task import model_args
from softless.tasks.task import Loss, Task


@dataclass(frozen=True)
class BrightnessOutcome:
    """The mean error over the images."""

    off: float
    seen: int
    expected: int

    def summary(self) -> dict[str, Any]:
        return asdict(self)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def write(self, folder: Path, samples: Samples) -> None:
        del samples
        (folder / "predictions.json").write_text(json.dumps({"off": self.off}), encoding="utf-8")


class Brightness(Task):
    """Turns a batch of images (B, C, H, W) into a loss."""

    name = "brightness"
    needs = ()
    measures: ClassVar[tuple[str, ...]] = ("off",)

    def __init__(self, recipe: Recipe, spec: BrightnessSpec) -> None:
        self.recipe, self.spec = recipe, spec

    @classmethod
    def open(cls, recipe: Recipe) -> "Brightness":
        assert isinstance(recipe.settings, BrightnessSpec)
        task = cls(recipe, recipe.settings)
        task.splits = open_splits(recipe.data, recipe.seed, recipe.table)
        return task

    def with_classes(self, classes: Sequence[str], owner: str) -> "Brightness":
        del classes, owner  # none of them matters
        return self

    def construction(self) -> dict[str, Any]:
        args = model_args(self.recipe, self.spec.width, self.splits.in_chans)
        head = {"width": self.spec.width}
        return {"architecture": self.recipe.model.name, "model_args": args, "head": head}

    def learner(self, model: nn.Module) -> nn.Module:
        return Loss(
            model, lambda answers, truth: (answers - truth).abs().pow(self.spec.power).mean()
        )

    def transform(self, *, train: bool) -> Pipeline:
        return build_transforms(self.recipe, self.splits.mean, self.splits.std, train=train)

    def prepare(
        self, batch: Any, device: torch.device, *, epoch: int, step: int
    ) -> tuple[Tensor, Tensor]:
        del epoch, step
        images = batch[0].to(device)
        return images, images.mean((1, 2, 3))

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, loader: EpochLoader, *, amp: str, label: str
    ) -> BrightnessOutcome:
        del amp, label
        errors = []
        with evaluating(model):
            for batch in loader:
                images, truth = self.prepare(batch, torch.device("cpu"), epoch=0, step=0)
                errors.append((model(images) - truth).abs())
        return BrightnessOutcome(
            float(torch.cat(errors).mean()), sum(map(len, errors)), len(loader.positions)
        )


TASK = Brightness
