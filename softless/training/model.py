"""The model of a recipe, and the weights it may start from."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softless.errors import UsageError
from softless.evaluation.run import fill, read_weights
from softless.models.files import FILE
from softless.training.recipe import Recipe
from softless.training.run_folder import WEIGHTS

_log = logging.getLogger("softless.training")


def model_args(recipe: Recipe, classes: int, in_chans: int) -> dict[str, Any]:
    """The keyword arguments of `create_model` that rebuild the model for evaluation.

    Raises:
        UsageError: the model's image size is not the data's.
    """
    pixels = recipe.data.image_size
    args = {"img_size": pixels, **recipe.model.args, "num_classes": classes, "in_chans": in_chans}
    if args["img_size"] not in {pixels, (pixels, pixels)}:
        raise UsageError(
            f"model.args.img_size={args['img_size']} and data.image_size={pixels} differ: set both to the same pixels"
        )
    return args if recipe.model.op is None else {"op": recipe.model.op, **args}


def build_model(recipe: Recipe, classes: int, in_chans: int) -> nn.Module:
    """The model with new weights drawn from the recipe's seed, or with those of `model.weights`."""
    from softless.models import create_model

    torch.manual_seed(recipe.seed)
    args = model_args(recipe, classes, in_chans)
    model: nn.Module = create_model(recipe.model.name, drop_path_rate=recipe.drop_path, **args)
    if recipe.model.weights:
        load_start(model, Path(recipe.model.weights))
    _try(model, recipe, in_chans)
    if recipe.grad_checkpointing:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    return model


@torch.no_grad()
def _try(model: nn.Module, recipe: Recipe, in_chans: int) -> None:
    """One blank image, so that a size the model refuses is refused before a folder is made."""
    model.eval()(torch.zeros(1, in_chans, recipe.data.image_size, recipe.data.image_size))
    model.train()


def load_start(model: nn.Module, path: Path) -> None:
    """Start from the weights of a file, of a run folder or of a folder of `save_weights`: fine-tuning.

    A head of another number of classes stays new, and position embeddings of another image size are resampled; both are said.

    Raises:
        UsageError: no such file, not safetensors, or the weights of another model.
    """
    file = path
    if path.is_dir():
        file = path / FILE if (path / FILE).is_file() else path / WEIGHTS
    if not file.is_file():
        raise UsageError(
            f"no weights at {file}: model.weights takes a .safetensors file, a run folder or a folder of save_weights"
        )
    state = _fitted(read_weights(file), model, file)
    new = [name for name in model.state_dict() if name.startswith(_heads(model)) and name not in state]
    fill(model, {**state, **{name: model.state_dict()[name] for name in new}}, file)


def _heads(model: nn.Module) -> tuple[str, ...]:
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or "head"
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def _fitted(state: dict[str, Tensor], model: nn.Module, file: Path) -> dict[str, Tensor]:
    own, heads = model.state_dict(), _heads(model)
    other = [n for n in state if n.startswith(heads) and n in own and state[n].shape != own[n].shape]
    if other:
        old, new = state[other[0]].shape[0], own[other[0]].shape[0]
        _log.warning("%s has a head of %d classes: replaced by a new one of %d", file, old, new)
        state = {name: value for name, value in state.items() if not name.startswith(heads)}
    place = state.get("pos_embed")
    wanted = own.get("pos_embed")
    if place is None or wanted is None or place.shape == wanted.shape or place.shape[-1] != wanted.shape[-1]:
        return state
    state["pos_embed"] = _resampled(place, model)
    _log.warning("%s has position embeddings of another image size: resampled", file)
    return state


def _resampled(place: Tensor, model: nn.Module) -> Tensor:
    from timm.layers import resample_abs_pos_embed

    prefix = int(getattr(model, "num_prefix_tokens", 1))
    grid: Any = model.patch_embed.grid_size  # type: ignore[union-attr]
    resampled: Tensor = resample_abs_pos_embed(place, new_size=list(grid), num_prefix_tokens=prefix)
    return resampled
