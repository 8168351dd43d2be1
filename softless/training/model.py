"""The model of a recipe, and the weights it may start from."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softless.errors import SoftlessError, UsageError
from softless.evaluation.run import CLASSES
from softless.experiment.files import read_classes
from softless.experiment.folder import WEIGHTS
from softless.experiment.recipe import Recipe
from softless.layers.patch_embed import check_size
from softless.models.arguments import takes
from softless.models.files import FILE
from softless.models.given import GIVEN, given_model
from softless.models.sides import sides
from softless.models.state import fill, read_weights
from softless.tasks.classification.task import model_args
from softless.tasks.loaded import assemble
from softless.tasks.task import Task
from softless.words import few

_log = logging.getLogger("softless.training")


def build_model(recipe: Recipe, classes: int, in_chans: int) -> nn.Module:
    """A classifier with new weights drawn from the recipe's seed, or with those of
    `model.weights`: images (B, in_chans, H, W) to logits (B, classes).

    Raises:
        UsageError: the model cannot be built, or takes no images of `data.image_size`.
    """
    args = model_args(recipe, classes, in_chans)
    return assembled(
        recipe, {"architecture": recipe.model.name, "model_args": args}, "classification", in_chans
    )


def build_for(task: Task) -> nn.Module:
    """What a task trains: its model, with new weights drawn from the recipe's seed or those of
    `model.weights`, and what it puts around it.

    Raises:
        UsageError: the model cannot be built, or takes no images of `data.image_size`.
    """
    with _in_one_sentence(task.recipe):
        construction = task.construction()
    return task.surround(
        assembled(
            task.recipe,
            construction,
            task.name,
            task.splits.in_chans,
            task.splits.classes,
            outputs=task.outputs,
        )
    )


@contextmanager
def _in_one_sentence(recipe: Recipe) -> Iterator[None]:
    """Whatever a constructor says of sizes that do not go together is said as the recipe's
    fault.
    """
    try:
        yield
    except SoftlessError:
        raise
    except Exception as error:
        spec, (height, width) = recipe.model, sides(recipe.data.image_size)
        settings = (
            ", ".join(f"model.args.{name}={value}" for name, value in spec.args.items())
            or "its own arguments"
        )
        raise UsageError(
            f"'{spec.name}' cannot be built for images of {height} x {width} with {settings}: "
            f"{' '.join(str(error).split())}"
        ) from error


def assembled(
    recipe: Recipe,
    construction: Mapping[str, Any],
    task: str,
    in_chans: int,
    classes: Sequence[str] = (),
    *,
    outputs: int | None = None,
) -> nn.Module:
    """Assemble, start and try a model: a size that it refuses is refused before a folder is
    made.
    """
    if recipe.model.name == GIVEN:
        return _model_in_python(recipe, in_chans, len(classes) if outputs is None else outputs)
    torch.manual_seed(recipe.seed)
    deep = (
        {"drop_path_rate": recipe.drop_path}
        if takes(recipe.model.name, recipe.model.op, "drop_path_rate")
        else {}
    )
    with _in_one_sentence(recipe):
        model = assemble(
            task, **{**construction, "model_args": {**deep, **construction["model_args"]}}
        )
    _whole_patches(model, *sides(recipe.data.image_size))
    if recipe.model.weights:
        load_start(model, Path(recipe.model.weights), classes)
    with torch.no_grad(), _in_one_sentence(recipe):
        model.eval()(torch.zeros(1, in_chans, *sides(recipe.data.image_size)))
    model.train()
    if recipe.grad_checkpointing:
        host: Any = getattr(model, "host", model)
        with _in_one_sentence(recipe):
            host.set_grad_checkpointing(True)
    return model


def _model_in_python(recipe: Recipe, in_chans: int, classes: int) -> nn.Module:
    """The module that was given, with the weights that it has; it is trained itself, not a copy.

    Raises:
        UsageError: it takes no such image, or does not answer a value for each class.
    """
    model = given_model(recipe.model.args, copied=False)
    height, width = sides(recipe.data.image_size)
    try:
        with torch.no_grad():
            answer = model.cpu().eval()(torch.zeros(2, in_chans, height, width))
    except Exception as error:
        raise UsageError(
            f"the model that was given takes no images of {in_chans} channels and {height} x "
            f"{width} pixels "
            f"({' '.join(str(error).split())[:300]}): set data.in_chans and data.image_size to "
            "what it takes"
        ) from error
    if not isinstance(answer, Tensor) or tuple(answer.shape) != (2, classes):
        returned = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise UsageError(
            f"the model that was given answers {returned} for 2 images, and the data have "
            f"{classes} classes: "
            f"it must answer logits of the shape (2, {classes})"
        )
    return model.train()


def _whole_patches(model: nn.Module, height: int, width: int) -> None:
    """timm's own embedding drops what is left of an image beyond its last whole patch, in
    silence.
    """
    from timm.layers import PatchEmbed

    embed = getattr(model, "patch_embed", None)
    if isinstance(embed, PatchEmbed) and not embed.dynamic_img_pad:
        check_size(height, width, embed.patch_size)


def load_start(model: nn.Module, path: Path, classes: Sequence[str] = ()) -> None:
    """Start from the weights of a file, of a run folder or of a folder of `save_weights`:
    fine-tuning.

    A head of another number of classes stays new, and position embeddings of another image size are
    resampled; both are said. A run knows its classes: a classifier's outputs are put in the order
    of `classes` by name, and those of other names are new.

    Raises:
        UsageError: no such file, not safetensors, or the weights of another model.
        DataError: a class list that cannot be read.
    """
    file = path
    if path.is_dir():
        file = path / FILE if (path / FILE).is_file() else path / WEIGHTS
    if not file.is_file():
        raise UsageError(
            f"no weights at {file}: model.weights takes a .safetensors file, a run folder or a "
            "folder of save_weights"
        )
    state = _named_alike(read_weights(file), model, file, classes)
    # of detectors and segmenters; a classifier's weights start it
    host = getattr(model, "host", None)
    if isinstance(host, nn.Module) and not any(
        name.startswith(_prefix(model, host)) for name in state
    ):
        model, state = host, _without_surplus(state, host, file)
    state = _fitted(state, model, file)
    new = [
        name for name in model.state_dict() if name.startswith(_heads(model)) and name not in state
    ]
    fill(model, {**state, **{name: model.state_dict()[name] for name in new}}, file)


def _named_alike(
    state: dict[str, Tensor], model: nn.Module, file: Path, classes: Sequence[str]
) -> dict[str, Tensor]:
    """The state with each output of its head where the class of that name is now; all that is
    changed or supposed is said.
    """
    own, heads = model.state_dict(), _heads(model)
    same = [
        name
        for name in state
        if name.startswith(heads) and name in own and state[name].shape == own[name].shape
    ]
    if not classes or not same or any(len(state[name]) != len(classes) for name in same):
        return state
    listed = file.parent / CLASSES
    before = read_classes(listed) if listed.is_file() else ()
    if not before:
        _log.warning(
            "%s does not name its classes: its head is kept, and its outputs are taken to be %s",
            file,
            few(classes),
        )
        return state
    if set(before) != set(classes):
        _log.warning(
            "%s has a head for other classes (%s): replaced by a new one", file, few(before)
        )
        return {name: value for name, value in state.items() if name not in same}
    if tuple(before) == tuple(classes):
        return state
    _log.warning(
        "%s has its classes in another order: the outputs of its head are put in the order of the "
        "data",
        file,
    )
    places = torch.tensor([before.index(name) for name in classes])
    return {name: value[places] if name in same else value for name, value in state.items()}


def _prefix(model: nn.Module, host: nn.Module) -> str:
    return next(f"{name}." for name, module in model.named_modules() if module is host)


def _without_surplus(state: dict[str, Tensor], host: nn.Module, file: Path) -> dict[str, Tensor]:
    """What a host without head and class attention has a place for; the rest is said."""
    own = host.state_dict()
    if surplus := [name for name in state if name not in own]:
        _log.warning(
            "%s: %d tensors have no place in the host and are left out, the first %s",
            file,
            len(surplus),
            surplus[0],
        )
    return {name: value for name, value in state.items() if name in own}


def _heads(model: nn.Module) -> tuple[str, ...]:
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or "head"
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def _fitted(state: dict[str, Tensor], model: nn.Module, file: Path) -> dict[str, Tensor]:
    own, heads = model.state_dict(), _heads(model)
    resized = [
        n for n in state if n.startswith(heads) and n in own and state[n].shape != own[n].shape
    ]
    if resized:
        old, new = state[resized[0]].shape[0], own[resized[0]].shape[0]
        _log.warning("%s has a head of %d classes: replaced by a new one of %d", file, old, new)
        state = {name: value for name, value in state.items() if not name.startswith(heads)}
    positions = state.get("pos_embed")
    own_positions = own.get("pos_embed")
    if (
        positions is None
        or own_positions is None
        or positions.shape == own_positions.shape
        or positions.shape[-1] != own_positions.shape[-1]
    ):
        return state
    state["pos_embed"] = _resampled(positions, model)
    _log.warning("%s has position embeddings of another image size: resampled", file)
    return state


def _resampled(positions: Tensor, model: nn.Module) -> Tensor:
    from timm.layers import resample_abs_pos_embed

    prefix = int(getattr(model, "num_prefix_tokens", 1))
    grid: Any = model.patch_embed.grid_size  # type: ignore[union-attr]
    resampled: Tensor = resample_abs_pos_embed(
        positions, new_size=list(grid), num_prefix_tokens=prefix
    )
    return resampled
