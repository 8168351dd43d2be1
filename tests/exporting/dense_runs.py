"""Small runs of detection and segmentation whose every branch counts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from softless.models import digests
from softless.recipes import get_recipe
from softless.tasks.loaded import load_run
from softless.training import fit
from tests.models.lively import lively


def dense_run(
    folder: Path, name: str, beside: Callable[[Path], None] | None = None, **fields: Any
) -> Path:
    """A run of a recipe's quick form over generated images, its weights made lively.

    Args:
        folder: made if missing; the images lie in it too.
        name: of the recipe.
        beside: writes what else lies beside the images of a folder.
        fields: of the recipe, with __ in place of dots.
    """
    changed = {key.replace("__", "."): value for key, value in fields.items()}
    recipe = get_recipe(name).quick(folder / "data").with_fields(**{"amp": "none", **changed})
    if beside is not None:
        beside(Path(str(recipe.data.path)))
    fit(recipe, folder / "run", device="cpu", progress=False)
    enliven(folder / "run")
    return folder / "run"


def enliven(path: Path) -> None:
    """Put lively weights into a run's folder."""
    run = load_run(path)
    model = lively(run.model, torch.randn(1, run.in_chans, 64, 64))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bbox" in name:  # offsets of a tenth of an anchor, as trained ones have
                parameter.mul_(0.1)
    weights = path / "best.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, weights)
    best = json.loads((path / "best.json").read_text())
    best["weights_sha256"] = digests.of_file(weights)
    del best["sha256"]
    (path / "best.json").write_text(json.dumps(best))
