"""Calls to try an operator on: drawn tensors, and small values of its options."""

# B batch, H heads, N queries, M keys, D features of q and k, E features of v

import math
from typing import Any

import torch
from torch import Tensor

from softless.attention.learned import starting
from softless.attention.options import Sizes
from softless.attention.record import Dims, Operator

Inputs = tuple[Tensor, Tensor, Tensor]


def grid_of(tokens: int) -> tuple[int, int, int]:
    """The squarest grid of so many tokens, with or without one prefix token."""
    candidates = [
        (height, prefix, (tokens - prefix) // height)
        for prefix in (0, 1)
        for height in range(1, math.isqrt(tokens) + 1)
        if tokens > prefix
        and (tokens - prefix) % height == 0
        and height * height <= tokens - prefix
    ]
    height, prefix, width = max(candidates)
    return prefix, height, width


def draw(
    op: Operator,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    gain: float = 1.0,
    windows: int = 64,
) -> tuple[Inputs, dict[str, Any]]:
    """q, k and v of a shape (B, H, N, M, D, E), and what else the operator takes.

    Learned tensors are moved away from their start; options have their small values. Where an
    option "ratio" makes windows on the grid there are about `windows` of them. With tied q and k, k
    is q.
    """
    generator = torch.Generator().manual_seed(seed)
    B, H, N, M, D, E = shape

    def make(*size: int) -> Tensor:
        return (gain * torch.randn(size, generator=generator, dtype=torch.float64)).to(dtype)

    q, k, v = make(B, H, N, D), make(B, H, M, D), make(B, H, M, E)
    extras: dict[str, Any] = {
        name: option.small for name, option in op.options.items() if option.small is not None
    }
    if op.wants("grid", extras):
        extras["grid"] = grid_of(M)
        _, height, width = extras["grid"]
        if "ratio" in op.options:
            extras["ratio"] = min(height, width, max(2, math.isqrt(height * width // windows)))
    sizes = Sizes(H, D, op.filled(given_options(op, extras)), M, E)
    if own := starting(op, sizes, generator):
        extras["learned"] = {
            name: (x + 0.3 * torch.rand(x.shape, generator=generator, dtype=torch.float64)).to(
                dtype
            )
            for name, x in own.items()
        }
    return (q, q if op.wants("tied_qk", extras) else k, v), extras


def given_options(op: Operator, extras: dict[str, Any]) -> dict[str, Any]:
    """Of what a call takes besides q, k and v: the options."""
    return {name: value for name, value in extras.items() if name in op.options}


def dims_of(op: Operator, inputs: Inputs, extras: dict[str, Any]) -> Dims:
    """The sizes of a call, with every option."""
    return Dims.of(*inputs, extras.get("grid"), op.filled(given_options(op, extras)))
