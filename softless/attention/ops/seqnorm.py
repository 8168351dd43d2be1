"""Sequence normalisation: q, k and v standardised over the tokens, no softmax.

    SN(x)_nf = gamma_f (x_nf - mean_f) / sqrt(var_f + eps) + beta_f        mean and biased variance over the tokens
    o = (1 / M) SN(q) (SN(k)^T SN(v))

The standardised columns have mean zero, so the cross terms vanish and

    (1 / M) SN(k)^T SN(v) = diag(gamma_k / s_k) S_kv / M diag(gamma_v / s_v) + beta_k^T beta_v,    s = sqrt(var + eps)

where S_kv is the sum of products of centred k and v: with gamma = 1, beta = 0 the matrix of
correlations between channels. So the summary is counts, means, squares and products, which merge
exactly (softless/attention/moments.py). Khader et al., "Compute-Efficient Medical Image
Classification with Softmax-Free Transformers and Sequence Normalization", 2024, arXiv:2406.01314.
No code and no text of the paper's body was available; eps, the biased variance and separate affines
are our choice.
"""

# B batch, H heads, N query tokens, M key tokens, D features of q and k, E features of v

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from softless.attention import moments
from softless.attention.kernels import moments as kernel
from softless.attention.kernels import native
from softless.attention.linear import FLOOR
from softless.attention.norms import keep, seen
from softless.attention.options import Learned
from softless.attention.record import TOLERANCE, Backend, Bounds, Claims, Dims, Identity, Operator
from softless.attention.streaming import Streaming, Summary, Sweep, Tokens, at_once

EPS = 1e-5


def standardise(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None, eps: float) -> Tensor:
    """SN of the docstring: (B,H,N,D) -> (B,H,N,D); 0 where a token does not count."""
    count = x.shape[-2] if mask is None else mask.sum(-1)[:, None, None, None].clamp_min(1)
    x = keep(x, mask)
    x = keep(x - x.sum(-2, keepdim=True) / count, mask)
    spread = (seen(x.square().sum(-2, keepdim=True)) / count + eps).sqrt()
    return keep(weight * x / spread + bias, mask)


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    learned: dict[str, Tensor],
    mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    eps: float = EPS,
) -> Tensor:
    """The formula as printed: q (B,H,N,D), k (B,H,M,D), v (B,H,M,E) -> (B,H,N,E)."""
    q_hat = standardise(q, learned["q_weight"], learned["q_bias"], query_mask, eps)
    k_hat = standardise(k, learned["k_weight"], learned["k_bias"], mask, eps)
    v_hat = standardise(v, learned["v_weight"], learned["v_bias"], mask, eps)
    count = k.shape[-2] if mask is None else mask.sum(-1)[:, None, None, None].clamp_min(1)
    return q_hat @ (k_hat.mT @ v_hat / count)


def summarise(tokens: Tokens, _: None, **__: Any) -> Summary:
    """Counts, means and sums of squares of q, k and v, and the sum of products of k and v, all
    about their own means.
    """
    queries, keys = (
        moments.number(tokens.q, tokens.query_mask),
        moments.number(tokens.k, tokens.mask),
    )
    q_mean = moments.mean(tokens.q, tokens.query_mask, queries)
    k_mean, v_mean = (moments.mean(x, tokens.mask, keys) for x in (tokens.k, tokens.v))
    q = moments.centred(tokens.q, q_mean, tokens.query_mask)
    k, v = (
        moments.centred(tokens.k, k_mean, tokens.mask),
        moments.centred(tokens.v, v_mean, tokens.mask),
    )
    return {
        "queries": queries,
        "keys": keys,
        "q_mean": q_mean,
        "k_mean": k_mean,
        "v_mean": v_mean,
        "q_squares": moments.squares(q),
        "k_squares": moments.squares(k),
        "v_squares": moments.squares(v),
        "products": moments.products(k, v),
    }


def merge(a: Summary, b: Summary) -> Summary:
    """Moments of both sets of tokens about their common means."""
    together: Summary = {"queries": a["queries"] + b["queries"], "keys": a["keys"] + b["keys"]}
    apart = {side: b[f"{side}_mean"] - a[f"{side}_mean"] for side in "qkv"}
    for side, counts in (("q", "queries"), ("k", "keys"), ("v", "keys")):
        mean, weight = moments.shift(a[f"{side}_mean"], b[f"{side}_mean"], a[counts], b[counts])
        together[f"{side}_mean"] = mean
        together[f"{side}_squares"] = (
            a[f"{side}_squares"] + b[f"{side}_squares"] + weight * apart[side].square()
        )
    _, weight = moments.shift(a["k_mean"], b["k_mean"], a["keys"], b["keys"])
    together["products"] = a["products"] + b["products"] + weight * apart["k"].mT * apart["v"]
    return together


def finish(
    summary: Summary, *, learned: dict[str, Tensor], eps: float, **_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of q (B,H,1,D), the D x E matrix that turns centred queries into outputs, and what
    is added to every row (B,H,1,E).
    """
    own = {name: moments.summed(value) for name, value in learned.items()}
    keys = summary["keys"]
    scale = {
        side: own[f"{side}_weight"]
        / (seen(summary[f"{side}_squares"]) / summary[counts].clamp_min(1) + eps).sqrt()
        for side, counts in (("q", "queries"), ("k", "keys"), ("v", "keys"))
    }
    matrix = (
        scale["k"].mT * (summary["products"] / keys.clamp_min(1)) * scale["v"]
        + own["k_bias"].mT * own["v_bias"]
    )
    matrix = matrix.masked_fill(keys == 0, 0)
    offset = (own["q_bias"].mT * matrix).sum(-2, keepdim=True)
    return summary["q_mean"], scale["q"].mT * matrix, offset


def read(tokens: Tokens, reader: tuple[Tensor, Tensor, Tensor], **_: Any) -> Tensor:
    """The output of these queries, (B,H,n,E)."""
    middle, matrix, offset = reader
    q = moments.centred(tokens.q, middle, tokens.query_mask)
    return keep(q @ matrix.to(q.dtype) + offset.to(q.dtype), tokens.query_mask)


def native_sums(tokens: Tokens, **_: Any) -> Summary:
    """`summarise` by the native kernels."""
    counts = {
        "queries": moments.number(tokens.q, tokens.query_mask),
        "keys": moments.number(tokens.k, tokens.mask),
    }
    return counts | kernel.summed(tokens.q, tokens.k, tokens.v, tokens.mask, tokens.query_mask)


def native_sweep(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    learned: dict[str, Tensor],
    mask: Tensor | None,
    query_mask: Tensor | None,
    eps: float,
) -> Tensor:
    """The same by the native kernels: one sweep over q, k and v, the algebra of D x E numbers, one
    sweep over q. Shapes: q (B,H,N,D), k (B,H,M,D), v (B,H,M,E) -> (B,H,N,E).
    """
    summary = native_sums(Tokens(q, k, v, mask, query_mask))
    return kernel.read(q, v, *finish(summary, learned=learned, eps=eps), query_mask)


def flops(d: Dims) -> int:
    """Both products, 2 FLOPs per multiply-add."""
    return 2 * d.B * d.H * d.D * d.E * (d.N + d.M)


STREAMING = Streaming(
    sweeps=(Sweep(summarise, finish, merge, native=native_sums),),
    read=read,
    holds="counts, means and centred Σx² of q, k and v (D each), centred Σkᵀv (D x E)",
    merges="Chan's formula: means by their counts, moments with the product of the means' "
    "differences",
)


def _affine(side: str, start: float) -> Learned:
    return Learned(
        lambda sizes: (sizes.heads, 1, sizes.values if side == "v" else sizes.head_dim),
        start,
        weight_decay=False,
    )


SPEC = Operator(
    identity=Identity(
        name="seqnorm",
        summary="q, k and v standardised over the tokens, learned affine, 1/N",
        formula="o = q^ (k^ᵀ v^) / N, x^ = γ (x − μ) / √(σ² + ε) + β over tokens",
        paper="arXiv:2406.01314",
        title="SeqNorm",
        differs="No code was published, and the body of the paper was not available: eps = 1e-5 "
        "inside the root, the biased variance, separate affines for "
        "q, k and v, and 1/N on the product of keys and values are a reconstruction.",
    ),
    reference=reference,
    claims=Claims(
        flops=flops,
        exps=lambda _: 0,
        growth="N",
        normalises="tokens",
        scale_free=False,  # but for eps it is: tests/ops/test_seqnorm.py
        equivariant=True,
        implied_matrix=False,  # v is standardised: the output is not linear in it
        cross=True,
        linear_in_v=False,
    ),
    streaming=STREAMING,
    options={"eps": replace(FLOOR, default=EPS, says="added to the variance under the root")},
    learned={
        f"{side}_{name}": _affine(side, start)
        for side in "qkv"
        for name, start in (("weight", 1.0), ("bias", 0.0))
    },
    own=(
        Backend(
            name="native",
            fn=native_sweep,
            refuses=native.refuses,
            bounds=Bounds(
                native_half=True,
                differentiable=False,
                tolerance={**TOLERANCE, torch.float32: 1e-5},
            ),
            here=native.here,
        ),
        Backend(
            name="eager",
            fn=at_once(STREAMING),
            bounds=Bounds(
                tolerance={**TOLERANCE, torch.float32: 1e-5},
            ),
        ),
    ),
)
