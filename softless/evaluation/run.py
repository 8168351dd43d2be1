"""A finished run, loaded back: the weights of its best epoch with all that is needed to use
them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from softless.data.transforms import Pipeline
from softless.errors import DataError, UsageError
from softless.experiment.ranges import Range
from softless.experiment.recipe import Recipe
from softless.models.features import without_cut_parts
from softless.models.files import read_safetensors
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

    @property
    def task(self) -> str:
        """One of `softless.models.assemble.TASKS`."""
        return str(self.best.get("task", "classification"))

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


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name.

    Raises:
        DataError: the file is damaged; it is named.
    """
    return read_safetensors(file)


def fill(model: nn.Module, state: Mapping[str, Tensor], file: Path) -> None:
    """Load a state that must fit exactly.

    Raises:
        UsageError: tensors missing, unknown or of another shape: it is another model's file.
        DataError: numbers that are not finite.
    """
    state = without_cut_parts(model, state)
    if wrong := mismatches(model, state):
        remainder = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UsageError(
            f"{file} is a checkpoint of another model: {', '.join(wrong[:5])}{remainder}"
        )
    bad = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if bad:
        raise DataError(
            f"{file} holds numbers that are not finite, first in {bad[0]}: the file is of no use"
        )
    model.load_state_dict(dict(state))


def mismatches(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """A clause for each tensor in which a state is not that of the model: missing, unknown, of
    another shape.
    """
    own = model.state_dict()
    return [
        *(f"{name} is missing" for name in own if name not in state),
        *(f"{name} is unknown" for name in state if name not in own),
        *(
            f"{name} has shape {tuple(state[name].shape)}, the model {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if name in state and state[name].shape != tensor.shape
        ),
    ]
