"""timm's masks in the terms of the operators: a token mask where one says the same, an error where none does."""

# B batch, H heads, N queries, M keys; in self-attention N = M

from typing import Any

import torch
from torch import Tensor

from softless.attention import Operator
from softless.errors import UsageError


def token_mask(
    op: Operator, x: Tensor, attn_mask: Tensor | None, causal: bool, mask: Tensor | None
) -> tuple[Tensor | None, dict[str, Any]]:
    """The token mask (B, N) that serves keys and queries, and the extras for operators that take more than that.

    Raises:
        UsageError: a mask that varies over queries, a bias that is neither 0 nor minus infinity, or a causal mask, for an operator
            that has no pairwise weights.
    """
    extras: dict[str, Any] = {}
    if causal:
        if "causal" not in op.masks:
            raise UsageError(
                f"operator '{op.name}' sums over all tokens at once and cannot be causal; it takes token masks: pass mask of shape (B, N)"
            )
        extras["causal"] = True
    if attn_mask is None:
        return mask, extras
    if "pairwise" in op.masks:
        return mask, extras | {"pairwise": attn_mask}
    tokens = constant_over_queries(op, x, attn_mask)
    return (tokens if mask is None else tokens & mask), extras


def constant_over_queries(op: Operator, x: Tensor, attn_mask: Tensor) -> Tensor:
    """The (B, M) boolean mask that an attn_mask (…, N or 1, M) says for every query alike."""
    batch, length = x.shape[0], x.shape[1]
    way_out = f"operator '{op.name}' takes token masks: pass mask of shape (B, N) = ({batch}, {length})"
    if attn_mask.ndim < 2 or attn_mask.ndim > 4 or attn_mask.shape[-1] != length:
        raise UsageError(
            f"attn_mask has shape {tuple(attn_mask.shape)}, which does not broadcast to (B, H, N, N); {way_out}"
        )
    rows = (
        attn_mask.reshape((1,) * (4 - attn_mask.ndim) + tuple(attn_mask.shape))
        if attn_mask.ndim != 3
        else attn_mask[:, None]
    )
    first = rows[:, :1, :1]
    if not torch.compiler.is_compiling() and not bool((rows == first).all()):
        raise UsageError(f"attn_mask differs between queries or heads; {way_out}")
    if torch.compiler.is_compiling() and (rows.shape[1] > 1 or rows.shape[2] > 1):
        raise UsageError(
            f"attn_mask of shape {tuple(attn_mask.shape)} cannot be checked inside a compiled graph; {way_out}"
        )
    keep = first if first.dtype == torch.bool else _from_bias(first, way_out)
    return keep[:, 0, 0].expand(batch, length)


def _from_bias(bias: Tensor, way_out: str) -> Tensor:
    """True where an additive mask is 0, False where it shuts a key off; anything between has no meaning without softmax."""
    shut = bias <= torch.finfo(bias.dtype).min / 2
    if not torch.compiler.is_compiling() and not bool((shut | (bias == 0)).all()):
        raise UsageError(
            f"attn_mask adds values other than 0 and minus infinity, which mean nothing without softmax; {way_out}"
        )
    return ~shut
