"""`load_weights`: checkpoints in our layout, timm's, and those of the papers' codes, into any model
that holds the same tensors.

A layout is a list of names to rename and of projections to join or to split. What is asked of a
file is what the model has: nothing is loaded in part, and every tensor of the file is either loaded
or named with the reason why not.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from timm.models import adapt_input_conv
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from softless.errors import DataError, UsageError, located, need_module
from softless.layers.attention import Attention
from softless.models import config, digests
from softless.models.files import CONFIG, FILE, check_finite, has_checksums, read_tensors
from softless.models.host import WeightLayout
from softless.models.hosts import HOSTS
from softless.models.nearest import build_of, nearest
from softless.models.positions import Size, checked_size, resize, two_sides

Tensors = dict[str, Tensor]
# where scripts keep them
WEIGHTS = (
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "module",
    "net",
    "weights",
    "network",
    "params",
    "student",
)
AVERAGED = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "model_ema_state_dict",
    "teacher",
    "ema",
    "ema_model",
    "params_ema",
)
SECOND = ("model_ema", "ema", "ema_model")  # beside the weights that their script evaluates
# the result of their script, not a second choice
USUAL = tuple(name for name in AVERAGED if name not in SECOND)
# of compile, FSDP, checkpointing and Fabric, which may wrap parts of a model
INSIDE = (
    "_orig_mod.",
    "_fsdp_wrapped_module.",
    "_checkpoint_wrapped_module.",
    "_forward_module.",
)
COUNTERS = ("n_averaged",)  # beside the weights of torch.optim.swa_utils.AveragedModel
# of DataParallel, compile, trainers
WRAPPERS = (
    "module.",
    "_orig_mod.",
    "model.",
    "net.",
    "student.",
    "teacher.",
    "encoder.",
)
BACKBONE = "backbone."  # what self-supervised scripts call the model below their projection
DEEP = 4  # wrappers around each other; a file may hold one that is inside itself
SHOWN = 3  # tensors of either side in a refusal


LAYOUTS = tuple(layout for host in HOSTS.values() for layout in host.layouts)


@dataclass(frozen=True)
class Loaded:
    """What became of a file's tensors, by name; prints as a few lines."""

    layout: str
    loaded: int
    taken: str = ""  # which of several state dicts, and what lay around the names
    # of the file -> of the model; joined and split ones among them
    renamed: Mapping[str, str] = field(default_factory=dict)
    resized: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)  # of the file, not loaded -> why
    kept: tuple[str, ...] = ()  # of the model, not in the file: the operator's own, or a new head
    # tables of positions of which nothing says the grid -> the one that they were taken for
    assumed: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            (
                f"{self.loaded} tensors loaded from {self.layout}; {len(self.renamed)} of the "
                "file's "
                "have another name here"
            )
        ]
        lines += [f"  taken    {self.taken}"] if self.taken else []
        lines += [
            f"  resized  {name}: {before} to {after}"
            for name, (before, after) in self.resized.items()
        ]
        lines += [f"  assumed  {doubt}" for doubt in self.doubts()]
        lines += [f"  left     {name}: {why}" for name, why in self.left.items()]
        lines += [f"  kept     {name}: as the model had it" for name in self.kept]
        return "\n".join(lines)

    def doubts(self) -> list[str]:
        """What was assumed, a sentence each: callers that return no `Loaded` log them."""
        return [
            f"{name}: its places are those of {grid[0]} x {grid[1]}, which nothing in the file "
            "says (image_size= does)"
            for name, grid in self.assumed.items()
        ]


def load_weights(
    model: nn.Module,
    source: str | Path | Mapping[str, Any],
    *,
    averaged: bool | None = None,
    head: Literal["same", "new"] = "same",
    image_size: Size | None = None,
    allow_nonfinite: bool = False,
) -> Loaded:
    """Load a checkpoint into a model, whatever of these layouts it has: ours, timm's
    (ViT, DeiT, XCiT), or that of the code of SimA, XCiT, SOFT, CvT or DeiT.

    Files are read without executing anything in them, and compared with the digests that
    `save_weights` left beside them. Tables of positions are resized to the model's size. A table
    does not say its grid; a folder of `save_weights` and `image_size` do. Else one of the model's
    own number of places is taken for the model's grid, and another for a square. `Loaded.assumed`
    says which, and one whose own neighbours tell another grid is refused. On an error the model is
    as it was.

    Args:
        model: from `softless.create_model` or timm, of the file's sizes.
        source: a folder of `save_weights`, a .safetensors file, a .pth or .pt file, or a state
            dict; also wrapped as training scripts do ("state_dict", "model", "teacher", …), beside
            their options and optimiser, and with "module.", "_orig_mod." or the like before every
            name.
        averaged: of a file that holds averaged weights too, take those. None takes them where their
            script does: beside "state_dict", as SOFT is evaluated, and DINO's teacher.
            `Loaded.taken` says which were.
        head: "same" loads the classifier; "new" leaves the model's, for other classes, and passes
            over the file's where the model has none.
        image_size: pixels (height, width), or of a square's side, of the images that the file's
            positions were made for.
        allow_nonfinite: load NaN and infinity too.

    Returns:
        What was taken: tensors, layout, and what was assumed of them.

    Raises:
        DataError: no file, one that is not a checkpoint or not as it was saved, or tensors with NaN
            or infinity.
        UsageError: tensors that do not fit, lack, or have no place; the message names the first
            few.

    Examples:
        >>> model = softless.create_model("sima_deit_tiny_patch16_224", depth=2)
        >>> folder = softless.save_weights(model, "trained")
        >>> print(softless.load_weights(model, folder))
        32 tensors loaded from our layout or timm's; 0 of the file's have another name here
    """
    need_module(model, "load_weights")
    pixels = None if image_size is None else checked_size(image_size)
    return _load(
        model,
        source,
        averaged=averaged,
        head=head,
        image_size=pixels,
        allow_nonfinite=allow_nonfinite,
    )


def fill(model: nn.Module, folder: Path, *, head: Literal["same", "new"]) -> Loaded:
    """Load a folder of `save_weights` into a model built from it with another number of channels,
    or for its maps alone, as timm does.

    Raises:
        DataError: as `load_weights`.
        UsageError: as `load_weights`.
    """
    # a host whose last layers and classifier may be cut off
    if isinstance(model, FeatureGetterNet):
        return _load(model.model, folder, head=head, cut=True)
    return _load(model, folder, head=head, channels=True)


def _load(
    model: nn.Module,
    source: str | Path | Mapping[str, Any],
    *,
    averaged: bool | None = None,
    head: Literal["same", "new"] = "same",
    image_size: tuple[int, int] | None = None,
    allow_nonfinite: bool = False,
    cut: bool = False,
    channels: bool = False,
) -> Loaded:
    """`load_weights`; `cut`: the file's tensors without a place are left; `channels`: its first
    layer is fitted to the model's.
    """
    content, title, unguarded = _read(source)
    own_tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    persistent = {name: own_tensors[name] for name in model.state_dict() if name in own_tensors}
    unwrapped = _unwrapped(content, title, averaged, persistent, unguarded)
    state, title = unwrapped.tensors, unwrapped.title
    if not allow_nonfinite:
        check_finite(state.items(), title)
    layout = next(
        (
            candidate
            for candidate in LAYOUTS
            if any(re.fullmatch(candidate.told_by, name) for name in state)
        ),
        None,
    )
    _refuse_unsaid(model, layout, title)
    tensors, renamed = as_here(state, layout, persistent)
    unread = dict(unwrapped.unread)
    untouched: list[str] = []
    if head == "new":
        classifier = _classifier(model)
        untouched += [name for name in persistent if classifier.match(name)]
        for name in [name for name in tensors if classifier.match(name)]:
            unread[name] = 'head="new"'
            del tensors[name]
    if channels:
        fit_channels(model, tensors, persistent)
    resized, assumed = resize(model, tensors, persistent, image_size or _image_size_of(source))
    own = {name for name in persistent if ".learned." in name}
    for name in [name for name in tensors if name not in persistent]:
        if why := _needless(name, tensors[name]):
            unread[name] = why
            del tensors[name]
    missing = [name for name in persistent if name not in tensors and name not in untouched]
    untouched += [name for name in missing if name in own or name.endswith("num_batches_tracked")]
    # what is missing tells another model: then the rest does not fit either
    if cut and set(missing) <= set(untouched):
        unread |= _cut_off(tensors, persistent)
    problems = [
        *_shown(_without_place(tensors, persistent, head, _classifier(model))),
        *_shown([
            f"{name} {tuple(persistent[name].shape)} is missing"
            for name in missing
            if name not in untouched
        ]),
    ]
    if problems:
        raise UsageError(
            f"{title} does not fit this model "
            f"({layout.name if layout else 'read as ours or timm’s'}): "
            f"{'; '.join(problems)}"
            f"{_of_another(tensors, persistent)}{_of_adapter(tensors)}"
        )
    with torch.no_grad():
        for name, value in tensors.items():
            persistent[name].copy_(value)
    return Loaded(
        layout.name if layout else "our layout or timm's",
        len(tensors),
        unwrapped.choice,
        {old: new for old, new in renamed.items() if new in tensors},
        resized,
        unread,
        tuple(sorted(untouched)),
        assumed,
    )


def _cut_off(tensors: Tensors, own_tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Take the tensors of layers that a model of maps has left out; their names, and why."""
    beyond = [name for name in tensors if name not in own_tensors]
    for name in beyond:
        del tensors[name]
    return dict.fromkeys(beyond, "the model gives maps and has no place for it")


def _refuse_unsaid(model: nn.Module, layout: WeightLayout | None, title: str) -> None:
    """Weights of a published code belong to its function: a model that computes another one must
    have been asked to.

    Raises:
        UsageError: the model computes its operator's default, and nobody said so.
    """
    trained_as = () if layout is None else layout.trained_as
    attentions = (
        module
        for module in model.modules()
        if isinstance(module, Attention) and module.op.name in trained_as
    )
    if layout is not None and any("parity" not in attention.options for attention in attentions):
        raise UsageError(
            f"{title} is of {layout.name}, which computes another inverse than this model by "
            "default: build the model with parity=True for the published "
            "function, or with parity=False for ours (docs/fidelity.md says how far apart they are)"
        )


def _image_size_of(source: str | Path | Mapping[str, Any]) -> tuple[int, int] | None:
    """The pixels (height, width) that the config.json of a folder of `save_weights` tells, where
    the source is one or lies in one.
    """
    if isinstance(source, Mapping):
        return None
    path = located(source)
    if path.is_dir():
        if not (path / CONFIG).is_file():  # of other tools
            return None
    else:
        if path.name != FILE or not (
            path.with_name(CONFIG).is_file() and path.with_name(digests.DIGESTS).is_file()
        ):
            return None
        path = path.parent
        digests.check(path / CONFIG)
    stored = config.read(path / CONFIG)
    return two_sides(
        stored.built.arguments.get("img_size") or (stored.about.get("input_size") or [0, 0, 0])[1:]
    )


def _read(source: str | Path | Mapping[str, Any]) -> tuple[Mapping[str, Any], str, str]:
    """What the file holds, what to call it, and what it cannot show."""
    if isinstance(source, Mapping):
        return source, "the state dict", ""
    path = located(source)
    if path.is_dir():
        digests.check(path / CONFIG)
        path /= FILE
    content = read_tensors(path, allow_nonfinite=True)
    return (
        content,
        str(path),
        "" if has_checksums(path) else "a file from before torch 1.6, which has no checksums",
    )


class Unwrapped(NamedTuple):
    """The tensors of a checkpoint, under the names that their model gives them."""

    tensors: Tensors
    title: str  # the file, and which of its state dicts
    choice: str  # what was chosen and cut off, in words
    unread: dict[str, str]  # tensors that are not the model's -> why


def _unwrapped(
    content: Mapping[str, Any],
    title: str,
    averaged: bool | None,
    own_tensors: Mapping[str, Tensor],
    unguarded: str,
) -> Unwrapped:
    """The tensors of a checkpoint, without the wrappers of training scripts.

    Args:
        content: what a file holds.
        title: what to call it.
        averaged: take averaged weights; None takes them where their script does.
        own_tensors: the model's own tensors: a prefix that one of their names has too is no wrapper.
        unguarded: what the file cannot show, in words.

    Raises:
        UsageError: averaged weights are asked for, and there are none.
        DataError: no tensors under names.
    """
    choices: list[str] = []
    chosen: str | None = ""
    wrappers: list[str] = []
    unread: dict[str, str] = {}
    # a state dict may hold several models in its turn
    while chosen is not None and len(wrappers) < DEEP:
        content, beside = _parted(content, own_tensors)
        unread |= dict.fromkeys(beside, "it lies beside the models of the file")
        states = [name for name in (*AVERAGED, *WEIGHTS) if _is_state(content.get(name))]
        chosen = _chosen(states, averaged)
        if chosen is not None:
            rejected = [f"'{name}'" for name in states if name != chosen]
            choices += [f"'{chosen}', and not {' or '.join(rejected)}"] if rejected else []
            content, title = content[chosen], f"{title} [{chosen}]"
            wrappers.append(chosen)
    if averaged and not {*wrappers} & {*AVERAGED}:
        raise UsageError(
            f"{title} has no averaged weights ({', '.join(AVERAGED)}): leave averaged out"
        )
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise DataError(
            f"{title} holds no tensors under names: pass a state dict, or a file that holds one"
        )
    tensors, apart, cut = _bare(tensors, own_tensors)
    choices += [f"names without their '{cut}'"] if cut else []
    choices += [unguarded] if unguarded else []
    return Unwrapped(tensors, title, "; ".join(choices), unread | apart)


def _chosen(states: list[str], averaged: bool | None) -> str | None:
    """Which of several state dicts, averaged ones first; `averaged` None takes those where their
    script does.
    """
    accepted = AVERAGED if averaged else USUAL if averaged is None else ()
    return next(
        iter([
            *(name for name in states if name in accepted),
            *(name for name in states if name in WEIGHTS),
        ]),
        None,
    )


def _parted(
    content: Mapping[str, Any], own_tensors: Mapping[str, Tensor]
) -> tuple[Mapping[str, Any], list[str]]:
    """The state dicts of a module that holds several models, as students and teachers, each under
    its own name; and what it has beside them.
    """
    names = [str(name) for name, value in content.items() if isinstance(value, Tensor)]
    models = {name.partition(".")[0] for name in names} & {*WEIGHTS, *AVERAGED}
    models -= {name.partition(".")[0] for name in own_tensors}
    if len(models) < 2:
        return content, []
    parts = {
        model: {
            name.removeprefix(f"{model}."): content[name]
            for name in names
            if name.startswith(f"{model}.")
        }
        for model in sorted(models)
    }
    return parts, [name for name in names if name.partition(".")[0] not in models]


def _is_state(content: Any, deep: int = DEEP) -> bool:
    """Whether there are tensors under names, or a wrapper around some, as averages are held beside
    their counters.
    """
    if not isinstance(content, Mapping) or not deep:
        return False
    inner = (content.get(name) for name in (*AVERAGED, *WEIGHTS))
    return any(isinstance(value, Tensor) for value in content.values()) or any(
        _is_state(value, deep - 1) for value in inner
    )


def _bare(
    tensors: Tensors, own_tensors: Mapping[str, Tensor]
) -> tuple[Tensors, dict[str, str], str]:
    """The tensors without what trainers write before every name; those beside a backbone, with why;
    and what was cut off.
    """
    unread = {
        name: "a counter of averaging"
        for name in COUNTERS
        if name in tensors and name not in own_tensors
    }
    tensors = {name: value for name, value in tensors.items() if name not in unread}
    cut = ""

    def ours(start: str) -> bool:
        return any(name.startswith(start) for name in own_tensors)

    while True:
        start = next(
            (
                wrapper
                for wrapper in WRAPPERS
                if all(name.startswith(wrapper) for name in tensors) and not ours(wrapper)
            ),
            None,
        )
        if (
            start is None
            and any(name.startswith(BACKBONE) for name in tensors)
            and not ours(BACKBONE)
        ):
            start = BACKBONE
            beside = [name for name in tensors if not name.startswith(BACKBONE)]
            unread |= dict.fromkeys(
                beside, "it lies beside the backbone: a projection of self-supervised training"
            )
        if (
            start is None
            and (start := _whole_below(tensors, own_tensors)) is not None
            and not ours(start)
        ):
            beside = [name for name in tensors if not name.startswith(start)]
            unread |= dict.fromkeys(
                beside, f"it lies beside the model, which is whole under '{start}'"
            )
        if start is None or ours(start):
            break
        tensors = {
            name.removeprefix(start): value
            for name, value in tensors.items()
            if name.startswith(start)
        }
        cut += start
    for part in INSIDE:
        if any(part in name for name in tensors) and not any(part in name for name in own_tensors):
            tensors = {name.replace(part, ""): value for name, value in tensors.items()}
            cut += part
    return tensors, unread, cut


def _whole_below(tensors: Tensors, own_tensors: Mapping[str, Tensor]) -> str | None:
    """What a trainer writes before the model's names where others lie beside them, as a loss's own:
    every tensor of the model has it.
    """
    return next(
        (
            wrapper
            for wrapper in WRAPPERS
            if own_tensors and all(f"{wrapper}{name}" in tensors for name in own_tensors)
        ),
        None,
    )


def _classifier(model: nn.Module) -> re.Pattern[str]:
    """The names of a classifier, as the model's configuration tells them and as ours are."""
    configured = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    names = {"head", "head_dist", *((configured,) if isinstance(configured, str) else configured)}
    return re.compile(rf"({'|'.join(re.escape(name) for name in sorted(names))})\.")


def as_here(
    state: Tensors, layout: WeightLayout | None, own_tensors: Mapping[str, Tensor]
) -> tuple[Tensors, dict[str, str]]:
    """The tensors under the model's names, and which of them had another one."""
    tensors: Tensors = {}
    renamed: dict[str, str] = {}
    for name, value in state.items():
        new = name
        for pattern, to in layout.renames if layout else ():
            new = re.sub(pattern, to, new)
        tensors[new] = value
        if new != name:
            renamed[name] = new
    before = {new: old for old, new in renamed.items()}
    for name in own_tensors:
        if name in tensors:
            continue
        for joined, parts in _projections(name):
            if all(part in tensors for part in parts):
                tensors[name] = torch.cat([tensors.pop(part) for part in parts])
                renamed.update({before.get(part, part): name for part in parts})
                break
            if joined in tensors and len(parts) > 1:
                for part, rows in zip(parts, tensors[joined].chunk(len(parts)), strict=True):
                    tensors[part] = rows
                renamed[before.get(joined, joined)] = name
                del tensors[joined]
                break
    return tensors, renamed


def _projections(name: str) -> list[tuple[str, list[str]]]:
    """For a tensor that the model has: names of one projection for q, k, v together, and of its
    parts, either of which may be in a file.
    """
    match = re.fullmatch(r"(.*\.)(qkv|qv|q|k|v)\.(weight|bias)", name)
    if not match:
        return []
    start, projection, part = match.groups()
    three, two = (
        [f"{start}{letter}.{part}" for letter in "qkv"],
        [f"{start}{letters}.{part}" for letters in ("q", "kv")],
    )
    if projection == "qkv":
        return [("", three), ("", two)]
    if projection == "qv":
        return [("", [f"{start}{letter}.{part}" for letter in "qv"])]
    return [(f"{start}qkv.{part}", three)]


def fit_channels(model: nn.Module, tensors: Tensors, own_tensors: Mapping[str, Tensor]) -> None:
    """The first convolution for images of another number of channels, as timm fits it."""
    configured = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv") or ()
    for name in [
        f"{path}.weight" for path in ((configured,) if isinstance(configured, str) else configured)
    ]:
        if name in tensors and name in own_tensors and tensors[name].ndim == 4:
            tensors[name] = _of_channels(tensors[name], own_tensors[name].shape[1])


def _of_channels(weight: Tensor, channels: int) -> Tensor:
    """The weight (out, in, h, w) of a convolution for so many channels."""
    before = weight.shape[1]
    if channels == before:
        return weight
    try:
        return (
            adapt_input_conv(channels, weight)
            if before == 3
            else adapt_input_conv(channels, weight, before)
        )
    except TypeError as error:  # before timm 1.0.31
        raise UsageError(
            "this timm fits weights for images of 3 channels to others, and these are for "
            f"{before}: install timm 1.0.31 or later"
        ) from error


def _needless(name: str, value: Tensor) -> str:
    """Why a tensor of the file may be left: it is a part of another operator that this one has no
    place for.
    """
    if name.endswith("num_batches_tracked"):
        return "a counter"
    if ".learned." in name:
        return (
            f"{name.rsplit('.', 1)[-1]} {tuple(value.shape)} belongs to the operator that the "
            "file was trained with"
        )
    return ""


def _of_another(tensors: Tensors, own_tensors: Mapping[str, Tensor]) -> str:
    """Which named model the file is of, or next to, where it is built otherwise than this one."""
    build = build_of(tensors)
    named = None if build is None or build == build_of(own_tensors) else nearest(tensors)
    if named is None:
        return ""
    name, same = named
    return (
        f"; by its tensors the file is of '{name}'"
        if same
        else f"; the nearest named model is '{name}'"
    )


def _of_adapter(tensors: Tensors) -> str:
    """The way out for a file of an adapter, which is no model."""
    return (
        "; it holds a LoRA adapter: merge it (merge_and_unload of peft) and save the model's "
        "state dict"
        if any(".lora_" in name for name in tensors)
        else ""
    )


def _without_place(
    tensors: Tensors, own_tensors: Mapping[str, Tensor], head: str, classifier: re.Pattern[str]
) -> list[str]:
    """The file's tensors that do not fit, in words; those of the classifier first."""
    problems = []
    for name, value in tensors.items():
        way = ""
        if classifier.match(name) and head == "same":
            way = ' (other classes: pass head="new" to keep the model’s classifier)'
            if not any(classifier.match(own_name) for own_name in own_tensors):
                way = ' (the model has no classifier: pass head="new" to leave the file’s)'
        if name not in own_tensors:
            problems.append(f"{name} {tuple(value.shape)} has no place in the model{way}")
        elif own_tensors[name].is_floating_point() and not value.is_floating_point():
            kinds = [str(x.dtype).removeprefix("torch.") for x in (value, own_tensors[name])]
            problems.append(
                f"{name} is {kinds[0]} in the file and {kinds[1]} in the model, and no cast makes "
                "one of the other"
            )
        elif value.shape != own_tensors[name].shape:
            if name.rsplit(".", 1)[-1] == "pos_embed":
                way = (
                    " (a table of positions does not say its grid: pass image_size= of the "
                    "images that it was made for)"
                )
            problems.append(
                f"{name} is {tuple(value.shape)} in the file and "
                f"{tuple(own_tensors[name].shape)} in the model{way}"
            )
    return sorted(problems, key=lambda line: "head=" not in line)


def _shown(problems: list[str]) -> list[str]:
    remaining = len(problems) - SHOWN
    if remaining <= 0:
        return problems[:SHOWN]
    clause = "are missing" if "is missing" in problems[0] else "of the file"
    return [*problems[:SHOWN], f"and {remaining} more {clause}"]
