"""Magnitude-aware linear attention: linear weights scaled and shifted, so that they grow with the query as softmax's do.

    z = s phi(q) . mean phi(k)
    o = (1 + 1 / (z + eps)) s phi(q) (phi(k)^T v / M) - z mean v,        s = 1 / sqrt(D)

With K = mean(phi(k)^T v) - mean(phi(k))^T mean(v) the two near-equal terms need not be subtracted:

    o = (1 + 1 / (z + eps)) s phi(q) K + z / (z + eps) mean v

phi is elu + 1, as published, or relu, which takes no exponential. Weights sum to one, but for eps, and may be negative.
Fan et al., "Rectifying Magnitude Neglect in Linear Attention", ICCV 2025, arXiv:2507.00698; scale and means are the code's.
"""

# B batch, H heads, N query tokens, M key tokens, D features of q and k, E features of v

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from softless.attention import averages, cosine
from softless.attention.norms import keep
from softless.attention.options import Option
from softless.attention.record import TOLERANCE, Backend, Bounds, Claims, Dims, Identity, Operator
from softless.attention.streaming import Streaming, Summary, Sweep, Tokens, at_once


def reference(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, query_mask: Tensor | None = None, feature: str = "elu", eps: float = 1e-6) -> Tensor:  # fmt: skip
    """The formula as the code has it, without its rotation."""
    s = q.shape[-1] ** -0.5
    f_q, f_k = (keep(F.elu(x) + 1 if feature == "elu" else x.relu(), some) for x, some in ((q, query_mask), (k, mask)))
    key, value, context = averages.plain(f_k, v, mask)
    z = s * averages.along(f_q, key)
    return keep(s * (f_q @ context) * (1 + 1 / (z + eps)) - z * value, query_mask)


def features(x: Tensor, mask: Tensor | None, feature: str) -> Tensor:
    """phi of tokens x (B,H,N,D); elu + 1 as exp(x) below zero, where it would cancel."""
    x = keep(x, mask)
    made = x.relu() if feature == "relu" else torch.where(x > 0, x + 1, x.clamp_max(0).exp())
    return keep(made, mask)


def summarise(tokens: Tokens, _: None, *, feature: str, **__: Any) -> Summary:
    """Averages of the keys' features and the values of a chunk."""
    return averages.summarise(features(tokens.k, tokens.mask, feature), tokens.v, tokens.mask)


def read(tokens: Tokens, of: averages.Averages, *, feature: str, eps: float) -> Tensor:
    """The output of these queries."""
    q = features(tokens.q, tokens.query_mask, feature)
    s = q.shape[-1] ** -0.5
    z = s * averages.along(q, of.key)
    o = s * (q @ of.covariance.to(q.dtype)) * (1 + 1 / (z + eps)) + z / (z + eps) * of.value.to(q.dtype)
    return keep(o, tokens.query_mask)


STREAMING = Streaming(
    (Sweep(summarise, averages.finish, averages.merge, without=averages.without),),
    read,
    averages.HOLDS,
    averages.MERGES,
)


def exps(d: Dims) -> int:
    """One for each entry of q and k, or none with relu."""
    return 0 if d.options["feature"] == "relu" else d.B * d.H * d.D * (d.N + d.M)


SPEC = Operator(
    Identity(
        name="mala",
        title="MALA",
        summary="linear weights scaled and shifted so that they grow with the query",
        formula="o = (1 + 1/z) s φ(q) (φ(k)ᵀ v) / M − z mean v, z = s φ(q) · mean φ(k), s = 1/√D",
        paper="arXiv:2507.00698",
        differs="The published rotation of the product (RoPE), gate and convolution of v are not part of the operator: with the rotation its rows do "
        "not sum to one. Printed β and γ leave s and 1/M out; the code has them.",
    ),
    reference,
    Claims(flops=averages.flops, exps=exps, normalises="rows"),
    streaming=STREAMING,
    options={
        "feature": Option(
            "elu",
            "features: elu + 1, as published, or relu, without exponentials",
            lambda value: value in {"elu", "relu"},
            "'elu' or 'relu'",
        ),
        "eps": cosine.FLOOR,
    },
    own=(Backend("eager", at_once(STREAMING), bounds=Bounds(tolerance={**TOLERANCE, **averages.TOLERANCE_FLOAT32})),),
)
