"""`save_weights`: a folder that timm's `local-dir:` and `softless.create_model` load, with the
digests that tell a damaged file.

model.safetensors   the state dict
config.json         architecture, arguments, preparation of images (softless.models.config)
digests.json        the sha256 of both, and of every tensor
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from softless.errors import UsageError, located, need_module
from softless.models import config, digests
from softless.models.construction import Construction
from softless.models.create import create_model
from softless.models.durable import write_folder, write_tensors, write_text
from softless.models.files import CONFIG, FILE, check_finite

OF_TRAINING = (nn.Dropout, DropPath, nn.Identity)  # modules that a model without drop rates has not


def save_weights(
    model: nn.Module, folder: str | Path, *, data: Mapping[str, Any] | None = None
) -> Path:
    """Write a model's weights as safetensors and JSON: whole, or not at all.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` loads the folder once softless is
    imported, if the model has a registered name or is one of timm's with its own attention.
    `softless.create_model` loads all of them, and `load_weights(model, folder)` the weights.

    Args:
        model: of `create_model`, or of timm under a registered name.
        folder: a new or an empty one.
        data: how images are prepared, where that is not what the model says: input_size, mean, std,
            crop_pct, crop_mode, interpolation, range.

    Returns:
        The folder.

    Raises:
        UsageError: the name of a file, a folder that holds files, a model that a config.json cannot
            describe or that was changed since it was made, or a disk that cannot be written.
        DataError: weights with NaN or infinity.

    Examples:
        >>> model = softless.create_model("sima_deit_tiny_patch16_224", depth=2)
        >>> folder = softless.save_weights(model, "weights")
        >>> same = softless.create_model("local-dir:weights", pretrained=True)
    """
    need_module(model, "save_weights")
    folder = located(folder)
    if folder.suffix in {".safetensors", ".pth", ".pt"}:
        raise UsageError(
            f"{folder} is the name of a file, and save_weights writes a folder (weights, "
            "config.json, digests.json): name a folder"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} holds files already: name a new folder")
    content = config.describe(model, data)
    _check_rebuilt(model, content)
    state = {
        name: tensor.detach().cpu().clone().contiguous()
        for name, tensor in model.state_dict().items()
    }
    check_finite(state.items(), "the model")
    write_folder(folder, lambda beside: _write(beside, state, content))
    return folder


def _write(folder: Path, state: dict[str, Tensor], content: dict[str, Any]) -> None:
    write_tensors(folder / FILE, state, {"format": "pt"})
    write_text(folder / CONFIG, json.dumps(content, indent=1) + "\n")
    digest_list = digests.describe(folder, (FILE, CONFIG), state)
    write_text(folder / digests.DIGESTS, json.dumps(digest_list, indent=1) + "\n")


def _check_rebuilt(model: nn.Module, content: Mapping[str, Any]) -> None:
    """A model of these arguments has the same modules and tensors: nothing was swapped, converted
    or resized since.
    """
    built: Construction = model.construction  # type: ignore[assignment]
    with torch.device("meta"):
        again = create_model(built.name, built.op, **content["model_args"])
    old, new = _parts(model), _parts(again)
    if wrong := [name for name in {**new, **old} if old.get(name) != new.get(name)]:
        first = wrong[0]
        raise UsageError(
            f"the model was changed since it was made, first in {first} "
            f"({new.get(first, 'nothing')} then, {old.get(first, 'nothing')} now): "
            "a config.json describes what softless.create_model builds"
        )


def _parts(model: nn.Module) -> dict[str, str]:
    modules = {
        name: f"{type(module).__name__}({module.extra_repr()})"
        for name, module in model.named_modules()
        if name and not isinstance(module, OF_TRAINING)
    }
    return modules | {name: str(tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
