"""Saliency from the attention itself: the l2 norm over channels of each token of q^ and of k^.

    query[n] = || q^_n ||_2,    key[n] = || k^_n ||_2        over the channels of all heads joined

q^ and k^ are what the layer's operator makes of q and k before their product (`Operator.hat`);
where an operator leaves them alone, q and k themselves. The class token is dropped, the rest takes
the shape of the layer's own grid and is rescaled to [0, 1] per image. Koohpayegani and Pirsiavash,
"SimA", arXiv:2206.08898, §4.7 (layer 12 of 12).
"""
# B images, H heads, N tokens, D channels of a head, h x w grid of tokens

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from softless.attention.record import Grid
from softless.data.notices import notice
from softless.errors import UsageError
from softless.evaluation.run import LoadedRun
from softless.layers.attention import Attention
from softless.layers.class_attention import ClassAttention
from softless.models.hosts import tokens_ahead
from softless.models.scale import foreign
from softless.modes import in_evaluation
from softless.saliency.class_row import class_attention_row, class_row
from softless.saliency.saliency import Saliency
from softless.saliency.viewer import Picture, Size, Viewer, eyes, tensor_of, viewer_of

MOST_AHEAD = (
    # tokens ahead of the patches where a model does not tell them: more are a sign that the patches
    # are others
    16
)


@torch.no_grad()
def explain(
    model: nn.Module | LoadedRun,
    images: Picture,
    *,
    layer: int = -1,
    resize: Size | None = None,
    device: str | torch.device | None = None,
    transform: Callable[[Any], Tensor] | None = None,
) -> Saliency:
    """Saliency maps (B, h, w) of `images` in one attention layer: `softless.explain` of a model or
    a run. A tensor is (B, C, H, W) or (C, H, W); `transform` gives the latter.
    """
    viewer = viewer_of(model)
    if resize is not None:
        viewer = _resizing(viewer, images, transform, resize)
    module = viewer.model
    attentions = _attention_layers(module)
    number = _numbered(layer, len(attentions))
    batch = tensor_of(images, transform or viewer.transform, viewer.in_chans, viewer.scale)
    home = next(module.parameters()).device
    target = torch.device(device) if device is not None else home
    module.to(target)
    try:
        with in_evaluation(module):
            saliency = _maps(module, batch.to(target), attentions[number], number, len(attentions))
    finally:
        module.to(home)
    if saliency.foreign is not None:
        notice(saliency.foreign.advice())
    return saliency


def _resizing(viewer: Viewer, images: Any, transform: Any, resize: Size) -> Viewer:
    if isinstance(images, Tensor) or transform is not None:
        reason = (
            "a tensor is taken as it is"
            if isinstance(images, Tensor)
            else "transform= decides the size already"
        )
        raise UsageError(
            f"resize={resize}: {reason}; resize the picture before, or leave resize= out"
        )
    return viewer.resized(resize)


def _attention_layers(model: nn.Module) -> list[Attention]:
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    if not attentions and any(isinstance(module, ClassAttention) for module in model.modules()):
        raise UsageError(
            f"{type(model).__name__} has softless attention for its class token alone, and a map "
            "is of the layers over its patches: "
            "exchange those too, as softless.swap(model, op, force='*') does, or build the model "
            "with softless.create_model"
        )
    if not attentions:
        raise UsageError(
            f"{type(model).__name__} has no softless attention layer to look into: build it with "
            "softless.create_model(name, op=…), "
            "or exchange its attention with softless.swap"
        )
    return attentions


def _numbered(layer: int, count: int) -> int:
    if not -count <= layer < count:
        raise UsageError(
            f"layer {layer} does not exist: the model has {count} attention layers, 0 to "
            f"{count - 1} (or -1 for the last)"
        )
    return layer % count


@dataclass
class LayerCall:
    """What a layer was given when the model looked at the batch: the tokens (B, N, dim), what else,
    and where they stand.
    """

    tokens: Tensor
    grid: Grid | None  # (prefix tokens, height, width)
    passed: dict[str, Any]


def _calls(
    attention: Attention,
    readers: Sequence[ClassAttention],
    model: nn.Module,
    host: nn.Module,
    batch: Tensor,
) -> tuple[LayerCall | None, list[Tensor], list[tuple[int, int]]]:
    """The call of the layer, and the tokens that entered the class attention; nothing of a layer
    that the pass leaves out.

    Last comes the grid that the patch embedding of the host made, where it shows it.
    """
    calls: list[LayerCall] = []
    read: list[Tensor] = []
    grids: list[tuple[int, int]] = []

    def note(layer: Attention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens, grid, passed = layer.called_with(*args, **kwargs)
        shared = None if layer.shared_grid is None else layer.shared_grid.value
        calls.append(LayerCall(tokens, grid or shared, passed))

    hooks = [attention.register_forward_pre_hook(note, with_kwargs=True)]
    hooks += [
        reader.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        for reader in readers
    ]
    if isinstance(embed := getattr(host, "patch_embed", None), nn.Module):
        hooks.append(
            embed.register_forward_hook(
                lambda embed, _, output: grids.extend(_grid_of(embed, output))
            )
        )
    try:
        model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return (calls[-1] if calls else None), read, grids


def _grid_of(embed: Any, output: Any) -> list[tuple[int, int]]:
    """Height and width of what a patch embedding gave: tokens beside their grid, or tokens
    (B, h, w, C).
    """
    if isinstance(output, tuple) and len(output) == 2 and len(output[1]) == 2:
        return [(int(output[1][0]), int(output[1][1]))]
    last = getattr(getattr(embed, "output_fmt", None), "value", "") == "NHWC"
    return (
        [(output.shape[1], output.shape[2])]
        if last and isinstance(output, Tensor) and output.ndim == 4
        else []
    )


def _standing(model: Any, batch: Tensor, call: LayerCall, grids: Sequence[tuple[int, int]]) -> Grid:
    """Where the tokens of a call stand: as they were told, as the patch embedding made them, or as
    patches lie on the image.

    Raises:
        UsageError: neither fits their number.
    """
    number = call.tokens.shape[1]
    if call.grid is not None and call.grid[0] + call.grid[1] * call.grid[2] == number:
        return call.grid
    prefix = tokens_ahead(model)
    # of foreign models, in some of which they come behind the layers
    ahead = range(MOST_AHEAD + 1) if prefix is None else (0, prefix)
    for height, width in [*grids, *_patches(model, batch)]:
        if number - height * width in ahead:
            return number - height * width, height, width
    raise UsageError(
        f"{type(model).__name__} does not tell where the {number} tokens of this layer stand in "
        "the image, so no map can be drawn: "
        "choose a layer or a model whose tokens are patches of a grid"
    )


def _patches(model: Any, batch: Tensor) -> list[tuple[int, int]]:
    """Height and width in patches of the images, as the embedding tells them, or by the side of a
    patch.
    """
    embed = getattr(model, "patch_embed", None)
    size = (int(batch.shape[-2]), int(batch.shape[-1]))
    grids = (
        [tuple(map(int, tells(size)))]
        if callable(tells := getattr(embed, "dynamic_feat_size", None))
        else []
    )
    side = getattr(embed, "patch_size", None)
    if side is not None:
        sides = side if isinstance(side, tuple | list) else (side, side)
        grids.append((size[0] // sides[0], size[1] // sides[1]))
    return [(height, width) for height, width in grids]


def _maps(model: Any, batch: Tensor, attention: Attention, number: int, count: int) -> Saliency:
    looked, framed = eyes(model, batch)
    readers = [module for module in looked.modules() if isinstance(module, ClassAttention)][-1:]
    host = getattr(model, "host", model)
    call, read, grids = _calls(attention, readers, looked, host, framed)
    if call is None:
        raise UsageError(
            f"layer {number} takes no part when {type(model).__name__} looks at an image: choose "
            "another"
        )
    prefix, *sides = _standing(host, framed, call, grids)
    grid = (sides[0], sides[1])
    q, tied_or_k, _, _ = attention.sides(call.tokens, None, (prefix, *grid), **call.passed)
    k = q if tied_or_k is None else tied_or_k
    keys = attention.key_grid(*grid)
    row = None
    if prefix and attention.op.implied_matrix and attention.reduction is None:
        row = class_row(attention, q, k)[:, prefix:].unflatten(-1, keys)
    elif read:
        row = class_attention_row(readers[0], read[0])[:, 1:].unflatten(-1, grid)
    hat = attention.op.hat
    if hat is not None:
        q, k = hat(q), hat(k)
    return Saliency(
        query=unit(_norm(q)[:, prefix:].unflatten(-1, grid)),
        key=unit(_norm(k)[:, prefix:].unflatten(-1, keys)),
        grid=grid,
        class_row=None if row is None else signed_unit(row),
        operator=attention.op.name,
        layer=number,
        layers=count,
        normalised=hat is not None,
        foreign=foreign(model, *batch.shape[-2:]),
    )


def _norm(x_BHND: Tensor) -> Tensor:
    x_double = x_BHND.double()  # squares of q^ at many tokens are far below what float16 can hold
    return x_double.square().sum((1, 3)).sqrt()


def unit(x: Tensor) -> Tensor:
    """Maps (B, h, w) rescaled to [0, 1] per image; a constant map becomes zero."""
    low, high = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
    return (
        torch
        .where(high > low, (x - low) / (high - low).clamp_min(torch.finfo(x.dtype).tiny), 0)
        .float()
        .cpu()
    )


def signed_unit(x: Tensor) -> Tensor:
    """Maps (B, h, w) divided by the largest magnitude of each image; a map of zeros stays."""
    largest = x.abs().amax((1, 2), keepdim=True)
    return (
        torch.where(largest > 0, x / largest.clamp_min(torch.finfo(x.dtype).tiny), 0).float().cpu()
    )
