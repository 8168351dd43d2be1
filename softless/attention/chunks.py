"""Attention over tokens in chunks, from the streaming form alone: the same result as the whole, in any order of chunks."""

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from softless.attention.attend import HALF, extras_of, widen
from softless.attention.registry import get
from softless.attention.spec import Operator, Tokens
from softless.errors import UsageError


def attend_chunks(
    chunks: Sequence[Tokens],
    op: str | Operator = "sima",
    *,
    learned: dict[str, Tensor] | None = None,
    grid: tuple[int, int, int] | None = None,
    **options: Any,
) -> list[Tensor]:
    """The output of every chunk, each query attending over the tokens of all chunks.

    Values are those of the whole. Gradients are too, but for a channel that is next to nothing, which each chunk judges by its own norm.

    One pass over the chunks per sweep of the operator, then one that reads; between them only the summary is kept.

    Args:
        chunks: The tokens, cut anywhere; a chunk may hold queries only or keys only (zero-length tensors).
        op: Name in `softless.OPERATORS`, or a record.
        learned: The operator's own tensors.
        grid: (prefix tokens, height, width) for operators that need it.
        **options: The operator's options.

    Returns:
        One (B,H,n,E) tensor per chunk, in the chunk's dtype (float32 sums inside).

    Raises:
        UsageError: the operator has no streaming form (the reason is given), or no chunks.
    """
    record = get(op)
    if record.streaming is None:
        raise UsageError(f"operator '{record.name}' cannot be evaluated in chunks: {record.no_stream}")
    if not chunks:
        raise UsageError("no chunks: at least one is needed")
    extras = {name: widen(value) for name, value in extras_of(record, grid, learned, options).items()}
    reader: Any = None
    for sweep in record.streaming.sweeps:
        summaries = (sweep.summarise(wide(chunk), reader, **extras) for chunk in chunks)
        reader = sweep.finish(reduce(sweep.merge, summaries), **extras)
    read = record.streaming.read
    return [read(wide(chunk), reader, **extras).to(chunk.q.dtype) for chunk in chunks]


def wide(tokens: Tokens) -> Tokens:
    """The chunk with half precision raised to float32."""
    if tokens.q.dtype not in HALF:
        return tokens
    return Tokens(
        tokens.q.float(), tokens.k.float(), tokens.v.float(), tokens.mask, tokens.query_mask, tokens.start, tokens.total
    )


def split(tokens: Tokens, sizes: Iterable[int]) -> list[Tokens]:
    """Self-attention tokens cut into consecutive chunks of these sizes."""
    start, parts = 0, []
    for size in sizes:
        part = slice(start, start + size)
        cut = [None if m is None else m[:, part] for m in (tokens.mask, tokens.query_mask)]
        q, k, v = (x[:, :, part] for x in (tokens.q, tokens.k, tokens.v))
        parts.append(Tokens(q, k, v, cut[0], cut[1], tokens.start + start, tokens.total or tokens.q.shape[-2]))
        start += size
    return parts


def implied_matrix(q: Tensor, k: Tensor, op: str | Operator = "sima", **extras: Any) -> Tensor:
    """A of o = A v, from the operator itself with v = identity: q (B,H,N,D), k (B,H,M,D) -> (B,H,N,M).

    Raises:
        UsageError: the operator does not weigh tokens (xca weighs channels).
    """
    from softless.attention.attend import attend

    record = get(op)
    if not record.implied_matrix:
        raise UsageError(f"operator '{record.name}' does not weigh tokens: it has no matrix of attention between them")
    eye = torch.eye(k.shape[2], dtype=k.dtype, device=k.device).expand(*k.shape[:2], -1, -1)
    return attend(q, k, eye, op=record, **extras)
