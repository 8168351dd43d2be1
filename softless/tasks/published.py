"""A folder of `save_weights` in the place of a run: what eval, predict and the others ask of one is
in its config.json.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from softless.data.transforms import prepared_as
from softless.errors import UsageError
from softless.evaluation.run import LoadedRun
from softless.experiment.bag_table import BagTableSpec
from softless.experiment.groups import CLASSIFICATION, DataSpec
from softless.experiment.recipe import Recipe
from softless.measure.cost import input_size_of
from softless.models.bag import BagModel
from softless.models.config import declared, label_names, several_labels
from softless.models.kept import operators_of
from softless.models.published import published_model
from softless.tasks.bags.settings import BagsSpec
from softless.tasks.multilabel.settings import MultilabelSpec

# tasks of a model without classes, of several labels, and of features of tiles
FEATURES, LABELS, BAGS = "dino", "multilabel", "bags"


def published_run(folder: Path, device: str | torch.device = "cpu") -> LoadedRun:
    """The model of a folder, ready for images.

    Without names its classes are called 0, 1, … in the order of the logits.

    Raises:
        DataError: no such folder, or a damaged one.
    """
    model: Any = published_model(folder)
    best = described(model, folder.name)
    if best["task"] == BAGS:  # the task asks the model what its logits are
        model.kind = "several" if several_labels(model.pretrained_cfg) else "class"
    number, names = int(getattr(model, "num_classes", 0)), tuple(best["classes"])
    return LoadedRun(
        folder,
        model.to(device),
        names or tuple(map(str, range(number))),
        prepared_as(best),
        recipe_of(best, folder.name),
        best,
        stored=True,
        named=bool(names) or not number,
    )


def described(model: nn.Module, name: str) -> dict[str, Any]:
    """What best.json would say of a model that no run trained: how its images are prepared, and its
    classes, none where nobody named them.

    Raises:
        UsageError: its mean or deviation are of other channels than its images.
    """
    about: Any = getattr(model, "pretrained_cfg", None) or {}
    if isinstance(model, BagModel):
        return _of_bags(model, name)
    channels, height, width = input_size_of(model, None)
    mean, std = (_per_channel(about.get(part), channels, part) for part in ("mean", "std"))
    return {
        "task": _task(model, about),
        "architecture": str(about.get("architecture") or name),
        "classes": list(label_names(model)),
        "image_size": [height, width],
        "pixels": [height, width],
        "in_chans": channels,
        "crop_pct": about.get("crop_pct") or 1.0,
        "crop_mode": about.get("crop_mode") or "center",
        "interpolation": about.get("interpolation") or "bicubic",
        "mean": mean,
        "std": std,
        "range": declared(about),
        "operators": operators_of(model),
    }


def _of_bags(model: BagModel, name: str) -> dict[str, Any]:
    """The same of a model of bags, whose features are taken as they are."""
    built: Any = getattr(model, "construction", None)
    arguments = {} if built is None else dict(built.arguments)
    return {
        "task": BAGS,
        "architecture": name if built is None else built.name,
        "model_args": {
            **arguments,
            "in_dim": model.in_dim,
            "num_classes": model.num_classes,
            "position": "none" if model.position is None else "fourier",
        },
        "classes": list(label_names(model)),
        "image_size": [1, 1],
        "pixels": [1, model.in_dim],
        "in_chans": 1,
        "crop_pct": 1.0,
        "crop_mode": "center",
        "interpolation": "bicubic",
        "mean": [0.0],
        "std": [1.0],
        "range": None,
        "operators": operators_of(model),
    }


def _task(model: nn.Module, about: Mapping[str, Any]) -> str:
    if several_labels(about):
        return LABELS
    return FEATURES if getattr(model, "num_classes", None) == 0 else CLASSIFICATION


def _per_channel(numbers: Any, channels: int, part: str) -> list[float]:
    numbers = list(numbers) if numbers else [0.5] * channels
    if len(numbers) != channels and len(set(numbers)) > 1:
        raise UsageError(
            f"the model takes {channels} channels and its {part} has {len(numbers)} numbers: give "
            f"model.pretrained_cfg['{part}'] one number a channel"
        )
    return [float(numbers[0])] * channels if len(numbers) != channels else list(map(float, numbers))


def recipe_of(best: Mapping[str, Any], name: str) -> Recipe:
    """A recipe that says of a model's images or bags what is known, and no place where some lie."""
    data = DataSpec(
        image_size=(int(best["image_size"][0]), int(best["image_size"][1])),
        in_chans=best["in_chans"],
        mean=tuple(best["mean"]),
        std=tuple(best["std"]),
        range=best.get("range"),
        interpolation=best["interpolation"],
        crop_pct=best["crop_pct"],
    )
    own: dict[str, Any] = {LABELS: MultilabelSpec()} if best.get("task") == LABELS else {}
    if best.get("task") == BAGS:
        position = best["model_args"]["position"]
        own = {BAGS: BagsSpec(position=position), "table": BagTableSpec(), "metric": "auc"}
    return Recipe(name=name, summary="a published model", data=data, **own)
