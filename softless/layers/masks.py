"""timm's masks in the terms of the operators: a token mask where one says the same, an error where
none does.
"""

# B batch, H heads, N queries, M keys; in self-attention N = M

from typing import Any

import torch
from torch import Tensor

from softless.attention.record import Operator
from softless.attention.recording import recording
from softless.attention.transforms import transformed
from softless.errors import UsageError


def token_mask(
    op: Operator, x: Tensor, attn_mask: Tensor | None, causal: bool, mask: Tensor | None
) -> tuple[Tensor | None, dict[str, Any]]:
    """The token mask (B, N) that serves keys and queries, and the extras for operators that take
    more than that.

    Raises:
        UsageError: a mask that varies over queries, a bias that is neither 0 nor minus infinity, or
            a causal mask, for an operator that has no pairwise weights.
    """
    if mask is not None and (mask.dtype != torch.bool or mask.shape != x.shape[:2]):
        raise UsageError(
            f"mask is {mask.dtype} {tuple(mask.shape)}: it must be torch.bool of shape "
            f"{tuple(x.shape[:2])}, True where a token counts"
        )
    extras: dict[str, Any] = {}
    if causal:
        if "causal" not in op.masks:
            raise UsageError(
                f"operator '{op.name}' sums over all tokens at once and cannot be causal; it "
                "takes token masks: pass mask of shape (B, N)"
            )
        extras["causal"] = True
    if attn_mask is None:
        return mask, extras
    if attn_mask.dtype != torch.bool and not attn_mask.is_floating_point():
        raise UsageError(
            f"attn_mask is {attn_mask.dtype}: it must be boolean, True where a query may look, or "
            "floating-point and added to the scores; "
            "of ones and zeros make attn_mask.bool()"
        )
    if "pairwise" in op.masks:
        return mask, extras | {"pairwise": attn_mask}
    tokens = constant_over_queries(op, x, attn_mask)
    return (tokens if mask is None else tokens & mask), extras


def constant_over_queries(op: Operator, x: Tensor, attn_mask: Tensor) -> Tensor:
    """The (B, M) boolean mask that an attn_mask (…, N or 1, M) says for every query alike.

    A query that may look at nothing and that nobody looks at is padding too, as in the masks of
    NaFlexViT's padded batches.

    Raises:
        UsageError: a shape that does not fit tokens x (B, N, dim), a mask that differs between
            queries or heads, or one that a graph hides.
    """
    batch, length = x.shape[0], x.shape[1]
    way_out = (
        f"operator '{op.name}' takes token masks: pass mask of shape (B, N) = ({batch}, {length})"
    )
    if attn_mask.ndim < 2 or attn_mask.ndim > 4 or attn_mask.shape[-1] != length:
        raise UsageError(
            f"attn_mask has shape {tuple(attn_mask.shape)}, which does not broadcast to (B, H, N, "
            f"N); {way_out}"
        )
    rows = (
        attn_mask.reshape((1,) * (4 - attn_mask.ndim) + tuple(attn_mask.shape))
        if attn_mask.ndim != 3
        else attn_mask[:, None]
    )
    several = rows.shape[1] > 1 or rows.shape[2] > 1
    unseen = torch.compiler.is_compiling() or recording() or bool(transformed())
    if several and unseen:
        raise UsageError(
            f"attn_mask of shape {tuple(attn_mask.shape)} cannot be checked inside a compiled or "
            f"recorded graph or a transform of torch.func; {way_out}"
        )
    if (
        several
        and rows.dtype != torch.bool
        and not _shuts_or_nothing(rows)
        and bool((rows != rows[:, :1, :1]).any())
    ):
        raise UsageError(f"attn_mask differs between queries or heads; {way_out}")
    visible = rows if rows.dtype == torch.bool else _from_bias(rows, unseen, way_out)
    keep = visible.any(2, keepdim=True)[:, :1]
    if several and not _of_tokens(visible, keep):
        raise UsageError(f"attn_mask differs between queries or heads; {way_out}")
    return keep[:, 0, 0].expand(batch, length)


def _of_tokens(visible: Tensor, keep: Tensor) -> bool:
    """Whether every query sees the tokens to keep (B,1,1,M), but for those that are not kept and
    see none; visible is (B,H or 1,N or 1,M).
    """
    alike = (visible == keep).all(-1)
    if visible.shape[2] != keep.shape[3]:
        return bool(alike.all())
    return bool((alike | (~visible.any(-1) & ~keep[:, :, 0])).all())


def _shuts_or_nothing(bias: Tensor) -> bool:
    """Whether an additive mask holds nothing but 0 and minus infinity."""
    return bool(((bias <= torch.finfo(bias.dtype).min / 2) | (bias == 0)).all())


def _from_bias(bias: Tensor, unseen: bool, way_out: str) -> Tensor:
    """True where an additive mask is 0, False where it shuts a key off; anything between has no
    meaning without softmax.
    """
    if not unseen and not _shuts_or_nothing(bias):
        raise UsageError(
            "attn_mask adds values other than 0 and minus infinity, which mean nothing without "
            f"softmax; {way_out}"
        )
    return bias > torch.finfo(bias.dtype).min / 2
