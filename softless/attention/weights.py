"""How much each token enters the first token's output, from the sums of a streaming form alone.

The operator is linear in v, so a token's weight is the slope of that output in its v, through what
it adds to the last sweep's summary.
"""

# B batch, H heads, D features, n tokens of a chunk

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from softless.attention.streaming import Streaming, Summary, Tokens


def pull(streaming: Streaming, first: Tokens, total: Summary, extras: Mapping[str, Any]) -> Summary:
    """The slope of the first token's output in each entry of the last sweep's summary: its row of
    A, before the keys are known.

    Args:
        streaming: the form.
        first: the token alone.
        total: the last sweep's summary of all tokens.
        extras: options, learned tensors, grid.
    """
    apart = {name: detached(x) for name, x in extras.items()}
    with torch.enable_grad():
        leaves = {name: _leaf(x) for name, x in total.items()}
        reader = streaming.sweeps[-1].finish(leaves, **apart)
        out = streaming.read(_detached(first), reader, **apart)
        differentiable = {name: x for name, x in leaves.items() if x.requires_grad}
        slopes = torch.autograd.grad(
            out[..., 0, 0].sum(), list(differentiable.values()), allow_unused=True
        )
    return {
        name: slope.detach()
        for name, slope in zip(differentiable, slopes, strict=True)
        if slope is not None
    }


def row(
    streaming: Streaming,
    tokens: Tokens,
    total: Summary,
    pulled: Summary,
    reader: Any,
    extras: Mapping[str, Any],
) -> Tensor:
    """The first token's weights over the tokens of a chunk: (B,H,n), signed.

    Args:
        streaming: the form.
        tokens: the chunk.
        total: the last sweep's summary of all tokens, the chunk among them.
        pulled: what `pull` answered.
        reader: of the sweep before the last, or None.
        extras: options, learned tensors, grid.
    """
    sweep, tokens = streaming.sweeps[-1], _detached(tokens)
    with torch.enable_grad():
        v = tokens.v.requires_grad_()
        chunk_summary = sweep.summarise(
            replace(tokens, v=v), reader, **{name: detached(x) for name, x in extras.items()}
        )
        summary = {name: y.to(total[name].dtype) for name, y in chunk_summary.items()}
        rest = (
            total
            if sweep.without is None
            else sweep.without(total, {name: y.detach() for name, y in summary.items()})
        )
        merged = sweep.merge(rest, summary)
        through = torch.stack([
            (merged[name] * slope).sum() for name, slope in pulled.items()
        ]).sum()
        (weights,) = torch.autograd.grad(through, v)
    return weights[..., 0]


def detached(value: Any) -> Any:
    """A tensor, or a mapping of them, without gradients."""
    if isinstance(value, Mapping):
        return {name: detached(entry) for name, entry in value.items()}
    return value.detach() if isinstance(value, Tensor) else value


def _detached(tokens: Tokens) -> Tokens:
    return replace(tokens, q=tokens.q.detach(), k=tokens.k.detach(), v=tokens.v.detach().clone())


def _leaf(x: Tensor) -> Tensor:
    x = x.detach().clone()
    return x.requires_grad_() if x.is_floating_point() else x
