"""relu features times a table of cosines and sines of the tokens' places: linear attention with
weights that fall with distance.

cos(a - b) = cos a cos b + sin a sin b, so a weight cos(a_i - a_j) between tokens i and j is a
product of features. With T table entries per token the features are T D wide:

    summary:  F_k^T V  (T D x E)  and  sum F_k  (T D), plain sums over tokens
    output:   F_q (F_k^T V) / max(F_q . sum F_k, eps)
"""

# B batch, H heads, N tokens, D features of q and k, E features of v, T table entries per token

import torch
from torch import Tensor

from softless.attention.norms import keep, product
from softless.attention.options import Option
from softless.attention.streaming import Summary

FLOOR = Option(
    default=1e-6,
    says="smallest sum of weights that is divided by",
    accepts=lambda value: isinstance(value, float) and value > 0,
    values="a positive number",
)


def features(x: Tensor, table: Tensor | None, mask: Tensor | None) -> Tensor:
    """relu(x) times each table entry of its token: x (B,H,N,D), table (B or 1, N, T) -> (B,H,N,TD);
    None is a table of ones.
    """
    x = keep(x, mask).relu()
    return (
        x
        if table is None
        else (table[:, None, :, :, None].to(x.dtype) * x[..., None, :]).flatten(-2)
    )


def summarise(k: Tensor, v: Tensor, table: Tensor | None, mask: Tensor | None) -> Summary:
    """Both sums over some keys k (B,H,m,D): "context" (B,H,TD,E) and "total" (B,H,1,TD)."""
    f_k = features(k, table, mask)
    return {"context": product(f_k, keep(v, mask)), "total": f_k.sum(-2, keepdim=True)}


def read(
    q: Tensor, summary: Summary, table: Tensor | None, mask: Tensor | None, eps: float
) -> Tensor:
    """The output of some queries; 0 for a query that no feature lets through, NaN where the sum of
    weights overflows: a quotient would be 0. Shapes: q (B,H,n,D), the output (B,H,n,E).
    """
    f_q = features(q, table, mask)
    weights = (f_q * summary["total"]).sum(-1, keepdim=True).clamp_min(eps)
    return (f_q @ summary["context"]) / weights.masked_fill(weights == float("inf"), float("nan"))


def waves(angle: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of angles of any shape, in their own dtype."""
    return torch.cos(angle), torch.sin(angle)
