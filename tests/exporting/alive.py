"""Weights of `tests/models/lively.py` on which SOFT's kernels count too.

There its kernels are of the order of 1e-12: what its branches add is the convolution of v alone.
"""

from typing import Any

import torch
from torch import Tensor, nn

from softless.layers import Attention
from tests.models.lively import branches, drawn, scaled


def alive(model: nn.Module, image: Tensor) -> Any:
    """The model with random weights whose attention branches are 30 % of the residual, by what
    their operators make; norms multiply each channel by a number of its own.
    """
    model = drawn(model)
    generator = torch.Generator().manual_seed(6)
    for norm in model.modules():
        if isinstance(norm, nn.LayerNorm) and isinstance(norm.weight, Tensor):
            # negative ones too: a largest value does not pass them
            with torch.no_grad():
                norm.weight.copy_(0.8 + 0.5 * torch.randn(norm.weight.shape, generator=generator))
    for module in branches(model).values():
        if isinstance(module, Attention) and "inverse" in module.op.options:
            brought_near(model, module, image)
        scaled(model, module, image)
    return model


@torch.no_grad()
def brought_near(model: nn.Module, attention: Any, image: Tensor) -> None:
    """q and bottleneck tokens so near each other that kernels lie between 0.05 and 1, and a
    convolution of v that leaves them room.
    """
    for name, x in attention.named_parameters():
        if name.startswith("learned.norm"):
            x.mul_(0.3)
        elif name == "learned.conv":  # drawn by torch's own generator, as it stood
            own = torch.Generator().manual_seed(8)
            x.normal_(std=x[0].numel() ** -0.5, generator=own)
    if attention.v_conv is not None:
        attention.v_conv.weight.mul_(0.1)
    seen: list[Tensor] = []
    hook = attention.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    model(image)
    hook.remove()
    factor = 0.6 / attention.project(seen[0])[0].std()
    inner = attention.num_heads * attention.head_dim
    plain = isinstance(attention.q_norm, nn.Identity)
    layer = attention.qv if plain else attention.q_norm
    for x in (layer.weight, layer.bias):
        if x is not None:
            x[: inner if plain else None].mul_(factor)
