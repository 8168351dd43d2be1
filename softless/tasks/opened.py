"""A model by what people name it with: itself, its run, the folder of its run, or its name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softless.data.notices import notice
from softless.errors import UsageError, located
from softless.evaluation.run import LoadedRun
from softless.models import create_model
from softless.saliency import maps
from softless.saliency.maps import Saliency
from softless.saliency.viewer import Picture, Size
from softless.tasks.loaded import load_run


def opened(
    model: nn.Module | LoadedRun | str | Path, device: str | torch.device = "cpu"
) -> nn.Module | LoadedRun:
    """The model or the run, or what lies in a run folder, or a model by its name, whose weights are
    new, and said to be.

    Raises:
        UsageError: no model of that name, and no run folder.
        DataError: a run folder without a finished epoch, or a damaged one.
    """
    if not isinstance(model, str | Path):
        return model
    if located(model).is_dir():
        return load_run(model, device)
    return _untrained(str(model)).to(device)


def _untrained(name: str) -> nn.Module:
    """A named model with new weights: of use to see the drawing, and said to be untrained."""
    if "/" in name or name.startswith("."):
        raise UsageError(
            f"no run folder at {name}: give the --out folder of `softless train`, or the name of "
            "a model"
        )
    torch.manual_seed(0)
    model = create_model(name).eval()
    notice(
        f"'{name}' is a model with new weights, not a trained run: its maps show an untrained "
        "network"
    )
    return model


def explain(
    model: nn.Module | LoadedRun | str | Path,
    images: Picture,
    *,
    layer: int = -1,
    resize: Size | None = None,
    device: str | torch.device | None = None,
    transform: Callable[[Any], Tensor] | None = None,
) -> Saliency:
    """Saliency maps of `images` in one attention layer; the model is left as it was.

    A detector or a segmenter is looked at with the images as its host sees them: resized, and
    filled up at the right and below.

    Args:
        model: a model, the folder of a run or a run of `load_run`, or the name of a model (new
            weights).
        images: (B, C, H, W) or (C, H, W) as the model takes them; a PIL image; bytes (H, W, C) as a
            numpy array; or a path.
        layer: which attention layer, counted from 0, or from the end when negative.
        resize: for what is no tensor: "training" brings the image to as many tokens as in training,
            a number its longer side to so many pixels; a classifier's image is framed at that size.
            None is what the run does in evaluation.
        device: where to compute; None is where the model lies.
        transform: image -> (C, H, W), for what is no tensor; None is the run's own, or timm's
            evaluation transform of the model.

    Raises:
        UsageError: no attention layer of ours in the model, no layer of that number, one whose
            tokens stand nobody knows where, or images that are none.
        DataError: the path is no readable image, or no run.
    """
    return maps.explain(
        opened(model), images, layer=layer, resize=resize, device=device, transform=transform
    )
