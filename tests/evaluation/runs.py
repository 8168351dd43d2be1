"""A run folder as training leaves it, around a small model with random weights."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from softless.experiment.groups import DataSpec, ModelSpec
from softless.experiment.recipe import Recipe
from softless.models import create_model

SMALL: dict[str, Any] = {
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "img_size": 16,
}


def run_folder(
    path: Path, classes: tuple[str, ...], data: DataSpec, *, seed: int = 0, **changed: Any
) -> Path:
    """Write recipe.json, classes.json, best.json and best.safetensors; `changed` replaces entries
    of best.json.
    """
    torch.manual_seed(seed)
    args: dict[str, Any] = {
        "op": "sima",
        **SMALL,
        "num_classes": len(classes),
        "in_chans": data.in_chans,
    }
    model = create_model("vit_tiny_patch16_224", **args)
    path.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        path / "best.safetensors",
    )
    best = {
        "epoch": 3,
        "metric": "top1",
        "value": 0.5,
        "architecture": "vit_tiny_patch16_224",
        "model_args": args,
        "mean": [0.5] * data.in_chans,
        "std": [0.25] * data.in_chans,
        "image_size": 16,
        "in_chans": data.in_chans,
        "classes": list(classes),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
    }
    (path / "best.json").write_text(json.dumps({**best, **changed}))
    (path / "classes.json").write_text(json.dumps(list(classes)))
    recipe = Recipe("toy", "a test", model=ModelSpec("vit_tiny_patch16_224", op="sima"), data=data)
    (path / "recipe.json").write_text(
        json.dumps({**dataclasses.asdict(recipe), "torch": "2", "machine": {"cpu": "x"}})
    )
    return path
