"""Efficient attention: softmax over the channels of each query and over the tokens of each key
channel.

    o = softmax_channel(q) (softmax_token(k)^T v)

The implied N x M matrix has rows that sum to 1. Each key channel's softmax is a sum over tokens
that carries its largest exponent. Shen et al., "Efficient Attention: Attention with Linear
Complexities", WACV 2021, arXiv:1812.01243, section 3.
"""

# B batch, H heads, N query tokens, M key tokens, D features of q and k, E features of v

from typing import Any

import torch
from torch import Tensor

from softless.attention import exponents
from softless.attention.norms import keep
from softless.attention.record import TOLERANCE, Backend, Bounds, Claims, Dims, Identity, Operator
from softless.attention.streaming import Streaming, Summary, Sweep, Tokens, at_once


def reference(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, query_mask: Tensor | None = None
) -> Tensor:
    """The formula as printed: q (B,H,N,D), k (B,H,M,D), v (B,H,M,E) -> (B,H,N,E)."""
    context = exponents.softmax_over_tokens(keep(k, mask), mask).mT @ keep(v, mask)
    return keep(keep(q, query_mask).softmax(-1) @ context, query_mask)


def summarise(tokens: Tokens, _: None, **__: Any) -> Summary:
    """Largest key, sum of exponentials and their sum with v, for each channel of the keys."""
    return exponents.weigh(tokens.k, tokens.v, tokens.mask)


def finish(summary: Summary, **_: Any) -> Tensor:
    """(B,H,D,E): each key channel's average of v."""
    return exponents.averages(summary)


def read(tokens: Tokens, context: Tensor, **_: Any) -> Tensor:
    """The output of these queries, (B,H,n,E); context is (B,H,D,E)."""
    return keep(keep(tokens.q, tokens.query_mask).softmax(-1) @ context, tokens.query_mask)


STREAMING = Streaming(
    sweeps=(Sweep(summarise, finish, exponents.merge),),
    read=read,
    holds="per key channel its largest value, Σexp (D) and Σexp·v (D x E)",
    merges="both brought to the larger maximum, then added",
)


def flops(d: Dims) -> int:
    """Context and reading, 2 FLOPs per multiply-add."""
    return 2 * d.B * d.H * d.D * d.E * (d.N + d.M)


SPEC = Operator(
    identity=Identity(
        name="efficient",
        summary="softmax over channels of q and over tokens of k",
        formula="o = softmax_c(q) (softmax_n(k)ᵀ v)",
        paper="arXiv:1812.01243",
        title="Efficient",
        differs="The published module is a convolution with its own residual; here the "
        "projections and the residual are the host's. The paper's variant "
        "that divides q and k by √N is not offered.",
    ),
    reference=reference,
    claims=Claims(
        flops=flops,
        exps=lambda d: d.B * d.H * d.D * (d.N + d.M),
        growth="N",
        normalises="rows",
        scale_free=False,
        equivariant=True,
        implied_matrix=True,
        cross=True,
    ),
    streaming=STREAMING,
    own=(
        Backend(
            name="eager",
            fn=at_once(STREAMING),
            bounds=Bounds(
                tolerance={**TOLERANCE, torch.float32: 1e-5},
            ),
        ),
    ),
)
