"""A model by what people name it with: itself, its run, the folder of its run or of `save_weights`,
or its name.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softless.data.notices import notice
from softless.errors import UsageError
from softless.evaluation.run import LoadedRun
from softless.models.create import create_model
from softless.models.published import names_folder
from softless.saliency import maps
from softless.saliency.saliency import Saliency
from softless.saliency.viewer import Picture, Size
from softless.tasks.loaded import load_run

InputSize = int | tuple[int, ...] | None  # side of a square, (height, width) or (C, H, W)


def opened(
    model: nn.Module | LoadedRun | str | Path, device: str | torch.device = "cpu"
) -> nn.Module | LoadedRun:
    """The model or the run, or what lies in a folder of a run or of `save_weights`, or a model by
    its name, whose weights are new, and said to be.

    Raises:
        UsageError: no model of that name, and no run folder.
        DataError: a folder without a finished epoch or a published model, or a damaged one.
    """
    if not isinstance(model, str | Path):
        return model
    if names_folder(model):
        return load_run(model, device)
    return _untrained(str(model)).to(device)


def model_and_size(
    model: str, op: str | None, act: str | None, size: InputSize
) -> tuple[nn.Module, InputSize]:
    """The model of a name or of a folder, and the size at which it is looked at: a run's own
    where none is given.
    """
    if names_folder(model):
        if op or act:
            raise UsageError(
                f"'{model}' is a folder: the operator and activation in it are its own; --op and "
                "--act go with the name of a model"
            )
        run = load_run(model)
        return run.model, size or (run.in_chans, *run.pixels)
    network = create_model(model, op=op, act=act)
    # timm's own ViT, built for one size
    if size is not None and getattr(network, "dynamic_img_size", None) is False:
        network = create_model(model, op=op, act=act, dynamic_img_size=True)
    return network, size


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
        model: a model, the folder of a run or of `save_weights`, a run of `load_run`, or the name
            of a model (new weights).
        images: (B, C, H, W) or (C, H, W) as the model takes them; a PIL image; bytes (H, W, C) as a
            numpy array; or a path.
        layer: which attention layer, counted from 0, or from the end when negative.
        resize: for what is no tensor: "training" brings the image to as many tokens as in training,
            a number its longer side to so many pixels; a classifier's image is framed at that size.
            None is what the run does in evaluation.
        device: where to compute; None is where the model lies.
        transform: image -> (C, H, W), for what is no tensor; None is the run's own, or timm's
            evaluation transform of the model.

    Returns:
        Maps of queries and keys (B, h, w) over the grid of the layer, in [0, 1], and the class
        token's row where the operator has one (arXiv:2206.08898, §4.7).

    Raises:
        UsageError: no attention layer of ours in the model, no layer of that number, one whose
            grid is unknown, or images that are none.
        DataError: the path is no readable image, or no run.

    Examples:
        >>> model = softless.create_model("sima_deit_tiny_patch16_224", depth=2)
        >>> maps = softless.explain(model, torch.zeros(1, 3, 224, 224))
        >>> maps.query.shape, maps.key.shape
        (torch.Size([1, 14, 14]), torch.Size([1, 14, 14]))
    """
    return maps.explain(
        opened(model), images, layer=layer, resize=resize, device=device, transform=transform
    )
