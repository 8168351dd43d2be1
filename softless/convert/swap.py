"""`swap`: exchange the attention of an existing model, keeping its projections, and say what was
done.

All is built beside the model first. Then the modules are exchanged, one pass is tried, and on any
error each is put back. The model knows what was exchanged, so that `save_weights` can store it.
"""

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from softless.attention.checks import check_options
from softless.attention.record import Operator
from softless.attention.registry import get, registered
from softless.convert.adapters import ADAPTERS, CLASS_TOKEN_LATER, Site, sites
from softless.convert.calibrate import ObservedCall, branches, fitted, multiplied
from softless.convert.foreign import no_adapter
from softless.convert.layouts import KNOW_THEIR_GRID
from softless.errors import UsageError, need_module
from softless.layers.attention import Attention
from softless.layers.grid import SharedGrid
from softless.layers.plain import absent, place_of, refuse_empty, sharded, why_changed
from softless.models.bag import refuse_bags
from softless.models.exchanges import Exchange, exchanges_by, noted
from softless.models.hosts import tokens_ahead
from softless.modes import in_evaluation


@dataclass(frozen=True)
class Swapped:
    """What became of each attention of a model, by path; prints as lines."""

    op: str
    swapped: Mapping[str, str]  # path -> the class that was there
    kept: Mapping[str, str]  # path -> why
    # path -> what was given up: what `force` named, dropout of weights
    lost: Mapping[str, str] = field(default_factory=dict)
    # path -> how far softmax's own branch is from the old one without what was given up, relative,
    # on held-out images of `calibrate`
    without: Mapping[str, float] = field(default_factory=dict)
    # path -> what each head is multiplied by
    gains: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    tied: str = ""  # how q and k became one
    # path -> tensors of the operator that no training has seen
    new: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    untried: str = ""  # why no pass was tried
    # path -> relative, on held-out images: bare, calibrated
    errors: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            (
                f"{len(self.swapped)} attention modules now compute '{self.op}', {len(self.kept)} "
                "are "
                "kept"
            )
        ]
        lines += [
            f"  swapped  {path} ({kind}){self._calibrated(path)}"
            for path, kind in self.swapped.items()
        ]
        lines += [f"  kept     {path}: {why}" for path, why in self.kept.items()]
        lines += [
            f"  lost     {path}: {loss}{self._without(path)}" for path, loss in self.lost.items()
        ]
        lines += [
            f"  new      {path}: {', '.join(names)}, which no training has seen"
            for path, names in self.new.items()
        ]
        lines += [self.tied] if self.tied else []
        return "\n".join([
            *lines,
            *([f"not tried on an image: {self.untried}"] if self.untried else []),
        ])

    def _without(self, path: str) -> str:
        error = self.without.get(path)
        return "" if error is None else f"; softmax's branch without it is {error:.3g} away"

    def _calibrated(self, path: str) -> str:
        if path not in self.gains:
            return ""
        low, high = min(self.gains[path]), max(self.gains[path])
        gains = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
        bare, error = self.errors[path]
        return f", gain {gains}, error {bare:.3g} to {error:.3g}"


def swap(
    model: nn.Module,
    op: str | Operator | type[Attention] = "sima",
    *,
    layers: str | Sequence[str] = "*",
    force: str | Sequence[str] = (),
    calibrate: Tensor | None = None,
    **options: Any,
) -> Swapped:
    """Exchange attention in a timm model, in place, keeping projections and everything around them.

    docs/timm.md lists the families that have adapters. What would be lost (a relative position
    bias, talking heads) is a reason to keep a layer. `force` overrules it layer by layer, and with
    `calibrate` the report says how much of the branch hangs on it. A pass is tried on the images
    of `calibrate`, or on one of noise. New tensors are drawn from a fixed seed, in the dtype of what
    was there. SOFT takes its bottleneck from pools of tokens, which need none, unless
    `sampling` is given. What was frozen stays frozen.

    Args:
        model: the model; on an error it is as it was, to the bit.
        op: the operator: its name, its record, or its class, as
            `softless.SimA.with_options(token_scale="tokens")`.
        layers: patterns of the paths of attention modules ("blocks.[0-5].*"); the others are kept.
        force: patterns of the paths at which what would be lost may be lost.
        calibrate: images (B, C, h, w): each head is multiplied by one number, folded into the
            projection, that brings its branch nearest to what it was on half of them. How far the
            numbers go is chosen on the other half, where the error is never above the bare swap's.
        **options: of the operator.

    Returns:
        What was swapped, kept and why, with the gains.

    Raises:
        UsageError: unknown operator or option, patterns that fit nothing, images that the model
            does not take, a model in which nothing can be swapped, or one that does not run
            afterwards.

    Examples:
        >>> import timm
        >>> model = timm.create_model("deit_tiny_patch16_224", depth=2)
        >>> print(softless.swap(model, op="sima", token_scale="tokens"))
        2 attention modules now compute 'sima', 0 are kept
          swapped  blocks.0.attn (Attention)
          swapped  blocks.1.attn (Attention)
    """
    need_module(model, "swap")
    refuse_bags(model, "swap")
    record, options = _operator(op, options)
    check_options(record, options)
    if "sampling" in record.options:
        options.setdefault("sampling", "pool")
    if calibrate is not None:
        refuse_empty(model, "calibrate")
    sites_chosen, why_kept, lost = _chosen(
        model, record, options, _patterns(layers), _patterns(force)
    )
    if not sites_chosen:
        reasons = "; ".join(dict.fromkeys(why_kept.values())) or _nothing_there(model, record)
        raise UsageError(f"nothing to swap in {type(model).__name__}: {reasons}")
    images = None if calibrate is None else _calibration(model, calibrate)
    built, shared_grid = _all_built(model, sites_chosen, record, options)
    chosen = {path: site.module for path, site in sites_chosen.items()}
    before = {} if images is None else branches(model, list(built), images, _at_rest(model))
    without = _without(sites_chosen, lost, before)
    exchange = _Exchanged(model, chosen, built, shared_grid)
    try:
        untried = _tried(exchange, record, images)  # first: its pass tells the new modules the grid
        fits = {
            path: fitted(built[path], observed, _at_rest(built[path]))
            for path, observed in before.items()
        }
        for path, fit in fits.items():
            holder: Any = built[path]
            holder.proj = multiplied(holder.proj, fit.gains, before[path].out)
    except BaseException:
        exchange.undo()
        raise
    noted(model, Exchange(record.name, {**options}, tuple(built), tuple(lost)))
    mean = (
        "q and k are tied: their common projection is the mean of both"
        if record.wants("tied_qk", options)
        else ""
    )
    lost |= {
        path: why
        for path, module in chosen.items()
        if (why := _dropped(module, record)) and path not in lost
    }
    kinds = {path: type(module).__name__ for path, module in chosen.items()}
    new = {path: names for path, module in built.items() if (names := _new(module, chosen[path]))}
    gains, errors = (
        {path: fit.gains for path, fit in fits.items()},
        {path: (fit.bare, fit.error) for path, fit in fits.items()},
    )
    return Swapped(
        record.name,
        kinds,
        why_kept,
        lost,
        without=without,
        gains=gains,
        tied=mean,
        new=new,
        untried=untried,
        errors=errors,
    )


def _without(
    chosen: Mapping[str, Site], lost: Mapping[str, str], before: Mapping[str, ObservedCall]
) -> dict[str, float]:
    """How far a branch is from the old one without what is given up, even by softmax, on held-out
    images.
    """
    softmax, errors = get("softmax"), dict[str, float]()
    for path, observed in before.items():
        site = chosen[path]
        if path in lost and ADAPTERS[type(site.module)].loses(site):
            with torch.random.fork_rng(devices=[]):
                twin = _built(path, site, softmax, {}, SharedGrid(), None)
            errors[path] = fitted(twin, observed, _at_rest(twin)).bare
    return errors


@exchanges_by
def swap_again(model: nn.Module, exchange: Exchange) -> None:
    """Exchange the modules that were exchanged in a model that was stored; no pass is tried.

    Raises:
        UsageError: they are not there, or do not take the operator.
    """
    record = registered(exchange.op)
    check_options(record, exchange.options)
    layers, force = list(exchange.layers), list(exchange.force)
    chosen, why_kept, _ = _chosen(model, record, exchange.options, layers, force)
    if kept := [path for path in layers if path not in chosen]:
        why = why_kept.get(kept[0], "there is no such attention module")
        raise UsageError(f"{kept[0]} does not take '{record.name}': {why}")
    built, shared_grid = _all_built(model, chosen, record, exchange.options)
    modules = {path: site.module for path, site in chosen.items()}
    _Exchanged(model, modules, built, shared_grid)
    noted(model, exchange)


def _all_built(
    model: nn.Module,
    chosen: Mapping[str, Site],
    record: Operator,
    options: Mapping[str, Any],
) -> tuple[dict[str, nn.Module], SharedGrid | None]:
    """Our modules for the places, drawn from a fixed seed, and the grid that the patch embedding is
    to tell them, if they ask for one; nothing of the model is changed.
    """
    shared_grid, tokens = SharedGrid(), _tokens(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = {
            path: _built(path, site, record, options, shared_grid, tokens)
            for path, site in chosen.items()
        }
    looks = [path for path, module in built.items() if _looks(module)]
    if looks:
        _refuse_dropped_patches(model, record, looks[0])
    return built, shared_grid if looks else None


class _Exchanged:
    """A model with the new modules in place; `undo` puts back the ones that were there."""

    def __init__(
        self,
        model: nn.Module,
        old: Mapping[str, nn.Module],
        new: Mapping[str, nn.Module],
        shared_grid: SharedGrid | None,
    ) -> None:
        self.model, self.old, self.new = model, old, new
        self.embed = None if shared_grid is None else _embed(model)
        self.told = shared_grid
        self.teller: RemovableHandle | None = None
        self.redo()

    def redo(self) -> None:
        for path, replacement in self.new.items():
            self.model.set_submodule(path, replacement)
        if self.embed is not None and self.told is not None:
            self.teller = self.embed.register_forward_hook(Teller(self.told, _prefix(self.model)))

    def undo(self) -> None:
        for path, original in self.old.items():
            self.model.set_submodule(path, original)
        if self.teller is not None:
            self.teller.remove()


def _looks(replacement: nn.Module) -> bool:
    """Whether the patch embedding must tell a new module where its tokens stand."""
    return (
        isinstance(replacement, Attention)
        and replacement.looks_at_the_grid
        and not isinstance(replacement, KNOW_THEIR_GRID)
    )


def _refuse_dropped_patches(model: nn.Module, record: Operator, path: str) -> None:
    drop = getattr(model, "patch_drop", None)
    if drop is not None and not isinstance(drop, nn.Identity):
        raise UsageError(
            f"{path}: '{record.name}' needs to know where its tokens stand, and the model leaves "
            "some out in training (patch_drop): "
            "build it without patch_drop_rate, or choose an operator that needs no grid"
        )


def _dropped(original: nn.Module, record: Operator) -> str:
    """What becomes of dropout of attention weights."""
    p = getattr(getattr(original, "attn_drop", None), "p", 0.0)
    return (
        ""
        if record.drops_weights or not p
        else f"dropout of weights ({p:g}): '{record.name}' makes no weights to drop"
    )


def _new(replacement: nn.Module, original: nn.Module) -> tuple[str, ...]:
    """The operator's own tensors, unless they were there (the temperature of XCA)."""
    had = {id(x) for x in original.parameters()}
    return tuple(
        name
        for name, x in replacement.named_parameters()
        if ".learned." in f".{name}" and id(x) not in had
    )


@contextmanager
def _at_rest(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode and without gradients; each module gets its own mode back."""
    with in_evaluation(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        yield


def _tried(exchange: _Exchanged, record: Operator, images: Tensor | None) -> str:
    """Why no pass could be tried; empty where one was, and ended in numbers.

    Raises:
        UsageError: the model ran before and does not now; the exchange is undone.
    """
    model = exchange.model
    if images is None and (absent(model) or sharded(model)):
        return "its weights are not all here"
    x = _noise(model) if images is None else images
    if not (wrong := _ends_badly(model, x)):
        return ""
    exchange.undo()
    if before := _ends_badly(model, x):
        exchange.redo()
        return f"it does not run on images {tuple(x.shape)} as it was either ({before})"
    raise UsageError(
        f"{type(model).__name__} does not run with '{record.name}': {wrong}. Nothing was exchanged"
    )


def _ends_badly(model: nn.Module, images: Tensor) -> str:
    """What a pass ends in other than numbers; empty where it gives numbers."""
    try:
        with _at_rest(model):
            output: Any = model(images)
    except Exception as error:  # noqa: BLE001  # of any kind: the model is another's
        return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
    while isinstance(output, list | tuple) and output:
        output = output[0]
    finite = not (isinstance(output, Tensor) and output.is_floating_point()) or bool(
        output.isfinite().all()
    )
    return "" if finite else "it answers NaN or infinity"


def _noise(model: nn.Module) -> Tensor:
    """One image of noise as the model takes it: its size, channels, dtype and device."""
    config = getattr(model, "pretrained_cfg", None) or {}
    channels, *sides = tuple(config.get("input_size") or (3, 224, 224))
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or sides
    first = config.get("first_conv")
    conv = (
        next((module for path, module in model.named_modules() if path == first), None)
        if isinstance(first, str)
        else None
    )
    channels = getattr(conv, "in_channels", channels)
    noise = torch.randn(
        1, int(channels), *map(int, size), generator=torch.Generator().manual_seed(0)
    )
    return noise.to(place_of(model))


def _calibration(model: nn.Module, images: Tensor) -> Tensor:
    """The images of `calibrate` in the model's dtype and on its device.

    Raises:
        UsageError: no images (B, C, h, w) of finite numbers.
    """
    kind = type(images).__name__
    if isinstance(images, Tensor):
        placement = (
            f" on {images.device}"
            if images.is_meta
            else ""
            if images.layout == torch.strided
            else f" in {images.layout}"
        )
        kind = f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}{placement}"
    if not _are_images(images):
        raise UsageError(
            f"calibrate is {kind}: give images (B, C, h, w), prepared as the model takes them, at "
            "least one"
        )
    if not images.isfinite().all():
        raise UsageError("calibrate holds NaN or infinity: leave those images out")
    return images.detach().to(place_of(model))


def _are_images(images: Any) -> bool:
    """Whether these are images that hold numbers, at least one."""
    if (
        not isinstance(images, Tensor)
        or images.ndim != 4
        or not images.is_floating_point()
        or not images.numel()
    ):
        return False
    return images.layout == torch.strided and not images.is_meta


def _nothing_there(model: nn.Module, record: Operator) -> str:
    """Why a model has nothing to swap."""
    operators = sorted({
        module.op.name for module in model.modules() if isinstance(module, Attention)
    })
    if not operators:
        return "it has no attention module that softless knows"
    return (
        f"its attention is softless's already: {', '.join(operators)}; build its host with "
        f"softless.create_model(host, op='{record.name}') and load "
        "the weights there"
    )


def _operator(
    op: str | Operator | type[Attention], options: Mapping[str, Any]
) -> tuple[Operator, dict[str, Any]]:
    """The record behind a name or a class of attention, with the options that the class has
    fixed.
    """
    if not isinstance(op, type):
        return get(op), {**options}
    if not issubclass(op, Attention) or op.fixed_op is None:
        raise UsageError(
            f"op={op.__name__}: give an operator's name, as 'sima', or its class, as softless.SimA"
        )
    return get(op.fixed_op), {**op.fixed_options, **options}


def _patterns(patterns: str | Sequence[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def _chosen(
    model: nn.Module,
    record: Operator,
    options: Mapping[str, Any],
    layers: list[str],
    force: list[str],
) -> tuple[dict[str, Site], dict[str, str], dict[str, str]]:
    """The modules to exchange, the reasons of those that are kept, and what is given up."""
    attentions = sites(model)
    for pattern in [*layers, *force]:
        if attentions and not any(fnmatch.fnmatch(path, pattern) for path in attentions):
            listed = ", ".join(list(attentions)[:6]) + (" …" if len(attentions) > 6 else "")
            raise UsageError(f"no attention module fits {pattern!r}; there are {listed}")
    why_kept: dict[str, str] = {}
    lost: dict[str, str] = {}
    for path, site in attentions.items():
        if not any(fnmatch.fnmatch(path, pattern) for pattern in layers):
            why_kept[path] = "not among the layers asked for"
        elif why := _in_the_way(site, record, options):
            why_kept[path] = why
        elif loss := ADAPTERS[type(site.module)].loses(site) or _watched(site.module):
            if any(fnmatch.fnmatch(path, pattern) for pattern in force):
                lost[path] = loss
            else:
                why_kept[path] = f"{loss} (force= with its path gives it up)"
    return (
        {path: site for path, site in attentions.items() if path not in why_kept},
        why_kept,
        lost,
    )


def _watched(module: nn.Module) -> str:
    """What somebody did to a module, and to its dropout, that the new one will not have."""
    drop = getattr(module, "attn_drop", None)
    why = why_changed(module) or (why_changed(drop) if isinstance(drop, nn.Module) else "")
    return f"{why}, and a new module takes its place" if why else ""


def _in_the_way(site: Site, record: Operator, options: Mapping[str, Any]) -> str | None:
    """Why a module cannot be exchanged at all."""
    adapter = ADAPTERS.get(type(site.module))
    if adapter is None:
        return no_adapter(site.module)
    return adapter.cannot(site, record, options)


def _built(
    path: str,
    site: Site,
    record: Operator,
    options: Mapping[str, Any],
    shared_grid: SharedGrid,
    tokens: int | None,
) -> nn.Module:
    """Our module for a place; nothing of the model is changed by it."""
    original = site.module
    try:
        replacement = ADAPTERS[type(original)].build(site, record, options)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    for module in replacement.modules():
        if isinstance(module, Attention):
            if tokens is not None:
                module.set_tokens(tokens)
            if _looks(module):
                module.set_grid(shared_grid)
    _beside(replacement, original)
    had = set(original.modules())
    for module in replacement.modules():
        if module not in had:
            module.training = original.training
    return replacement


def _beside(replacement: nn.Module, original: nn.Module) -> None:
    """What is new comes to the dtype and device of what was there; what was there stays where it
    is, offloaded or not.
    """
    like, old = place_of(original), set(original.modules())
    own = {id(x) for x in original.parameters()}
    for module in replacement.modules():
        if module not in old and not any(id(x) in own for x in module._parameters.values()):
            module._apply(
                lambda x: x.to(like) if x.is_floating_point() else x.to(like.device),
                recurse=False,
            )


def _tokens(model: nn.Module) -> int | None:
    number = getattr(getattr(model, "patch_embed", None), "num_patches", None)
    return None if number is None else int(number) + _prefix(model)


def _prefix(model: nn.Module) -> int:
    """Tokens ahead of the patches where the attention over them is."""
    return 0 if isinstance(model, CLASS_TOKEN_LATER) else tokens_ahead(model) or 0


def _embed(model: nn.Module) -> nn.Module:
    """The patch embedding, which tells at each pass where its tokens stand."""
    embed = getattr(model, "patch_embed", None)
    if not isinstance(embed, nn.Module):
        raise UsageError(
            f"{type(model).__name__} has no patch_embed that could tell the grid: choose an "
            "operator that needs none"
        )
    return embed


class Teller:
    """The hook that writes the grid; an object, so that copies of the model have their own."""

    def __init__(self, shared_grid: SharedGrid, prefix: int) -> None:
        self.told, self.prefix = shared_grid, prefix

    def __call__(self, module: Any, inputs: Any, output: Any) -> None:
        if isinstance(output, tuple):  # XCiT: tokens and their grid
            height, width = output[1]
        elif output.ndim == 4:  # channels last
            height, width = output.shape[1], output.shape[2]
        else:
            height, width = (
                side // patch
                for side, patch in zip(inputs[0].shape[-2:], module.patch_size, strict=True)
            )
        self.told.tell((self.prefix, height, width))
