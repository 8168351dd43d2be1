"""A finished run, loaded back: the weights of its best epoch with all that is needed to use
them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from softless.data.transforms import Pipeline
from softless.experiment.files import task_of
from softless.experiment.ranges import Range
from softless.experiment.recipe import Recipe
from softless.models.sides import sides

MOST_AT_ONCE = 256  # images, where nobody says
BEST, WEIGHTS, CLASSES, RECIPE = "best.json", "best.safetensors", "classes.json", "recipe.json"


@dataclass(frozen=True)
class LoadedRun:
    """The best epoch of a run, ready for images."""

    path: Path
    model: nn.Module  # in evaluation mode, on the device asked for
    classes: tuple[str, ...]
    transform: Pipeline  # image -> (C, S, S)
    recipe: Recipe  # its data.mean and data.std are what the run measured
    # best.json: epoch (from 1), metric, value, architecture, image size, scaling
    best: dict[str, Any]
    stored: bool = False  # a folder of `save_weights`, which knows of no data
    named: bool = True  # whether somebody said what the classes are called

    @property
    def task(self) -> str:
        """One of `softless.tasks.folders.TASKS`."""
        return task_of(self.best)

    @property
    def amp(self) -> str:
        """What the run was trained and tested in: "none" (float32), "bfloat16" or "float16"."""
        return self.recipe.amp

    @property
    def batch_size(self) -> int:
        """Images at once where nobody says: as in training, at most 256.

        In bfloat16 another batch may round otherwise.
        """
        return min(MOST_AT_ONCE, self.recipe.batch_size)

    @property
    def scale(self) -> Range | None:
        """The declared range of the images' values, in which the run reads others too."""
        return Range.of(self.best.get("range"))

    @property
    def threshold(self) -> float | None:
        """Of two classes: the second is answered from this probability on, as validation chose it.

        None of older runs.
        """
        stored = self.best.get("threshold")
        return None if stored is None else float(stored)

    @property
    def in_chans(self) -> int:
        """Channels of the images that the model takes."""
        return int(self.best["in_chans"])

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of a typical image."""
        height, width = self.best.get("pixels", sides(self.image_size))
        return int(height), int(width)

    @property
    def image_size(self) -> int | tuple[int, int]:
        """Side of the square that the model sees, or height and width."""
        size = self.best["image_size"]
        return int(size) if isinstance(size, int) else (int(size[0]), int(size[1]))
