"""cosFormer: relu in place of the exponential, and weights that fall with the distance along the
sequence.

    o_i = sum_j w_ij v_j / max(sum_j w_ij, eps),     w_ij = <relu(q_i), relu(k_j)> cos(pi/2 (i - j) / M)

i and j are places from 1, M the larger of the numbers of queries and of keys. Linear in N because
the cosine of a difference is a product of features (softless/attention/cosine.py); |i - j| < M
keeps every weight non-negative. Without re-weighting (`reweight=False`) the cosine is 1. Qin et
al., "cosFormer: Rethinking Softmax in Attention", ICLR 2022, arXiv:2202.08791, equations 9 to 12.
"""

# B batch, H heads, N query tokens, M key tokens, D features of q and k, E features of v

import math
from typing import Any

import torch
from torch import Tensor

from softless.attention import cosine
from softless.attention.norms import keep
from softless.attention.options import Option
from softless.attention.places import key_ranks, query_ranks
from softless.attention.record import TOLERANCE, Backend, Bounds, Claims, Dims, Identity, Operator
from softless.attention.streaming import Streaming, Summary, Tokens


def tables(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """cos and sin of each query's and each key's angle pi/2 i/M: (B or 1, n, 2) and
    (B or 1, m, 2).
    """
    (queries, among_queries), (keys, among_keys) = query_ranks(tokens), key_ranks(tokens)
    longest = torch.maximum(among_queries, among_keys).clamp_min(1)
    angles = ((ranks + 1).to(tokens.q.dtype) * (math.pi / 2) / longest for ranks in (queries, keys))
    waves = [torch.stack(cosine.waves(angle), dim=-1) for angle in angles]
    return waves[0], waves[1]


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    reweight: bool = True,
    eps: float = 1e-6,
) -> Tensor:
    """The formula in its linear form, with both features side by side. Shapes: q (B,H,N,D), k
    (B,H,M,D), v (B,H,M,E) -> (B,H,N,E).
    """
    of_q, of_k = tables(Tokens(q, k, v, mask, query_mask)) if reweight else (None, None)
    f_q, f_k = cosine.features(q, of_q, query_mask), cosine.features(k, of_k, mask)
    weights = (f_q * f_k.sum(-2, keepdim=True)).sum(-1, keepdim=True).clamp_min(eps)
    return f_q @ (f_k.mT @ keep(v, mask)) / weights


def summarise(tokens: Tokens, _: None, *, reweight: bool, **__: Any) -> Summary:
    """Both sums over the keys of a chunk."""
    return cosine.summarise(
        tokens.k, tokens.v, tables(tokens)[1] if reweight else None, tokens.mask
    )


def read(tokens: Tokens, summary: Summary, *, reweight: bool, eps: float, **_: Any) -> Tensor:
    """The output of these queries, (B,H,n,E)."""
    return cosine.read(
        tokens.q, summary, tables(tokens)[0] if reweight else None, tokens.query_mask, eps
    )


STREAMING = Streaming.sums(
    summarise,
    read,
    holds="ΣFₖᵀv (2D x E) and ΣFₖ (2D), F = relu(k) times cos and sin of the place; the total is "
    "known beforehand",
)


def flops(d: Dims) -> int:
    """Context and reading over features 2 D wide (D without re-weighting), 2 FLOPs per
    multiply-add.
    """
    return 2 * d.B * d.H * (2 if d.options["reweight"] else 1) * d.D * d.E * (d.N + d.M)


def _eager(q: Tensor, k: Tensor, v: Tensor, **extras: Any) -> Tensor:
    """The streaming form over all tokens at once, with each table made once."""
    tokens = Tokens(q, k, v, extras["mask"], extras["query_mask"])
    of_q, of_k = tables(tokens) if extras["reweight"] else (None, None)
    return cosine.read(
        q, cosine.summarise(k, v, of_k, tokens.mask), of_q, tokens.query_mask, extras["eps"]
    )


SPEC = Operator(
    identity=Identity(
        name="cosformer",
        summary="relu features, weights that fall with the distance along the sequence",
        formula="o = Σⱼ wᵢⱼ vⱼ / Σⱼ wᵢⱼ, wᵢⱼ = relu(qᵢ)·relu(kⱼ) cos(π/2 (i−j)/M)",
        paper="arXiv:2202.08791",
        title="Cosformer",
        differs="relu is applied within the heads (the published code applies it before the heads "
        "are split: the same numbers). Places are ranks among the "
        "tokens that count. A class token is the first place of the sequence, as in the published "
        "language models; SimA reports that no run with "
        "re-weighting converged on XCiT, and one without did.",
    ),
    reference=reference,
    claims=Claims(
        flops=flops,
        # cosines and sines of the places, once for all heads
        exps=lambda d: 2 * (d.N + d.M) if d.options["reweight"] else 0,
        growth="N",
        normalises="rows",
        scale_free=False,
        equivariant=False,
        implied_matrix=True,
        cross=True,
    ),
    streaming=STREAMING,
    options={
        "reweight": Option(
            default=True,
            says="weights fall with the distance along the sequence; False leaves the cosine out, "
            "and places with it",
            accepts=lambda value: isinstance(value, bool),
            values="True or False",
        ),
        "eps": cosine.FLOOR,
    },
    own=(
        Backend(
            name="eager",
            fn=_eager,
            bounds=Bounds(
                tolerance={**TOLERANCE, torch.float32: 2e-6},
            ),
        ),
    ),
)
