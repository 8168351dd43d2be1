"""Saliency from the attention itself: the l2 norm over channels of each token of q^ and of k^.

    query[n] = || q^_n ||_2,    key[n] = || k^_n ||_2        over the channels of all heads joined

q^ and k^ are what the layer's operator makes of q and k before their product (`Operator.hat`); where an operator leaves them alone, q
and k themselves. The class token is dropped, the rest takes the shape of the patch grid and is rescaled to [0, 1] per image.
Koohpayegani and Pirsiavash, "SimA", arXiv:2206.08898, §4.7 (layer 12 of 12).
"""
# B images, H heads, N tokens, D channels of a head, h x w patch grid

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from softless.data.images import read_image
from softless.errors import UsageError
from softless.layers import Attention, ClassAttention
from softless.saliency.class_row import class_attention_row, class_row


@dataclass(frozen=True)
class Saliency:
    """Maps of one attention layer for a batch of images, on the processor, float32."""

    query: Tensor  # (B, h, w) in 0..1
    key: Tensor  # (B, h, w) in 0..1
    grid: tuple[int, int]  # h, w in patches
    class_row: (
        Tensor | None
    )  # (B, h, w) in -1..1: the class token's row of the attention matrix, divided by its largest size
    operator: str
    layer: int  # counted from 0 among the attention layers
    layers: int
    normalised: bool  # False: the operator leaves q and k alone, and the maps show their own norms

    @property
    def caption(self) -> str:
        return f"{self.operator}, attention layer {self.layer + 1} of {self.layers}"


@torch.no_grad()
def explain(
    model: nn.Module,
    images: Tensor | str | Path,
    *,
    layer: int = -1,
    device: str | torch.device | None = None,
    transform: Callable[[Image.Image], Tensor] | None = None,
) -> Saliency:
    """Saliency maps of `images` in one attention layer; the model is left as it was.

    Args:
        images: (B, C, H, W) or (C, H, W) as the model takes them, or the path of an image file.
        layer: which attention layer, counted from 0, or from the end when negative.
        device: where to compute; None is where the model lies.
        transform: PIL image -> (C, H, W) for a path; None is timm's evaluation transform of the model.

    Raises:
        UsageError: no attention layer of ours in the model, or no layer of that number.
        DataError: the path is no readable image.
    """
    attentions = _attention_layers(model)
    number = _numbered(layer, len(attentions))
    batch = _batch(model, images, transform)
    home = next(model.parameters()).device
    target = torch.device(device) if device is not None else home
    model.to(target)
    try:
        return _maps(model, batch.to(target), attentions[number], number, len(attentions))
    finally:
        model.to(home)


def _attention_layers(model: nn.Module) -> list[Attention]:
    found = [module for module in model.modules() if isinstance(module, Attention)]
    if not found:
        raise UsageError(
            f"{type(model).__name__} has no softless attention layer to look into: build it with softless.create_model(name, op=…)"
        )
    return found


def _numbered(layer: int, count: int) -> int:
    if not -count <= layer < count:
        raise UsageError(
            f"layer {layer} does not exist: the model has {count} attention layers, 0 to {count - 1} (or -1 for the last)"
        )
    return layer % count


def _batch(model: nn.Module, images: Tensor | str | Path, transform: Callable[[Image.Image], Tensor] | None) -> Tensor:
    if isinstance(images, Tensor):
        if images.ndim not in {3, 4}:
            raise UsageError(f"images have shape {tuple(images.shape)}: give (B, C, H, W) or (C, H, W)")
        return images if images.ndim == 4 else images[None]
    return (transform or evaluation_transform(model))(read_image(Path(images), channels_of(model)))[None]


def evaluation_transform(model: nn.Module) -> Callable[[Image.Image], Tensor]:
    """Timm's evaluation transform for a model, from its `pretrained_cfg`."""
    import timm.data

    made = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    assert callable(made)
    return made


def channels_of(model: nn.Module) -> int:
    """How many channels the model's images have: what its first convolution takes."""
    return next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3)


def _tokens_entering(layers: Sequence[nn.Module], model: nn.Module, batch: Tensor) -> list[Tensor]:
    """(B, N, H * D) for each layer: what it is given when the model looks at the batch in evaluation mode."""
    caught: dict[nn.Module, Tensor] = {}
    training = model.training
    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs: caught.update({layer: inputs[0]})) for layer in layers
    ]
    try:
        model.eval()(batch)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    return [caught[layer] for layer in layers]


def _grid(model: Any, batch: Tensor) -> tuple[int, int]:
    size = model.patch_embed.patch_size
    tall, wide = size if isinstance(size, tuple | list) else (size, size)
    return batch.shape[-2] // tall, batch.shape[-1] // wide


def _maps(model: nn.Module, batch: Tensor, attention: Attention, number: int, count: int) -> Saliency:
    readers = [module for module in model.modules() if isinstance(module, ClassAttention)][-1:]
    tokens, *read = _tokens_entering([attention, *readers], model, batch)
    grid = _grid(model, batch)
    q, tied_or_k, _ = attention.project(tokens)
    k = q if tied_or_k is None else tied_or_k
    prefix = q.shape[-2] - grid[0] * grid[1]
    assert prefix >= 0, "fewer tokens than patches"
    row = None
    if prefix and attention.op.implied_matrix and attention.reduction is None:
        row = class_row(attention, q, k)[:, prefix:]
    elif readers:
        row = class_attention_row(readers[0], read[0])[:, 1:]
    hat = attention.op.hat
    if hat is not None:
        q, k = hat(q), hat(k)
    query, key = (unit(_norm(x)[:, prefix:].unflatten(-1, grid)) for x in (q, k))
    return Saliency(
        query=query,
        key=key,
        grid=grid,
        class_row=None if row is None else signed_unit(row.unflatten(-1, grid)),
        operator=attention.op.name,
        layer=number,
        layers=count,
        normalised=hat is not None,
    )


def _norm(x_BHND: Tensor) -> Tensor:
    wide = x_BHND.double()  # squares of q^ at many tokens are far below what float16 can hold
    return wide.square().sum((1, 3)).sqrt()


def unit(x: Tensor) -> Tensor:
    """Rescaled to [0, 1] per image; a constant map becomes zero."""
    low, high = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low).clamp_min(torch.finfo(x.dtype).tiny), 0).float().cpu()


def signed_unit(x: Tensor) -> Tensor:
    largest = x.abs().amax((1, 2), keepdim=True)
    return torch.where(largest > 0, x / largest.clamp_min(torch.finfo(x.dtype).tiny), 0).float().cpu()
