"""What the records of the linear family are made of: its streaming form, and its backends, native and
eager.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from softless.attention.kernels import linear as kernel
from softless.attention.kernels import native, projected
from softless.attention.linear import eager, finish, matrix, read, summarise, tokens_first
from softless.attention.moments import number
from softless.attention.norms import Norm
from softless.attention.record import TOLERANCE, Backend, Bounds, Dims, Roads
from softless.attention.streaming import Streaming, Summary, Sweep, Tokens


def native_sums(
    tokens: Tokens, *, norm: Norm, token_scale: str | float | None, **_: Any
) -> Summary:
    """`summarise` by the native kernels."""
    summary = kernel.summed(tokens.q, tokens.k, tokens.v, tokens.mask, tokens.query_mask, norm=norm)
    if token_scale is not None:
        summary["queries"] = number(tokens.q, tokens.query_mask)
    return summary


def native_refuses(q: Tensor, k: Tensor, v: Tensor, *, order: str, **_: Any) -> list[str]:
    """Why the native kernels cannot run a call: what they are, and the order of the products.
    Shapes: q (B,H,N,D), k (B,H,M,D), v (B,H,M,E).
    """
    reasons = native.refuses(q, k, v)
    if not reasons and tokens_first(Dims.of(q, k, v), order):
        why = (
            "order='tokens' was asked for"
            if order == "tokens"
            else "q^ k^^T is the cheaper product at this size"
        )
        reasons.append(f"sums over tokens first, and {why}")
    return reasons


def streaming(norm: Norm, **fixed: Any) -> Streaming:
    """One sweep, D + D + D x E sums per head; `fixed` are options the operator does not offer."""
    fixed["norm"] = norm
    return Streaming(
        sweeps=(
            Sweep(
                partial(summarise, **fixed),
                partial(finish, **fixed),
                native=partial(native_sums, **fixed),
            ),
        ),
        read=partial(read, **fixed),
        holds="k^T v (D x E)"
        if norm == "none"
        else "|q| (D), |k| (D) and k^T v (D x E), sums over tokens",
        merges="plain addition",
    )


def backends(
    norm: Norm, tolerance: Mapping[torch.dtype, float] = TOLERANCE, **fixed: Any
) -> tuple[Backend, ...]:
    """The backends of a member of the family; `fixed` are options that the operator does not
    offer.
    """
    fixed["norm"] = norm
    swept = Backend(
        name="native",
        fn=partial(kernel.run, **fixed),
        refuses=native_refuses,
        bounds=Bounds(
            native_half=True,
            tolerance=tolerance,
        ),
        roads=Roads(
            packed=partial(kernel.run_packed, **fixed),
            matrix=partial(matrix, **fixed, summed=kernel.summed),
            projected=partial(projected.run, **fixed),
        ),
        here=native.here,
    )
    return swept, Backend(
        name="eager",
        fn=partial(eager, **fixed),
        bounds=Bounds(
            tolerance=tolerance,
        ),
        roads=Roads(
            matrix=partial(matrix, **fixed),
        ),
    )
