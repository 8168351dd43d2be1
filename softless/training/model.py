"""The model of a recipe, and the weights it may start from."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softless.attention.registry import get
from softless.convert.carry import carried
from softless.errors import SoftlessError, UsageError
from softless.evaluation.run import CLASSES
from softless.experiment.files import read_classes
from softless.experiment.recipe import Recipe
from softless.layers.patch_embed import check_size
from softless.models.arguments import takes
from softless.models.create import create_model
from softless.models.given import GIVEN, given_model
from softless.models.options import COMPANIONS
from softless.models.positions import resize
from softless.models.sides import sides
from softless.models.state import fill, read_weights
from softless.models.weights import fit_channels
from softless.tasks.classification.task import model_args
from softless.tasks.loaded import assemble
from softless.tasks.task import Task
from softless.training.start import (
    Start,
    exchanges,
    file_at,
    host_of,
    operator_of,
    start_of,
)
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


def build_for(
    task: Task,
    *,
    drawn: bool = False,
    recover: Callable[[nn.Module], None] | None = None,
) -> nn.Module:
    """What a task trains: its model, with new weights drawn from the recipe's seed or those that it
    starts from, and what it puts around it.

    Args:
        task: whose recipe and data say what the model is.
        drawn: leave the weights as they are drawn, for those of a checkpoint.
        recover: what is done to the model before something is put around it.

    Raises:
        UsageError: the model cannot be built, or takes no images of `data.image_size`.
    """
    with _in_one_sentence(task.recipe):
        construction = task.construction()
    model = assembled(
        task.recipe,
        construction,
        task.name,
        task.splits.in_chans,
        task.splits.classes,
        outputs=task.outputs,
        drawn=drawn,
        trial=task.trial,
    )
    if recover is not None:
        recover(model)
    return task.surround(model)


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
    drawn: bool = False,
    trial: Callable[[], tuple[Tensor, ...]] | None = None,
) -> nn.Module:
    """Assemble, start and try a model: a size that it refuses is refused before a folder is
    made.

    `drawn` leaves the weights as the seed draws them, for those of a checkpoint. `trial` makes what
    it is tried on; None is an image.
    """
    start = None if drawn else start_of(recipe.model)
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
    if start is not None:
        _begin(model, start, recipe, construction, classes)
    with torch.no_grad(), _in_one_sentence(recipe):
        image = (torch.zeros(1, in_chans, *sides(recipe.data.image_size)),)
        model.eval()(*(image if trial is None else trial()))
    model.train()
    if recipe.grad_checkpointing:
        host: Any = getattr(model, "host", model)
        with _in_one_sentence(recipe):
            host.set_grad_checkpointing(True)
    return model


def _begin(
    model: nn.Module,
    start: Start,
    recipe: Recipe,
    construction: Mapping[str, Any],
    classes: Sequence[str],
) -> None:
    """Put first weights into a model, those of another attention through a model that has it."""
    if start.file is not None and not exchanges(recipe.model, start):
        load_start(model, start.file, classes, start.pixels, start.classes)
        return
    if start.file is not None and hasattr(model, "host"):
        _log.warning(
            "%s was trained with '%s', and the model has another attention: its weights are "
            "taken as they are",
            start.title,
            start.operator,
        )
        load_start(model, start.file, classes, start.pixels, start.classes)
        return
    origin = origin_of(recipe, start, construction["model_args"], classes)
    try:
        model.load_state_dict(carried(origin.state_dict(), model.state_dict())[0])
    except UsageError as error:
        raise UsageError(f"{start.title} cannot start '{recipe.model.name}': {error}") from error


def origin_for(task: Task) -> nn.Module:
    """The model that the weights of a run are of, with them; what was said of them is not said
    again.
    """
    start = start_of(task.recipe.model)
    assert start is not None
    args = task.construction()["model_args"]
    return origin_of(task.recipe, start, args, task.splits.classes, again=True)


def origin_of(
    recipe: Recipe,
    start: Start,
    model_args: Mapping[str, Any],
    classes: Sequence[str],
    *,
    again: bool = False,
) -> nn.Module:
    """The model that the weights are of, with them, in evaluation mode: at this image size, for
    these channels and classes.

    `again` says nothing of what is fitted to them: it was said.

    Raises:
        UsageError: the recipe adds to the attention what the weights have not, or they are not of
            this host.
        DataError: weights that cannot be downloaded or read.
    """
    host, op = host_of(recipe.model.name, recipe.model.op)
    own = operator_of(host, op)
    options = {*get(own).options} if own else set()
    added = [
        name
        for name in COMPANIONS
        if model_args.get(name) and start.options.get(name) != model_args[name]
    ]
    if added:
        raise UsageError(
            f"model.args.{added[0]}={model_args[added[0]]} is a part of the attention that "
            f"{start.title} have no weights of: leave it out"
        )
    args = {
        name: value
        for name, value in model_args.items()
        if name not in {"op", *options, *COMPANIONS}
    } | start.options
    start_op = start.op
    if "lpi" in args and start_op is None:  # an option of hosts with a named operator
        start_op = start.operator
    with torch.random.fork_rng(devices=[]), _in_one_sentence(recipe):
        torch.manual_seed(recipe.seed)
        origin = create_model(host, start_op, pretrained=start.file is None, **args)
    if start.file is not None:
        with _quiet(again):
            load_start(origin, start.file, classes, start.pixels, start.classes)
    elif not again and _kept_head(origin, len(classes)):
        _log.warning(
            "%s have %d classes as the data: their head is kept, and its outputs are taken to be "
            "%s",
            start.title,
            len(classes),
            few(classes),
        )
    return origin.eval()


@contextmanager
def _quiet(quiet: bool) -> Iterator[None]:
    """Nothing is logged within it."""
    before = _log.disabled
    _log.disabled = before or quiet
    try:
        yield
    finally:
        _log.disabled = before


def _kept_head(model: nn.Module, classes: int) -> bool:
    configuration = getattr(model, "pretrained_cfg", None) or {}
    return bool(classes) and configuration.get("num_classes") == classes


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


def load_start(
    model: nn.Module,
    path: Path,
    classes: Sequence[str] = (),
    pixels: tuple[int, int] | None = None,
    named: Sequence[str] = (),
) -> None:
    """Start from the weights of a file, of a run folder or of a folder of `save_weights`:
    fine-tuning.

    A head of another number of classes stays new, position embeddings of another image size are
    resampled, and a first layer for other channels is fitted as timm does; all is said. A run knows
    its classes: a classifier's outputs are put in the order of `classes` by name, and those of
    other names are new.

    Args:
        model: it must have the file's tensors.
        path: of the file or the folder.
        classes: of the data.
        pixels: height and width of the images that the file's positions were made for, where that
            is known.
        named: the classes of the file's head, where no list of a run lies beside it.

    Raises:
        UsageError: no such file, not safetensors, or the weights of another model.
        DataError: a class list that cannot be read.
    """
    file = file_at(path)
    state = _named_alike(read_weights(file), model, file, classes, named)
    # of detectors and segmenters; a classifier's weights start it
    host = getattr(model, "host", None)
    if isinstance(host, nn.Module) and not any(
        name.startswith(_prefix(model, host)) for name in state
    ):
        model, state = host, _without_surplus(state, host, file)
    state = _fitted(state, model, file, pixels)
    new = [
        name for name in model.state_dict() if name.startswith(_heads(model)) and name not in state
    ]
    fill(model, {**state, **{name: model.state_dict()[name] for name in new}}, file)


def _named_alike(
    state: dict[str, Tensor],
    model: nn.Module,
    file: Path,
    classes: Sequence[str],
    named: Sequence[str],
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
    before = read_classes(listed) if listed.is_file() else named
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


def _fitted(
    state: dict[str, Tensor], model: nn.Module, file: Path, pixels: tuple[int, int] | None
) -> dict[str, Tensor]:
    own, heads = model.state_dict(), _heads(model)
    resized = [
        n for n in state if n.startswith(heads) and n in own and state[n].shape != own[n].shape
    ]
    if resized:
        old, new = state[resized[0]].shape[0], own[resized[0]].shape[0]
        _log.warning("%s has a head of %d classes: replaced by a new one of %d", file, old, new)
        state = {name: value for name, value in state.items() if not name.startswith(heads)}
    shapes = {name: value.shape for name, value in state.items()}
    fit_channels(model, state, own)
    for name, value in state.items():
        if value.shape != shapes[name]:
            _log.warning(
                "%s is for images of %d channels: %s is fitted to %d",
                file,
                shapes[name][1],
                name,
                value.shape[1],
            )
    if resize(model, state, own, pixels)[0]:
        _log.warning("%s has position embeddings of another image size: resampled", file)
    return state
