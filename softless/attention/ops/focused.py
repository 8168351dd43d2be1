"""Focused linear attention: relu features sharpened by a power that keeps their length.

    f(x) = (relu(x) + 1e-6) / softplus(scale),    phi(x) = |f| f^p / |f^p|
    o = phi(q) (phi(k)^T v / M) / (phi(q) . mean phi(k) + eps)

The lengths are taken over all heads together, as published code does, or per head
(`across_heads=False`), as the paper writes. Han et al., "FLatten Transformer: Vision Transformer
using Focused Linear Attention", ICCV 2023, arXiv:2308.00442.
"""

# B batch, H heads, N query tokens, M key tokens, D features of q and k, E features of v

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from softless.attention import averages, cosine
from softless.attention.norms import keep, product
from softless.attention.options import Learned, Option
from softless.attention.record import TOLERANCE, Backend, Bounds, Claims, Dims, Identity, Operator
from softless.attention.streaming import Streaming, Summary, Tokens, at_once

LEAST = 1e-6  # added to relu(x), as published: no token is without a feature


def focus(x: Tensor, scale: Tensor, mask: Tensor | None, power: int, across_heads: bool) -> Tensor:
    """phi of tokens x (B,H,N,D), scale (H,1,D); 0 where a token does not count.

    The power is taken of x over its largest entry, which changes nothing but the range: cubes of
    large values overflow.
    """
    dims = (1, 3) if across_heads else (3,)
    x = (keep(x, mask).relu() + LEAST) / F.softplus(scale)
    y = (x / x.amax(dims, keepdim=True)) ** power
    length = torch.linalg.vector_norm(y, dim=dims, keepdim=True)
    return keep(y * (torch.linalg.vector_norm(x, dim=dims, keepdim=True) / length), mask)


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    learned: Mapping[str, Tensor],
    mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    power: int = 3,
    across_heads: bool = True,
    eps: float = 1e-6,
) -> Tensor:
    """The formula as the code has it since its repair: means in place of sums. Shapes: q (B,H,N,D),
    k (B,H,M,D), v (B,H,M,E) -> (B,H,N,E).
    """
    f_q, f_k = (
        focus(x, learned["scale"], some, power, across_heads)
        for x, some in ((q, query_mask), (k, mask))
    )
    key, _, context = averages.plain(f_k, v, mask)
    return f_q @ context / (averages.along(f_q, key) + eps)


def summarise(
    tokens: Tokens,
    _: None,
    *,
    learned: Mapping[str, Tensor],
    power: int,
    across_heads: bool,
    **__: Any,
) -> Summary:
    """Both sums over the keys of a chunk, (B,H,D,E) and (B,H,1,D), and how many count."""
    f = focus(tokens.k, learned["scale"], tokens.mask, power, across_heads)
    ones = (
        torch.ones_like(f[..., :1])
        if tokens.mask is None
        else tokens.mask[:, None, :, None].to(f.dtype)
    )
    return {
        "context": product(f, keep(tokens.v, tokens.mask)),
        "total": f.sum(-2, keepdim=True),
        "count": ones.sum(-2, keepdim=True),
    }


def read(
    tokens: Tokens,
    sums: Summary,
    *,
    learned: Mapping[str, Tensor],
    power: int,
    across_heads: bool,
    eps: float,
) -> Tensor:
    """The output of these queries, (B,H,n,E)."""
    f = focus(tokens.q, learned["scale"], tokens.query_mask, power, across_heads)
    count = sums["count"].clamp_min(1).to(f.dtype)
    weights = averages.along(f, sums["total"] / count) + eps
    return (
        f
        @ (sums["context"] / count).to(f.dtype)
        / weights.masked_fill(weights == float("inf"), float("nan"))
    )


STREAMING = Streaming.sums(
    summarise, read, holds="Σφ(k)ᵀv (D x E), Σφ(k) (D) and the number of keys"
)


def exps(d: Dims) -> int:
    """softplus of one number per channel, for the queries and for the keys."""
    return 2 * d.H * d.D


SPEC = Operator(
    Identity(
        name="focused",
        summary="relu features sharpened by a power, rows divided by their sums",
        formula="o = φ(q) (φ(k)ᵀ v) / φ(q) Σ φ(k), φ(x) = |f| fᵖ / |fᵖ|, f = relu(x) / "
        "softplus(scale)",
        paper="arXiv:2308.00442",
        differs="Printed per head; published code takes both lengths over all channels before the "
        "heads are split (`across_heads`, the default). The "
        "published learned positions of k and convolution of v are not part of the operator: "
        "`v_conv` is the module's.",
    ),
    reference,
    Claims(flops=averages.flops, exps=exps, normalises="rows"),
    streaming=STREAMING,
    options={
        "power": Option(
            3,
            "power that sharpens the features",
            lambda value: isinstance(value, int) and not isinstance(value, bool) and value > 0,
            "a positive whole number",
        ),
        "across_heads": Option(
            default=True,
            says="lengths over all heads together, as in published weights; False takes them per "
            "head",
            accepts=lambda value: isinstance(value, bool),
            values="True or False",
        ),
        "eps": cosine.FLOOR,
    },
    learned={
        "scale": Learned(lambda sizes: (sizes.heads, 1, sizes.head_dim), 0.0, weight_decay=False)
    },
    own=(
        Backend(
            "eager", at_once(STREAMING), bounds=Bounds(tolerance={**TOLERANCE, torch.float32: 5e-6})
        ),
    ),
)
