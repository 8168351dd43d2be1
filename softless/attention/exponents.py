"""Averages of v with weights exp(score), as sums that carry their largest exponent: exact for
scores of any size.

For R rows of scores over the tokens (landmarks, channels or random features):

    summary:  top_r = max_m s_mr,   sum_r = sum_m exp(s_mr - top_r),   context_r = sum_m exp(s_mr - top_r) v_m
    merge:    both brought to the larger top, then added
"""

# B batch, H heads, M tokens, R rows of scores, E features of v

import torch
from torch import Tensor

from softless.attention.norms import keep, product
from softless.attention.streaming import Summary


def weigh(scores: Tensor, v: Tensor, mask: Tensor | None) -> Summary:
    """Summary of tokens with scores (B,H,M,R) and values v (B,H,M,E); a masked token has no weight,
    whatever it holds.
    """
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, :, None], float("-inf"))
    top = _top(scores)
    weights = (scores - _finite(top)).exp()
    total = product(weights, torch.ones_like(weights[..., :1]))
    return {"top": top.mT, "sum": total, "context": product(weights, keep(v, mask))}


def merge(a: Summary, b: Summary) -> Summary:
    """Summary of both sets of tokens."""
    top = torch.maximum(a["top"], b["top"])
    rise_a, rise_b = ((x["top"] - _finite(top)).exp() for x in (a, b))
    return {
        "top": top,
        "sum": a["sum"] * rise_a + b["sum"] * rise_b,
        "context": a["context"] * rise_a + b["context"] * rise_b,
    }


def averages(summary: Summary) -> Tensor:
    """(B,H,R,E): each row's weighted mean of v; 0 where no token counts."""
    return summary["context"] / summary["sum"].masked_fill(summary["sum"] == 0, 1)


def log_totals(summary: Summary) -> Tensor:
    """(B,H,R,1): log of each row's sum of exp(score); minus infinity where no token counts."""
    total = summary["sum"]
    empty = total == 0
    return (total.masked_fill(empty, 1).log() + _finite(summary["top"])).masked_fill(
        empty, float("-inf")
    )


def _top(scores: Tensor) -> Tensor:
    """(B,H,1,R) largest score per row; minus infinity where there is none."""
    scores = scores.detach()
    if scores.shape[-2] == 0:
        return scores.new_full((*scores.shape[:2], 1, scores.shape[-1]), float("-inf"))
    return scores.amax(-2, keepdim=True)


def _finite(top: Tensor) -> Tensor:
    return top.masked_fill(top == float("-inf"), 0)


def softmax_over_tokens(scores: Tensor, mask: Tensor | None) -> Tensor:
    """(B,H,M,R) weights of each row over the tokens that count, as printed in a formula; all 0
    where none does.
    """
    if mask is None:
        return scores.softmax(-2)
    shut = ~mask[:, None, :, None]
    return scores.masked_fill(shut, torch.finfo(scores.dtype).min).softmax(-2).masked_fill(shut, 0)


def softmax_over_keys(scores: Tensor, mask: Tensor | None) -> Tensor:
    """(B,H,N,M) weights of each query over the keys that count (B,M); all 0 where none does."""
    if mask is None:
        return scores.softmax(-1)
    shut = ~mask[:, None, None, :]
    return scores.masked_fill(shut, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(shut, 0)
