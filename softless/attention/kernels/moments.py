"""Means, sums of squares and products about the means in one sweep, and centred reading: native
kernels as operators of torch, for inference.

Groups of tokens are centred on their own means in float32 and merge in float64
(softless/attention/moments.py has the formulas).
"""

# B batch, H heads, N query tokens, M key tokens, D features of q and k, E features of v

from typing import Any

import torch
from torch import Tensor

from softless.attention.kernels import native
from softless.attention.kernels.formulas import register_flop_formula

library = torch.library.Library("softless", "FRAGMENT")
library.define("moments(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? query_mask) -> Tensor")
library.define(
    "centred(Tensor q, Tensor v, Tensor middle, Tensor matrix, Tensor offset, Tensor? query_mask) "
    "-> Tensor"
)


def _room(q: Tensor, v: Tensor) -> Tensor:
    B, H, _, D = q.shape
    E = v.shape[3]
    return torch.empty(B, H * (4 * D + 2 * E + D * E), dtype=torch.float64, device=q.device)


def moments(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, query_mask: Tensor | None
) -> Tensor:
    """What `split` takes apart: (B, H (4 D + 2 E + D E)), float64, of q (B,H,N,D), k (B,H,M,D) and
    v (B,H,M,E).
    """
    q, k, v = map(native.dense, (q, k, v))
    sums = _room(q, v)
    native.run(
        "moments",
        native.sizes(q, k, v),
        q.dtype,
        q=native.at(q),
        k=native.at(k),
        v=native.at(v),
        mask=mask,
        query_mask=query_mask,
        moments=sums,
    )
    return sums


def centred(
    q: Tensor, v: Tensor, middle: Tensor, matrix: Tensor, offset: Tensor, query_mask: Tensor | None
) -> Tensor:
    """(q - middle) matrix + offset, (B,H,N,E), laid out by tokens."""
    q, o = native.dense(q), native.by_tokens(q, v)
    middle, matrix, offset = (
        middle.double().contiguous(),
        matrix.float().contiguous(),
        offset.float().contiguous(),
    )
    native.run(
        "centred",
        native.sizes(q, q, v),
        q.dtype,
        q=native.at(q),
        out=native.at(o),
        query_mask=query_mask,
        context=matrix,
        middle=middle,
        offset=offset,
    )
    return o


for function in (moments, centred):
    library.impl(function.__name__, function, "CPU")
    native.without_gradient(
        library,
        function.__name__,
        'the native kernels of "seqnorm" have no gradient: pass backend="eager" to softless.attend',
    )


@torch.library.register_fake("softless::moments", lib=library)
def _fake_moments(q: Tensor, _k: Tensor, v: Tensor, *_: Any) -> Tensor:
    return _room(q, v)


@torch.library.register_fake("softless::centred", lib=library)
def _fake_centred(q: Tensor, v: Tensor, *_: Any) -> Tensor:
    return native.by_tokens(q, v)


@register_flop_formula(torch.ops.softless.moments)
def _moments_flops(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return 2 * q[0] * q[1] * k[2] * q[3] * v[3]


@register_flop_formula(torch.ops.softless.centred)
def _centred_flops(q: Any, v: Any, *_: Any, **__: Any) -> int:
    return 2 * q[0] * q[1] * q[2] * q[3] * v[3]


def summed(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, query_mask: Tensor | None
) -> dict[str, Tensor]:
    """Float64 means and sums of squares about them of q, k (B,H,1,D) and v (B,H,1,E), and of their
    products "products" (B,H,D,E).
    """
    B, H, _, D = q.shape
    E = v.shape[3]
    sums = torch.ops.softless.moments(q, k, v, mask, query_mask)
    widths = {
        f"{side}_{name}": width
        for side, width in (("q", D), ("k", D), ("v", E))
        for name in ("mean", "squares")
    }
    *parts, products = sums.split([H * width for width in widths.values()] + [H * D * E], dim=1)
    summary = {name: part.view(B, H, 1, -1) for name, part in zip(widths, parts, strict=True)}
    return summary | {"products": products.view(B, H, D, E)}


def read(
    q: Tensor, v: Tensor, middle: Tensor, matrix: Tensor, offset: Tensor, query_mask: Tensor | None
) -> Tensor:
    """(q - middle) matrix + offset, (B,H,N,E), 0 where a query does not count; middle (B,H,1,D),
    matrix (B,H,D,E), offset (B,H,1,E).
    """
    B, H, _, D = q.shape
    E = v.shape[3]
    terms = middle.expand(B, H, 1, D), matrix.expand(B, H, D, E), offset.expand(B, H, 1, E)
    return torch.ops.softless.centred(q, v, *terms, query_mask)
