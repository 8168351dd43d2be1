"""Magnitude-aware linear attention: linear weights scaled and shifted, so that they grow with the
query as softmax's do.

    z = s phi(q) . mean phi(k)
    o = (1 + 1 / (z + eps)) s phi(q) (phi(k)^T v / M) - z mean v,        s = 1 / sqrt(D)

With K = mean(phi(k)^T v) - mean(phi(k))^T mean(v) the two near-equal terms need not be subtracted:

    o = (1 + 1 / (z + eps)) s phi(q) K + z / (z + eps) mean v

phi is elu + 1, as published, or relu, which takes no exponential. Weights sum to one, but for eps,
and may be negative.

`rotate` turns the features in the product and not in z (R, softless/attention/rotary.py), as
published code does. Rows then do not sum to one:

    o = (1 + 1 / (z + eps)) s R phi(q) (R phi(k)^T v / M) - z mean v
Fan et al., "Rectifying Magnitude Neglect in Linear Attention", ICCV 2025, arXiv:2507.00698; scale
and means are the code's.
"""

# B batch, H heads, N query tokens, M key tokens, D features of q and k, E features of v

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from softless.attention import averages, cosine, rotary
from softless.attention.norms import keep
from softless.attention.options import Option
from softless.attention.record import (
    TOLERANCE,
    Backend,
    Bounds,
    Claims,
    Dims,
    Grid,
    HostNeeds,
    Identity,
    Operator,
    Views,
)
from softless.attention.streaming import Streaming, Summary, Sweep, Tokens, at_once


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    feature: str = "elu",
    rotate: bool = False,
    grid: Grid | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """The formula as the code has it: q (B,H,N,D), k (B,H,M,D), v (B,H,M,E) -> (B,H,N,E)."""
    s = q.shape[-1] ** -0.5
    f_q, f_k = (
        keep(F.elu(x) + 1 if feature == "elu" else x.relu(), some)
        for x, some in ((q, query_mask), (k, mask))
    )
    key, value, context = averages.plain(f_k, v, mask)
    z = s * averages.along(f_q, key)
    if rotate:
        assert grid is not None
        f_q, (_, _, context) = rotary.at(f_q, grid), averages.plain(rotary.at(f_k, grid), v, mask)
    return keep(s * (f_q @ context) * (1 + 1 / (z + eps)) - z * value, query_mask)


def features(x: Tensor, mask: Tensor | None, feature: str) -> Tensor:
    """phi of tokens x (B,H,N,D); elu + 1 as exp(x) below zero, where it would cancel."""
    x = keep(x, mask)
    phi = x.relu() if feature == "relu" else torch.where(x > 0, x + 1, x.clamp_max(0).exp())
    return keep(phi, mask)


def class_row(q: Tensor, k: Tensor, *, eps: float, feature: str = "elu") -> Tensor:
    """The first query's weights over all tokens, not turned: (B,H,N,D) twice -> (B,H,1,N)."""
    f_q, f_k = features(q[:, :, :1], None, feature), features(k, None, feature)
    s, key = q.shape[-1] ** -0.5, f_k.mean(-2, keepdim=True)
    z = s * averages.along(f_q, key)
    scores = s * (f_q @ (f_k - key).mT)
    return (scores * (1 + 1 / (z + eps)) + z / (z + eps)) / k.shape[-2]


class Reader(NamedTuple):
    """Averages over the keys' features, turned where `rotate` says so, and the mean of those that
    are not (B,H,1,D).
    """

    turned: averages.Averages
    plain: Tensor


def summarise(
    tokens: Tokens, _: None, *, feature: str, rotate: bool, grid: Grid | None = None, **__: Any
) -> Summary:
    """Averages of the keys' features and the values of a chunk; with `rotate` of turned features,
    and the sum of those that are not.
    """
    f = features(tokens.k, tokens.mask, feature)
    if not rotate:
        return averages.summarise(f, tokens.v, tokens.mask)
    assert grid is not None
    summary = averages.summarise(rotary.at(f, grid, tokens.keys), tokens.v, tokens.mask)
    return summary | {"total": f.sum(-2, keepdim=True)}


def merge(a: Summary, b: Summary) -> Summary:
    """Both sets of keys together."""
    return averages.merge(a, b) | {name: a[name] + b[name] for name in a if name == "total"}


def without(total: Summary, part: Summary) -> Summary:
    """The keys of a whole that are not in a part of it."""
    return averages.without(total, part) | {
        name: total[name] - part[name] for name in total if name == "total"
    }


def finish(summary: Summary, **_: Any) -> Reader:
    """The averages; all zero where no key counts."""
    of = averages.finish(summary)
    if "total" not in summary:
        return Reader(of, of.key)
    return Reader(of, (summary["total"] / summary["count"].clamp_min(1)).to(of.key.dtype))


def read(
    tokens: Tokens, of: Reader, *, feature: str, rotate: bool, eps: float, grid: Grid | None = None
) -> Tensor:
    """The output of these queries, (B,H,n,E)."""
    q = features(tokens.q, tokens.query_mask, feature)
    s = q.shape[-1] ** -0.5
    z = s * averages.along(q, of.plain)
    beta, of_mean = 1 + 1 / (z + eps), z / (z + eps)
    if rotate:
        assert grid is not None
        q = rotary.at(q, grid, tokens.queries)
        of_mean = beta * s * averages.along(q, of.turned.key) - z
    o = s * (q @ of.turned.covariance.to(q.dtype)) * beta + of_mean * of.turned.value.to(q.dtype)
    return keep(o, tokens.query_mask)


STREAMING = Streaming(
    (Sweep(summarise, finish, merge, without=without),),
    read,
    averages.HOLDS,
    averages.MERGES,
)


def limits(d: Dims, *, rotate: bool, **_: Any) -> str | None:
    """Turned features want pairs of channels for both axes, and queries that are the keys'
    tokens.
    """
    if not rotate:
        return None
    if d.N != d.M:
        return f"rotate=True turns {d.N} queries and {d.M} keys by one grid: pass as many of both"
    return rotary.why_not(d.D)


def exps(d: Dims) -> int:
    """One for each entry of q and k, or none with relu; with `rotate` those of the angles."""
    turning = 2 * rotary.exps(d.D, d.grid) if d.options["rotate"] and d.grid else 0
    return turning + (0 if d.options["feature"] == "relu" else d.B * d.H * d.D * (d.N + d.M))


SPEC = Operator(
    Identity(
        name="mala",
        title="MALA",
        summary="linear weights scaled and shifted so that they grow with the query",
        formula="o = (1 + 1/z) s φ(q) (φ(k)ᵀ v) / M − z mean v, z = s φ(q) · mean φ(k), s = 1/√D",
        paper="arXiv:2507.00698",
        differs="The published rotation of the product is `rotate`: with it rows do not sum to "
        "one. The published gate and convolution of v are "
        'companions of the module: `gated="linear"`, `v_conv=5`, `v_conv_filters="channel"`. '
        "Printed β and γ leave s and 1/M out; the code "
        "has them.",
    ),
    reference,
    Claims(flops=averages.flops, exps=exps, normalises="rows", limits=limits),
    streaming=STREAMING,
    options={
        "feature": Option(
            "elu",
            "features: elu + 1, as published, or relu, without exponentials",
            lambda value: value in {"elu", "relu"},
            "'elu' or 'relu'",
        ),
        "rotate": Option(
            default=False,
            says="features turned by row and column in the product, as published; rows do not sum "
            "to one",
            accepts=lambda value: isinstance(value, bool),
            values="True or False",
        ),
        "eps": cosine.FLOOR,
    },
    host=HostNeeds(needs={"grid": lambda options: bool(options["rotate"])}),
    views=Views(class_row=class_row),
    own=(
        Backend(
            "eager",
            at_once(STREAMING),
            bounds=Bounds(tolerance={**TOLERANCE, **averages.TOLERANCE_FLOAT32}),
        ),
    ),
)
