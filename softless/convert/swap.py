"""`swap`: exchange the attention of an existing model, keeping its projections, and say what was done."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.models.cait import Cait
from timm.models.xcit import Xcit
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from softless.attention import Operator, get
from softless.attention.attend import check_options
from softless.convert.adapters import ADAPTERS, looks_like_attention, no_adapter
from softless.convert.modules import Gained, ReducedAttention, features_of
from softless.errors import UsageError, need_module
from softless.layers import Attention, SharedGrid
from softless.layers.plain import place_of, refuse_empty, weights_of, why_changed


@dataclass(frozen=True)
class Swapped:
    """What became of each attention of a model, by path; prints as lines."""

    op: str
    swapped: Mapping[str, str]  # path -> the class that was there
    kept: Mapping[str, str]  # path -> why
    lost: Mapping[str, str] = field(default_factory=dict)  # path -> what `force` gave up
    gains: Mapping[str, float] = field(default_factory=dict)  # path -> the factor that its projection was multiplied by
    tied: str = ""  # how q and k became one

    def __str__(self) -> str:
        said = [f"{len(self.swapped)} attention modules now compute '{self.op}', {len(self.kept)} are kept"]
        said += [f"  swapped  {path} ({kind})" + (f", gain {self.gains[path]:.3g}" if path in self.gains else "") for path, kind in self.swapped.items()]  # fmt: skip
        said += [f"  kept     {path}: {why}" for path, why in self.kept.items()]
        said += [f"  lost     {path}: {what}" for path, what in self.lost.items()]
        return "\n".join([*said, *([self.tied] if self.tied else [])])


def swap(model: nn.Module, op: str | Operator | type[Attention] = "sima", *, layers: str | Sequence[str] = "*", force: str | Sequence[str] = (), calibrate: Tensor | None = None, **options: Any) -> Swapped:  # fmt: skip
    """Exchange attention in a timm model, in place, keeping projections and everything around them.

    ViT, DeiT, DeiT-III, FlexiViT, EVA and other models with rotary positions, XCiT, CaiT, PVT-v2 and BEiT have adapters. What would be
    lost (a relative position bias, talking heads) is a reason to keep a layer, which `force` overrules layer by layer.

    Args:
        model: the model; on an error it is as it was.
        op: the operator: its name, its record, or its class, as `softless.SimA.with_options(token_scale="tokens")`.
        layers: patterns of the paths of attention modules ("blocks.[0-5].*"); the others are kept.
        force: patterns of the paths at which what would be lost may be lost.
        calibrate: images (B, C, h, w): each branch is multiplied by one number, folded into its projection, so that on them it has the
            size that it had. A bare swap leaves SimA's branch some fourteen times weaker than softmax's.
        **options: of the operator.

    Returns:
        What was swapped, kept and why, with the gains.

    Raises:
        UsageError: unknown operator or option, patterns that fit nothing, or a model in which nothing can be swapped.
    """
    need_module(model, "swap")
    record, options = _operator(op, options)
    check_options(record, options)
    if calibrate is not None:
        refuse_empty(model, "calibrate")
    chosen, kept, lost = _chosen(model, record, options, _patterns(layers), _patterns(force))
    if not chosen:
        reasons = "; ".join(dict.fromkeys(kept.values())) or _nothing_there(model, record)
        raise UsageError(f"nothing to swap in {type(model).__name__}: {reasons}")
    told, tokens = SharedGrid(), _tokens(model)
    built = {path: _built(path, module, record, options, told, tokens) for path, module in chosen.items()}
    looking = any(
        one.looks_at_the_grid for ours in built.values() for one in ours.modules() if isinstance(one, Attention)
    )
    telling = looking and not any(isinstance(ours, ReducedAttention) for ours in built.values())  # those are passed it
    teller = _tell(model, told) if telling else None
    try:
        before = _branches(model, list(built), calibrate) if calibrate is not None else {}
    except BaseException:
        if teller is not None:
            teller.remove()
        raise
    for path, ours in built.items():
        model.set_submodule(path, ours)
    gains = _calibrated(model, before)
    mean = "q and k are tied: their common projection is the mean of both" if record.wants("tied_qk", options) else ""
    return Swapped(record.name, {path: type(one).__name__ for path, one in chosen.items()}, kept, lost, gains, mean)


def _nothing_there(model: nn.Module, record: Operator) -> str:
    """Why a model has nothing to swap."""
    ours = sorted({one.op.name for one in model.modules() if isinstance(one, Attention)})
    if not ours:
        return "it has no attention module that softless knows"
    return (
        f"its attention is softless's already: {', '.join(ours)}; build its host with softless.create_model(host, op='{record.name}') and load "
        "the weights there"
    )


def _operator(op: str | Operator | type[Attention], options: Mapping[str, Any]) -> tuple[Operator, dict[str, Any]]:
    """The record behind a name or a class of attention, with the options that the class has fixed."""
    if not isinstance(op, type):
        return get(op), {**options}
    if not issubclass(op, Attention) or op.fixed_op is None:
        raise UsageError(f"op={op.__name__}: give an operator's name, as 'sima', or its class, as softless.SimA")
    return get(op.fixed_op), {**op.fixed_options, **options}


def _patterns(given: str | Sequence[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def _chosen(
    model: nn.Module, record: Operator, options: Mapping[str, Any], layers: list[str], force: list[str]
) -> tuple[dict[str, nn.Module], dict[str, str], dict[str, str]]:
    """The modules to exchange, the reasons of those that are kept, and what is given up."""
    seen = {path: one for path, one in model.named_modules() if type(one) in ADAPTERS or looks_like_attention(one)}
    for pattern in [*layers, *force]:
        if seen and not any(fnmatch.fnmatch(path, pattern) for path in seen):
            listed = ", ".join(list(seen)[:6]) + (" …" if len(seen) > 6 else "")
            raise UsageError(f"no attention module fits {pattern!r}; there are {listed}")
    kept: dict[str, str] = {}
    lost: dict[str, str] = {}
    for path, module in seen.items():
        if not any(fnmatch.fnmatch(path, pattern) for pattern in layers):
            kept[path] = "not among the layers asked for"
        elif why := _in_the_way(module, record, options):
            kept[path] = why
        elif loss := ADAPTERS[type(module)].loses(module) or _watched(module):
            if any(fnmatch.fnmatch(path, pattern) for pattern in force):
                lost[path] = loss
            else:
                kept[path] = f"{loss} (force= with its path gives it up)"
    return {path: module for path, module in seen.items() if path not in kept}, kept, lost


def _watched(module: nn.Module) -> str:
    """What somebody did to a module, and to its dropout, that the new one will not have."""
    drop = getattr(module, "attn_drop", None)
    why = why_changed(module) or (why_changed(drop) if isinstance(drop, nn.Module) else "")
    return f"{why}, and a new module takes its place" if why else ""


def _in_the_way(module: nn.Module, record: Operator, options: Mapping[str, Any]) -> str | None:
    """Why a module cannot be exchanged at all."""
    adapter = ADAPTERS.get(type(module))
    if adapter is None:
        return no_adapter(module)
    return adapter.cannot(module, record, options)


def _built(path: str, theirs: nn.Module, record: Operator, options: Mapping[str, Any], told: SharedGrid, tokens: int | None) -> nn.Module:  # fmt: skip
    """Our module for a place; nothing of the model is changed by it."""
    try:
        ours = ADAPTERS[type(theirs)].build(theirs, record, options)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    for module in ours.modules():
        if isinstance(module, Attention):
            if tokens is not None:
                module.set_tokens(tokens)
            if module.looks_at_the_grid:
                module.set_grid(told)
    _beside(ours, theirs)
    return ours.train(theirs.training)


def _beside(ours: nn.Module, theirs: nn.Module) -> None:
    """What is new comes to the device of what was there; what was there stays where it is, offloaded or not."""
    device, old = place_of(theirs).device, set(theirs.modules())
    own = {id(x) for x in theirs.parameters()}
    for module in ours.modules():
        if module not in old and not any(id(x) in own for x in module._parameters.values()):
            module._apply(lambda x: x.to(device), recurse=False)


def _tokens(model: nn.Module) -> int | None:
    number = getattr(getattr(model, "patch_embed", None), "num_patches", None)
    return None if number is None else int(number) + _prefix(model)


def _prefix(model: nn.Module) -> int:
    """Tokens ahead of the patches where the attention over them is: none in XCiT and CaiT, whose class token comes later."""
    return 0 if isinstance(model, Xcit | Cait) else int(getattr(model, "num_prefix_tokens", 0))


def _tell(model: nn.Module, told: SharedGrid) -> RemovableHandle:
    """The patch embedding tells at each pass where its tokens stand."""
    embed = getattr(model, "patch_embed", None)
    if embed is None:
        raise UsageError(
            f"{type(model).__name__} has no patch_embed that could tell the grid: choose an operator that needs none"
        )
    handle: RemovableHandle = embed.register_forward_hook(Teller(told, _prefix(model)))
    return handle


class Teller:
    """The hook that writes the grid; an object, so that copies of the model have their own."""

    def __init__(self, told: SharedGrid, prefix: int) -> None:
        self.told, self.prefix = told, prefix

    def __call__(self, module: Any, inputs: Any, output: Any) -> None:
        if isinstance(output, tuple):  # XCiT: tokens and their grid
            height, width = output[1]
        elif output.ndim == 4:  # channels last
            height, width = output.shape[1], output.shape[2]
        else:
            height, width = (side // patch for side, patch in zip(inputs[0].shape[-2:], module.patch_size, strict=True))
        self.told.tell((self.prefix, int(height), int(width)))


def _branches(
    model: nn.Module, paths: list[str], images: Tensor
) -> dict[str, tuple[tuple[Any, ...], dict[str, Any], Tensor]]:
    """Arguments and output of each attention on some images, as it is."""
    seen: dict[str, tuple[tuple[Any, ...], dict[str, Any], Tensor]] = {}
    hooks = [
        model.get_submodule(path).register_forward_hook(
            lambda _, args, kwargs, out, path=path: seen.__setitem__(path, (args, kwargs, out)), with_kwargs=True
        )
        for path in paths
    ]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(images)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    if missing := [path for path in paths if path not in seen]:
        raise UsageError(
            f"calibrate: {missing[0]} was not seen at work on these images, so its size is not known. A compiled model runs without its modules: swap "
            "the one that was compiled (model._orig_mod), and compile it afterwards"
        )
    return seen


def _calibrated(
    model: nn.Module, before: Mapping[str, tuple[tuple[Any, ...], dict[str, Any], Tensor]]
) -> dict[str, float]:
    """Give every branch the size that it had on the same tokens; the factor goes into its projection, the bias stays."""
    gains = {}
    for path, (args, kwargs, out) in before.items():
        ours = model.get_submodule(path)
        training = ours.training
        holder: Any = getattr(ours, "inner", ours)
        ours.eval()
        with torch.no_grad():
            bias = _bias(holder.proj, out)
            sizes = [float((x if bias is None else x - bias).float().square().mean().sqrt()) for x in (out, ours(*args, **kwargs))]  # fmt: skip
            gains[path] = sizes[0] / sizes[1] if sizes[1] else 1.0
            holder.proj = multiplied(holder.proj, gains[path], out)
        ours.train(training)
    return gains


def _bias(projection: nn.Module, like: Tensor) -> Tensor | None:
    """What a projection adds: its bias, or what it gives for nothing where it must be called."""
    found = weights_of(projection)
    if found is not None:
        return found.b
    nothing: Tensor = projection(like.new_zeros(1, features_of(projection)[0]))
    return nothing[0]


@torch.no_grad()
def multiplied(projection: nn.Module, gain: float, like: Tensor) -> nn.Module:
    """A projection whose product is multiplied by a number: in its weight where that is all there is to it."""
    found = weights_of(projection)
    if found is None:
        return Gained(projection, gain, like)
    found.W.mul_(gain)
    return projection
