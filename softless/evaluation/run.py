"""A finished run, loaded back: the weights of its best epoch with all that is needed to use
them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from softless.data.ranges import Range
from softless.data.transforms import Pipeline, eval_transform, plain_transform
from softless.errors import DataError, UsageError, located
from softless.evaluation.run_files import read_best, read_classes, read_recipe
from softless.models import digests
from softless.models.assemble import assemble
from softless.models.config import noted
from softless.models.features import without_cut_parts
from softless.models.files import read_safetensors
from softless.models.outline import check_fits
from softless.models.records import is_number
from softless.models.scale import set_training_size
from softless.models.sizes import sides

DENSE = frozenset({"detection", "segmentation"})  # tasks whose models take whole images of any size
MOST_AT_ONCE = 256  # images, where nobody says
BEST, WEIGHTS, CLASSES, RECIPE = "best.json", "best.safetensors", "classes.json", "recipe.json"


@dataclass(frozen=True)
class LoadedRun:
    """The best epoch of a run, ready for images."""

    path: Path
    model: nn.Module  # in evaluation mode, on the device asked for
    classes: tuple[str, ...]
    transform: Pipeline  # image -> (C, S, S)
    # recipe.json by attributes, as in recipe.data.source; data.mean and data.std are what the run
    # measured
    recipe: Any
    # best.json: epoch (from 1), metric, value, architecture, image size, scaling
    best: dict[str, Any]

    @property
    def task(self) -> str:
        """One of `softless.models.assemble.TASKS`."""
        return str(self.best.get("task", "classification"))

    @property
    def amp(self) -> str:
        """What the run was trained and tested in: "none" (float32), "bfloat16" or "float16"."""
        return str(getattr(self.recipe, "amp", "none"))

    @property
    def batch_size(self) -> int:
        """Images at once where nobody says: as in training, at most 256.

        In bfloat16 another batch may round otherwise.
        """
        return min(MOST_AT_ONCE, int(getattr(self.recipe, "batch_size", MOST_AT_ONCE)))

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


def load_run(run_dir: str | Path, device: str | torch.device = "cpu") -> LoadedRun:
    """Load the best epoch of the run in a folder.

    Raises:
        DataError: no such folder, no finished epoch in it, a file of it damaged, or class lists
            that disagree.
        UsageError: the weights are those of another model.
    """
    path = located(run_dir)
    if not path.is_dir():
        raise DataError(
            f"no run folder at {path}: give the folder that `softless train --out` wrote"
        )
    if not (path / BEST).is_file() or not (path / WEIGHTS).is_file():
        raise DataError(
            f"{path} holds no finished epoch ({BEST} and {WEIGHTS} are not both there): train first"
        )
    best = read_best(path / BEST)
    classes = tuple(best["classes"])
    task = best.get("task") or "classification"  # which older runs do not say
    args, architecture = best["model_args"], best["architecture"]
    if task in {"classification", "multilabel"}:
        args = {"num_classes": len(classes), "in_chans": best["in_chans"], **args}
    transform = (plain_transform if task in DENSE else eval_transform)(
        best["image_size"],
        best["crop_pct"],
        best["interpolation"],
        best["mean"],
        best["std"],
        best["in_chans"],
        deep=best.get("range") is not None,
    )
    _check_same_classes(path, classes)
    _check_same_weights(path / WEIGHTS, best.get("weights_sha256"))
    check_fits(
        lambda: assemble(task, architecture, args, best.get("head")), path / WEIGHTS, path / BEST
    )
    model = assemble(task, architecture, args, best.get("head"))
    fill(model, read_weights(path / WEIGHTS), path / WEIGHTS)
    recipe = _recipe(path / RECIPE, best)
    _tell_preparation(model, best, recipe)
    return LoadedRun(path, model.to(device).eval(), classes, transform, recipe, best)


def _tell_preparation(model: Any, best: Mapping[str, Any], recipe: Any) -> None:
    """Let the model say how its images were prepared, where timm's functions look for it, and how
    large they were in training.
    """
    size = best["image_size"]
    # of a typical image: a classifier's are all of one size
    pixels = best.get("pixels", sides(size))
    preparation = {name: best[name] for name in ("mean", "std", "crop_pct", "interpolation")}
    preparation |= {"input_size": (best["in_chans"], *map(int, pixels))}
    preparation |= {"notes": noted(best.get("range"))}
    model.pretrained_cfg = {**getattr(model, "pretrained_cfg", {}), **preparation}
    if (trained := _trained_pixels(best, recipe)) is not None:
        set_training_size(model, *trained, mpp=_trained_mpp(best))


def _trained_mpp(best: Mapping[str, Any]) -> float | None:
    mpp = best.get("trained_at", {}).get("mpp")
    return float(mpp) if is_number(mpp) and mpp > 0 else None


def _trained_pixels(best: Mapping[str, Any], recipe: Any) -> tuple[int, int] | None:
    """Height and width of the images in training; of runs that do not say so as their recipe has
    it, or None.
    """
    try:
        if "trained_at" in best:
            height, width = best["trained_at"]["pixels"]
        elif best.get("task", "classification") not in DENSE:
            height, width = sides(best["image_size"])
        elif (fixed := _fixed(recipe)) is not None:
            height, width = fixed
        else:
            height, width = best["pixels"]
        return int(height), int(width)
    except (KeyError, TypeError, ValueError):
        return None


def _fixed(recipe: Any) -> Any:
    """The canvas of a detection, or the crop of a segmentation."""
    canvas = getattr(getattr(recipe, "detection", None), "canvas", None)
    return canvas or getattr(getattr(recipe, "segmentation", None), "crop", None)


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


def _recipe(file: Path, best: Mapping[str, Any]) -> SimpleNamespace:
    """The recipe with the field names it has in training, which lies above this layer and owns the
    class.
    """
    stored = read_recipe(file)
    data = {**stored["data"], "mean": tuple(best["mean"]), "std": tuple(best["std"])}
    groups = {
        name: SimpleNamespace(**entry) for name, entry in stored.items() if isinstance(entry, dict)
    }
    return SimpleNamespace(**{**stored, **groups, "data": SimpleNamespace(**data)})


def _check_same_classes(path: Path, classes: tuple[str, ...]) -> None:
    if (path / CLASSES).is_file() and read_classes(path / CLASSES) != classes:
        raise DataError(
            f"{path}: {CLASSES} and {BEST} list other classes; one of them is another run's"
        )


def _check_same_weights(file: Path, expected: str | None) -> None:
    """Against the digest that training wrote beside the epoch's score; runs of an older softless
    have none.
    """
    if expected is not None and (digest := digests.of_file(file)) != expected:
        raise DataError(
            f"{file} is not what {BEST} beside it describes: SHA-256 {digest[:12]}… and not "
            f"{expected[:12]}…. A copy was damaged, or the run was cut "
            "while it wrote them: `softless train --resume` writes both anew (of a finished run "
            "once its result.json is deleted)"
        )
