"""The run in a folder, loaded: its model assembled anew from what `best.json` notes, and the weights
of its best epoch in it.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from softless.data.transforms import prepared_as
from softless.errors import DataError, located, unknown
from softless.evaluation.run import LoadedRun
from softless.experiment.files import read_best, read_classes, task_of
from softless.experiment.folder import BEST, CLASSES, RECIPE, WEIGHTS
from softless.experiment.groups import CLASSIFIES, DENSE
from softless.experiment.recipe import Recipe, read_stored
from softless.models import digests
from softless.models.config import noted
from softless.models.create import create_model
from softless.models.files import CONFIG
from softless.models.given import GIVEN, given_model
from softless.models.outline import check_fits
from softless.models.published import published_folder
from softless.models.records import is_number
from softless.models.scale import set_training_size
from softless.models.sides import sides
from softless.models.state import fill, read_weights
from softless.tasks.folders import TASKS, of_tasks
from softless.tasks.published import published_run

# task -> what builds a head around a host; the others train a model as `create_model` makes it
HEADS: Mapping[str, Callable[..., nn.Module]] = {
    task: module.WITH_HEAD
    for task, module in of_tasks("model").items()
    if hasattr(module, "WITH_HEAD")
}


def load_run(run_dir: str | Path, device: str | torch.device = "cpu") -> LoadedRun:
    """Load the best epoch of the run in a folder, or the model in a folder of `save_weights`.

    Args:
        run_dir: the folder, or `local-dir:FOLDER`.
        device: where the model is to lie.

    Raises:
        DataError: no such folder, no finished epoch in it, a file of it damaged, or class lists
            that disagree.
        UsageError: the weights are those of another model.
    """
    folder = published_folder(run_dir)
    if folder is not None and not (folder / BEST).is_file():
        return published_run(folder, device)
    path = folder or located(run_dir)
    if not path.is_dir():
        raise DataError(
            f"no run folder at {path}: give the folder that `softless train --out` wrote"
        )
    if not (path / BEST).is_file() or not (path / WEIGHTS).is_file():
        raise DataError(
            f"{path} holds no finished epoch ({BEST} and {WEIGHTS} are not both there) and no "
            f"published model ({CONFIG}): train first"
        )
    best = read_best(path / BEST)
    classes = tuple(best["classes"])
    task = task_of(best)
    args, architecture = best["model_args"], best["architecture"]
    if task in CLASSIFIES:
        args = {"num_classes": len(classes), "in_chans": best["in_chans"], **args}
    _check_same_classes(path, classes)
    _check_same_weights(path / WEIGHTS, best.get("weights_sha256"))
    check_fits(
        lambda: assemble(task, architecture, args, best.get("head")), path / WEIGHTS, path / BEST
    )
    model = assemble(task, architecture, args, best.get("head"))
    fill(model, read_weights(path / WEIGHTS), path / WEIGHTS)
    recipe = read_stored(path / RECIPE).recipe
    measured = replace(recipe.data, mean=tuple(best["mean"]), std=tuple(best["std"]))
    recipe = replace(recipe, data=measured)
    _tell_preparation(model, best, recipe)
    return LoadedRun(path, model.to(device).eval(), classes, prepared_as(best), recipe, best)


def _tell_preparation(model: Any, best: Mapping[str, Any], recipe: Recipe) -> None:
    """Let the model say how its images were prepared, where timm's functions look for it, and how
    large they were in training.
    """
    size = best["image_size"]
    # of a typical image: a classifier's are all of one size
    pixels = best.get("pixels", sides(size))
    preparation = {name: best[name] for name in ("mean", "std", "crop_pct", "interpolation")}
    preparation |= {"input_size": (best["in_chans"], *map(int, pixels))}
    preparation |= {"notes": noted(best.get("range"), several=task_of(best) == "multilabel")}
    model.pretrained_cfg = {**getattr(model, "pretrained_cfg", {}), **preparation}
    if (trained := _trained_pixels(best, recipe)) is not None:
        set_training_size(model, *trained, mpp=_trained_mpp(best))


def _trained_mpp(best: Mapping[str, Any]) -> float | None:
    mpp = best.get("trained_at", {}).get("mpp")
    return float(mpp) if is_number(mpp) and mpp > 0 else None


def _trained_pixels(best: Mapping[str, Any], recipe: Recipe) -> tuple[int, int] | None:
    """Height and width of the images in training; of runs that do not say so as their recipe has
    it, or None.
    """
    try:
        if "trained_at" in best:
            height, width = best["trained_at"]["pixels"]
        elif task_of(best) not in DENSE:
            height, width = sides(best["image_size"])
        elif (fixed := _fixed(recipe)) is not None:
            height, width = fixed
        else:
            height, width = best["pixels"]
        return int(height), int(width)
    except (KeyError, TypeError, ValueError):
        return None


def _fixed(recipe: Recipe) -> tuple[int, int] | None:
    """The canvas of a detection, or the crop of a segmentation."""
    canvas = None if recipe.detection is None else recipe.detection.canvas
    crop = None if recipe.segmentation is None else recipe.segmentation.crop
    return canvas or crop


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


def assemble(
    task: str,
    architecture: str,
    model_args: Mapping[str, Any],
    head: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The model of a task.

    Args:
        task: of the table of tasks; that of "dino" is the backbone that it trained, without a head.
        architecture: a registered model or a host; "given" is the one that `models.given` holds.
        model_args: further arguments of `create_model`, among them `op`, `num_classes` and
            `in_chans`.
        head: what is built around a host for dense prediction: arguments of the task's `WITH_HEAD`,
            as `detector` or `segmenter`.

    Raises:
        UsageError: no such task or model, or arguments that do not fit.
    """
    if architecture == GIVEN:
        return given_model(model_args)
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    if task in HEADS:
        return HEADS[task](architecture, model_args, **(head or {}))
    return create_model(architecture, **model_args)
