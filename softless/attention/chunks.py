"""Attention over tokens in chunks, from the streaming form alone: the same result as the whole, in
any order of chunks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from softless.attention.attend import attend
from softless.attention.call import HALF, Call, extras_of, widen
from softless.attention.checks import check_options
from softless.attention.kernels import native
from softless.attention.overflow import in_range
from softless.attention.record import Dims, Grid, Operator
from softless.attention.registry import get
from softless.attention.streaming import ChunkPosition, Summary, Sweep, Tokens
from softless.errors import PrecisionError, UsageError


def attend_chunks(
    chunks: Sequence[Tokens],
    op: str | Operator = "sima",
    *,
    learned: dict[str, Tensor] | None = None,
    grid: Grid | None = None,
    **options: Any,
) -> list[Tensor]:
    """The output of every chunk, each query attending over the tokens of all chunks.

    Values are those of the whole. Gradients are too, but for a channel that is next to nothing,
    which each chunk judges by its own norm.

    One pass over the chunks per sweep of the operator, then one that reads; between them only the
    summary is kept.

    Args:
        chunks: The tokens, cut anywhere (`split`); a chunk may hold queries only or keys only
            (zero-length tensors). Operators that look at positions need each chunk's
            `ChunkPosition`. With tied q and k, k is not looked at.
        op: Name in `softless.OPERATORS`, or a record.
        learned: The operator's own tensors; None takes those of a new module, random ones drawn
            from seed 0.
        grid: (prefix tokens, height, width) for operators that need it.
        **options: The operator's options.

    Returns:
        One (B,H,n,E) tensor per chunk, in the chunk's dtype (float32 sums inside).

    Raises:
        UsageError: the operator has no streaming form (the reason is given), or no chunks.
        PrecisionError: float16 chunks cannot hold the output of all tokens (the rule of `attend`).
    """
    record = get(op)
    if record.streaming is None:
        raise UsageError(
            f"operator '{record.name}' cannot be evaluated in chunks: {record.no_stream}"
        )
    if not chunks:
        raise UsageError("no chunks: at least one is needed")
    first = chunks[0]
    total = first.keys.total if first.keys else sum(chunk.k.shape[2] for chunk in chunks)
    asking = first.queries.total if first.queries else sum(chunk.q.shape[2] for chunk in chunks)
    checked = check_options(record, options)
    call = Call(
        record, first.q, _as_long(first.k, total), first.v, checked, grid=grid, learned=learned
    )
    extras = {name: widen(value) for name, value in extras_of(call).items()}
    dims = replace(
        Dims.of(first.q, first.k, first.v, grid, record.filled(options)), N=asking, M=total
    )
    if why := record.streaming.refuses(**extras) or record.limits(dims, **extras):
        raise UsageError(f"operator '{record.name}' cannot be evaluated in chunks: {why}")
    if (
        first.q.dtype == torch.float16
        and record.half_refusal
        and record.half_refusal(dims, **extras)
    ):
        raise PrecisionError(
            f"operator '{record.name}': float16 chunks cannot hold the output of these {total} "
            "tokens; pass them in bfloat16 or float32"
        )
    reader: Any = None
    for sweep in record.streaming.sweeps:
        summaries = (sweep.summarise(wide(chunk), reader, **extras) for chunk in chunks)
        reader = sweep.finish(reduce(sweep.merge, summaries), **extras)
    read = record.streaming.read
    return [
        in_range(read(wide(chunk), reader, **extras), chunk.q.dtype, record.name, chunk.q, chunk.v)
        for chunk in chunks
    ]


def _as_long(k: Tensor, total: int) -> Tensor:
    """A stand-in for the keys of all chunks: their shape, dtype and place, and no memory."""
    return k.new_zeros(()).expand(k.shape[0], k.shape[1], total, k.shape[3])


def summed(sweep: Sweep, tokens: Tokens, reader: Any, **extras: Any) -> Summary:
    """What a chunk adds to a sweep's summary, natively where that can be; without gradients."""
    if sweep.native is None or native.refuses(tokens.q, tokens.k, tokens.v):
        return sweep.summarise(wide(tokens), reader, **extras)
    return sweep.native(tokens, **extras)


def wide(tokens: Tokens) -> Tokens:
    """The chunk with half precision raised to float32."""
    if tokens.q.dtype not in HALF:
        return tokens
    return replace(tokens, q=tokens.q.float(), k=tokens.k.float(), v=tokens.v.float())


def split(tokens: Tokens, sizes: Iterable[int]) -> list[Tokens]:
    """Self-attention tokens cut into consecutive chunks of these sizes, each told where it
    stands.
    """
    start, parts = 0, []
    for size in sizes:
        part = slice(start, start + size)
        q, k, v = (x[:, :, part] for x in (tokens.q, tokens.k, tokens.v))
        mask, query_mask = (
            None if m is None else m[:, part] for m in (tokens.mask, tokens.query_mask)
        )
        places = (
            _place(x.shape[2], m, start)
            for x, m in ((tokens.k, tokens.mask), (tokens.q, tokens.query_mask))
        )
        parts.append(Tokens(q, k, v, mask, query_mask, *places))
        start += size
    return parts


def _place(total: int, mask: Tensor | None, start: int) -> ChunkPosition:
    """The place of a chunk that starts at `start` among `total` tokens under the mask of all."""
    if mask is None:
        return ChunkPosition(start, total)
    return ChunkPosition(start, total, mask[:, :start].sum(-1), mask.sum(-1))


def implied_matrix(q: Tensor, k: Tensor, op: str | Operator = "sima", **extras: Any) -> Tensor:
    """A of o = A v, from the operator itself with v = identity: q (B,H,N,D), k (B,H,M,D) ->
    (B,H,N,M).

    Raises:
        UsageError: the operator does not weigh tokens (xca weighs channels).
    """
    record = get(op)
    if not record.implied_matrix:
        raise UsageError(
            f"operator '{record.name}' does not weigh tokens: it has no matrix of attention "
            "between them"
        )
    eye = torch.eye(k.shape[2], dtype=k.dtype, device=k.device).expand(*k.shape[:2], -1, -1)
    return attend(
        q,
        None if record.wants("tied_qk", _options_in(record, extras)) else k,
        eye,
        op=record,
        **extras,
    )


def _options_in(record: Operator, extras: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in extras.items() if name in record.options}
