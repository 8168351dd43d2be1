"""Cross-covariance attention: softmax over channels, so linear in the number of tokens.

    o_n = A v_n,    A = softmax_row(tau q^^T k^)  (D x D),    x^_nd = x_nd / sqrt(sum_n x_nd^2)

A is made from sums over the tokens; each output reads only its own v. tau is one learned number per
head. El-Nouby et al., "XCiT: Cross-Covariance Image Transformers", NeurIPS 2021, arXiv:2106.09681,
section 3.2.
"""

# B batch, H heads, N tokens, D features

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from softless.attention.linear import FLOOR
from softless.attention.norms import (
    EPS,
    TokenNorm,
    divisor,
    keep,
    magnitude,
    normalise,
    product,
    settle,
)
from softless.attention.options import DROPOUT, Learned
from softless.attention.record import Backend, Claims, Dims, Identity, Operator, Views
from softless.attention.streaming import Streaming, Summary, Sweep, Tokens


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    learned: dict[str, Tensor],
    mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    eps: float = EPS,
    dropout: float = 0.0,
) -> Tensor:
    """The formula as printed: q (B,H,N,D), k (B,H,N,D), v (B,H,N,E) -> (B,H,N,E)."""
    q_hat, k_hat = normalise(q, "l2", query_mask, eps), normalise(k, "l2", mask, eps)
    matrix = (learned["temperature"] * (q_hat.mT @ k_hat)).softmax(-1)
    return keep(keep(v, mask) @ F.dropout(matrix, dropout).mT, query_mask)


def summarise(tokens: Tokens, _: None, **__: Any) -> Summary:
    """Squared norms of q and k and their covariance; every entry is a plain sum over tokens."""
    q, k = (
        settle(keep(tokens.q, tokens.query_mask), "l2"),
        settle(keep(tokens.k, tokens.mask), "l2"),
    )
    return {"q": magnitude(q, "l2"), "k": magnitude(k, "l2"), "covariance": product(q, k)}


def finish(summary: Summary, *, learned: dict[str, Tensor], eps: float, dropout: float) -> Tensor:
    """The matrix (B,H,D,D) of attention between channels."""
    q, k = divisor(summary["q"], "l2", eps).mT, divisor(summary["k"], "l2", eps)
    matrix = (learned["temperature"] * (summary["covariance"] / q / k)).softmax(-1)
    return F.dropout(matrix, dropout)


def read(tokens: Tokens, matrix: Tensor, **_: Any) -> Tensor:
    """The output of these tokens, (B,H,n,D), from their own v."""
    return keep(keep(tokens.v, tokens.mask) @ matrix.mT, tokens.query_mask)


def eager(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None,
    query_mask: Tensor | None,
    **extras: Any,
) -> Tensor:
    """The streaming form over all tokens at once. Here q, k and v are (B,H,N,D), and so is the
    output.
    """
    tokens = Tokens(q, k, v, mask, query_mask)
    return read(tokens, finish(summarise(tokens, None), **extras))


def flops(d: Dims) -> int:
    """q^T k and A v, 2 FLOPs per multiply-add."""
    return 2 * d.B * d.H * d.N * d.D * (d.D + d.E)


SPEC = Operator(
    identity=Identity(
        name="xca",
        summary="softmax between channels instead of tokens",
        formula="o = v softmax(τ q^ᵀ k^)ᵀ, x^ = x / √Σₙx²",
        paper="arXiv:2106.09681",
        title="XCA",
    ),
    reference=reference,
    claims=Claims(
        flops=flops,
        exps=lambda d: d.B * d.H * d.D * d.D,
        growth="N",
        normalises="rows",
        scale_free=True,
        equivariant=True,
        implied_matrix=False,
        cross=False,
        drops_weights=True,
    ),
    streaming=Streaming(
        sweeps=(Sweep(summarise, finish),),
        read=read,
        holds="Σq² (D), Σk² (D) and qᵀk (D x D), sums over tokens; each output then reads its own "
        "v",
        merges="plain addition",
    ),
    options={
        "eps": FLOOR,
        "dropout": DROPOUT,
    },
    learned={
        "temperature": Learned(
            shape=lambda sizes: (sizes.heads, 1, 1), start=1.0, weight_decay=False
        )
    },
    views=Views(
        hat=TokenNorm("l2"),
    ),
    own=(Backend(name="eager", fn=eager),),
)
