"""Softmax attention: the baseline row of every table.

    o_n = sum_m softmax_m(<q_n, k_m> * scale) v_m,        scale = 1 / sqrt(D)

Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv:1706.03762. The fast backend is
torch's fused kernel.
"""

# B batch, H heads, N query tokens, M key tokens, D features of q and k

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from softless.attention.norms import keep
from softless.attention.options import DROPOUT, Option
from softless.attention.record import TOLERANCE, Backend, Bounds, Claims, Dims, Identity, Operator
from softless.attention.transforms import transformed


def _bias(
    q: Tensor, k: Tensor, mask: Tensor | None, pairwise: Tensor | None, causal: bool
) -> Tensor | None:
    """All masks as one additive (…,N,M) tensor of 0 and -inf, plus what an additive `pairwise`
    holds.
    """
    allowed: Tensor | None = None if mask is None else mask[:, None, None, :]
    if causal:
        triangle = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
        allowed = triangle if allowed is None else allowed & triangle
    if pairwise is not None and pairwise.dtype == torch.bool:
        allowed = pairwise if allowed is None else allowed & pairwise
    bias = None if pairwise is None or pairwise.dtype == torch.bool else pairwise.to(q.dtype)
    if allowed is None:
        return bias
    closed = torch.zeros((), dtype=q.dtype, device=q.device).masked_fill(~allowed, float("-inf"))
    return closed if bias is None else closed + bias


def _rows(o: Tensor, bias: Tensor | None, query_mask: Tensor | None) -> Tensor:
    """Zero in the rows that may look at nothing and in the masked ones."""
    if bias is not None:
        o = o.masked_fill((bias == float("-inf")).all(-1, keepdim=True), 0)
    return keep(o, query_mask)


def _open(bias: Tensor) -> Tensor:
    """The bias with rows that allow nothing opened: they are zeroed afterwards, and never become
    NaN on the way.
    """
    return bias.masked_fill((bias == float("-inf")).all(-1, keepdim=True), 0)


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    scale: float | None = None,
    pairwise: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """The formula as printed: q (B,H,N,D), k (B,H,M,D), v (B,H,M,E) -> (B,H,N,E)."""
    q, k, v = keep(q, query_mask), keep(k, mask), keep(v, mask)
    bias = _bias(q, k, mask, pairwise, causal)
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if bias is None else scores + _open(bias)
    return _rows(F.dropout(scores.softmax(-1), dropout) @ v, bias, query_mask)


def eager(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None,
    query_mask: Tensor | None,
    scale: float | None,
    pairwise: Tensor | None,
    causal: bool,
    dropout: float,
) -> Tensor:
    """torch's fused kernel, which never holds the N x M matrix; rows that may look at nothing are
    zero. Shapes: q (B,H,N,D), k (B,H,M,D), v (B,H,M,E) -> (B,H,N,E).

    It has no forward-mode derivative: under a transform the formula stands in.
    """
    if transformed():
        return reference(
            q,
            k,
            v,
            mask=mask,
            query_mask=query_mask,
            scale=scale,
            pairwise=pairwise,
            causal=causal,
            dropout=dropout,
        )
    q, k, v = keep(q, query_mask), keep(k, mask), keep(v, mask)
    if mask is None and pairwise is None:
        return _rows(
            F.scaled_dot_product_attention(
                q, k, v, dropout_p=dropout, is_causal=causal, scale=scale
            ),
            None,
            query_mask,
        )
    bias = _bias(q, k, mask, pairwise, causal)
    return _rows(
        F.scaled_dot_product_attention(
            q, k, v, attn_mask=None if bias is None else _open(bias), dropout_p=dropout, scale=scale
        ),
        bias,
        query_mask,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def flops(d: Dims) -> int:
    """q k^T and A v, 2 FLOPs per multiply-add."""
    return 2 * d.B * d.H * d.N * d.M * (d.D + d.E)


SPEC = Operator(
    identity=Identity(
        name="softmax",
        summary="the baseline: every query weighs every key by an exponential",
        formula="o = softmax(q kᵀ / √D) v",
        paper="arXiv:1706.03762",
        title="Softmax",
    ),
    reference=reference,
    claims=Claims(
        flops=flops,
        exps=lambda d: d.B * d.H * d.N * d.M,
        growth="N^2",
        normalises="rows",
        scale_free=False,
        equivariant=True,
        implied_matrix=True,
        cross=True,
        masks=("token", "pairwise", "causal"),
        drops_weights=True,
    ),
    streaming=None,
    no_stream="each query weighs every key by an exponential of their product: no summary of the "
    "keys smaller than the keys holds that",
    options={
        "scale": Option(
            None,
            "what q k^T is multiplied by; None is 1 / sqrt(D)",
            lambda value: value is None or _is_number(value),
            "None or a number",
        ),
        "pairwise": Option(
            None,
            "mask over pairs, broadcast to (B,H,N,M): boolean (True where a query may see a key) "
            "or added to the scores",
            lambda value: (
                value is None
                or (
                    isinstance(value, Tensor)
                    and (value.dtype == torch.bool or value.is_floating_point())
                )
            ),
            "None, a boolean or a floating-point tensor",
        ),
        "causal": Option(
            default=False,
            says="a query sees the keys up to its own position",
            accepts=lambda value: isinstance(value, bool),
            values="True or False",
        ),
        "dropout": DROPOUT,
    },
    own=(
        Backend(
            name="eager",
            fn=eager,
            bounds=Bounds(
                native_half=True,
                # the fused kernel's running sum over many like keys
                tolerance={**TOLERANCE, torch.float32: 5e-6},
            ),
        ),
    ),
)
