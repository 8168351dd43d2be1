"""`save_weights`: a folder that timm's `local-dir:` and `softless.create_model` load, with the
digests that tell a damaged file.

model.safetensors   the state dict
config.json         architecture, arguments, preparation of images (softless.models.config)
digests.json        the sha256 of both, and of every tensor
README.md           the model card
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from softless.attention.registry import registered
from softless.errors import UsageError, located, need_module
from softless.layers.attention import Attention
from softless.layers.class_attention import ClassAttention
from softless.models import config, digests
from softless.models.card import written
from softless.models.construction import Construction
from softless.models.create import create_model
from softless.models.durable import write_folder, write_tensors, write_text
from softless.models.exchanges import Exchange, exchanged_again, exchanges_of
from softless.models.files import CARD, CONFIG, FILE, check_finite
from softless.models.inferred import inferred_construction

OF_TRAINING = (nn.Dropout, DropPath, nn.Identity)  # modules that a model without drop rates has not
# in names of attributes; the last is timm's choice of a kernel
ABOUT_TRAINING = ("drop", "training", "checkpoint", "fused_attn")


def save_weights(
    model: nn.Module,
    folder: str | Path,
    *,
    data: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    card: Mapping[str, str] | None = None,
) -> Path:
    """Write a model's weights as safetensors and JSON, with a model card: whole, or not at all.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` loads the folder once softless is
    imported, if the model has a registered name or is one of timm's with its own attention.
    `softless.create_model` loads all of them, those whose attention `softless.swap` exchanged among
    them, and `load_weights(model, folder)` the weights. `softless eval`, `predict`, `export` and
    whatever else takes a model open the folder.

    Args:
        model: of `create_model`, or of timm by its name and, at most, with its own num_classes,
            in_chans, img_size, global_pool and dynamic_img_size; with exchanged attention or
            without.
        folder: a new or an empty one.
        data: how images are prepared, where that is not what the model says: input_size, mean, std,
            crop_pct, crop_mode, interpolation, range; task="multilabel" where an image has several
            labels.
        classes: their names in the order of the logits; those that the model was opened with by
            default.
        card: what the model card says of the training: a title and a text each. It also says how
            the model is built and used; `push_to_hub` completes it.

    Returns:
        The folder.

    Raises:
        UsageError: the name of a file, a folder that holds files, a model that a config.json cannot
            describe or that was changed since it was made, names of other classes, or a disk that
            cannot be written.
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
    if not is_new(folder):
        raise UsageError(f"{folder} holds files already: name a new folder")
    built, swaps = _built(model), exchanges_of(model)
    _check_registered(model)
    content = config.describe(model, built, swaps, data, classes)
    if wrong := _difference(model, built, swaps, content["model_args"]):
        raise UsageError(
            f"{wrong}: a config.json describes what softless.create_model builds and softless.swap "
            "exchanges in it"
        )
    state = {
        name: tensor.detach().cpu().clone().contiguous()
        for name, tensor in model.state_dict().items()
    }
    check_finite(state.items(), "the model")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    text = written(content, card or {}, parameters)
    write_folder(folder, lambda beside: _write(beside, state, content, text))
    return folder


def is_new(folder: Path) -> bool:
    """Whether a folder is not there yet, or is empty."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def _write(folder: Path, state: dict[str, Tensor], content: dict[str, Any], card: str) -> None:
    write_tensors(folder / FILE, state, {"format": "pt"})
    write_text(folder / CONFIG, config.as_text(content))
    write_text(folder / CARD, card)
    digest_list = digests.describe(folder, (FILE, CONFIG), state)
    write_text(folder / digests.DIGESTS, json.dumps(digest_list, indent=1) + "\n")


def _built(model: nn.Module) -> Construction:
    """How a model was made: as it says itself, or by the name and the sizes that a model of timm
    has, where these make the same model.

    Raises:
        UsageError: neither.
    """
    built = getattr(model, "construction", None)
    if isinstance(built, Construction):
        return built
    inferred = inferred_construction(model)
    swaps = exchanges_of(model)
    why = "" if inferred is None else _difference(model, inferred, swaps, inferred.arguments)
    if inferred is None or why:
        other = f"; timm's '{inferred.name}' is another one: {why}" if inferred else ""
        raise UsageError(
            f"this {type(model).__name__} does not tell how it was built: make it with "
            "softless.create_model(host, op=...) or from "
            f"a registered name, and load its weights into that{other}"
        )
    return inferred


def _check_registered(model: nn.Module) -> None:
    """Whether a name stands for each operator.

    Raises:
        UsageError: one is not registered.
    """
    for module in model.modules():
        if isinstance(module, Attention | ClassAttention):
            registered(module.op)


def _difference(
    model: nn.Module, built: Construction, swaps: Sequence[Exchange], arguments: Mapping[str, Any]
) -> str:
    """What a model of these arguments and swaps has otherwise; empty where it has the same modules,
    numbers and tensors: nothing was swapped, converted or resized since.
    """
    with torch.device("meta"):
        again = create_model(built.name, built.op, **arguments)
        try:
            for swap in swaps:
                exchanged_again(again, swap)
        except UsageError as error:
            return f"the model was changed before its attention was exchanged ({error})"
    old, new = _parts(model), _parts(again)
    differing = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    if not differing:
        return ""
    first = differing[0]
    return (
        f"the model was changed since it was made, first in {first} "
        f"({new.get(first, 'nothing')} then, {old.get(first, 'nothing')} now)"
    )


def _parts(model: nn.Module) -> dict[str, str]:
    """What each module is, with the numbers and words that it computes with, and the shapes of all
    tensors.
    """
    parts: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, OF_TRAINING):
            continue
        if name:
            parts[name] = f"{type(module).__name__}({module.extra_repr()})"
        parts |= {
            f"{name}.{attribute}".lstrip("."): repr(_comparable(value))
            for attribute, value in vars(module).items()
            if _counts(attribute, value)
        }
    tensors = {**dict(model.named_buffers()), **model.state_dict()}
    return parts | {name: str(tuple(tensor.shape)) for name, tensor in tensors.items()}


def _counts(attribute: str, value: Any) -> bool:
    """Whether an attribute of a module is a number or a word, or some, that it may compute with."""
    if attribute.startswith("_") or any(word in attribute for word in ABOUT_TRAINING):
        return False
    values = value if isinstance(value, list | tuple) else (value,)
    return all(each is None or isinstance(each, bool | int | float | str) for each in values)


def _comparable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
