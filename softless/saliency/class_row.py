"""The class token's row of the attention matrix, in the memory of one row.

Any operator with an implied matrix is linear in v: o = A(q, k) v. So the row of token 0 is the
gradient of o_0 with respect to a v of one channel, which costs what one forward and backward pass
cost: linear in N for the linear operators, never the N x N matrix.
"""

from typing import Any

import torch
from torch import Tensor

from softless.attention.attend import attend
from softless.layers.class_attention import ClassAttention


def class_row(attention: Any, q: Tensor, k: Tensor) -> Tensor:
    """(B, N) signed, mean over heads: how much each token's v enters the output of token 0, in
    float64.

    Args:
        attention: the layer: its operator, options and learned tensors are used.
        q: (B, H, N, D).
        k: (B, H, N, D); q again where they are tied.
    """
    q, k = q.detach().double(), k.detach().double()
    extras = attention.extras(k.shape[2])
    if "learned" in extras:
        extras["learned"] = {
            name: value.detach().double() for name, value in extras["learned"].items()
        }
    keys = None if attention.op.wants("tied_qk", attention.options) else k
    with torch.enable_grad():
        v = torch.zeros(*k.shape[:-1], 1, dtype=k.dtype, device=k.device, requires_grad=True)
        out = attend(q, keys, v, op=attention.op, backend="reference", **extras)
        (row,) = torch.autograd.grad(out[..., 0, 0].sum(), v)
    return row[..., 0].mean(1)


def class_attention_row(attention: ClassAttention, tokens: Tensor) -> Tensor:
    """(B, N) of a class attention layer (XCiT), which makes the row itself; tokens (B, N, dim), the
    class token first.
    """
    q, k, _ = (
        attention
        .qkv(tokens)
        .double()
        .unflatten(-1, (3, attention.num_heads, -1))
        .permute(2, 0, 3, 1, 4)
    )
    return attention.row(q, k)[:, :, 0].mean(1)
