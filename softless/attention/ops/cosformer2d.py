"""cosFormer on a grid: weights that fall with the distance in rows and in columns, as SimA compares
it.

    w_ij = <relu(q_i), relu(k_j)> cos(pi/2 (r_i - r_j) / h) cos(pi/2 (c_i - c_j) / w)        r, c row and column on an h x w grid

Four terms, products of cos and sin of both angles. A prefix token (class, registers) has no place:
its weight with every token is <relu(q), relu(k)>. That is additive too: features of patches (four
terms) and, apart, plain features of prefix and of patch keys. A patch query reads the four terms
and the prefix keys, a prefix query both plain ones. Koohpayegani and Pirsiavash, arXiv:2206.08898,
appendix A.3, after cosFormer (arXiv:2202.08791). The paper writes the angles without a factor, r_i
- r_j itself (`parity=True`), so that weights turn negative from a distance of two on; pi/2 over the
side keeps them non-negative.
"""

# B batch, H heads, N tokens, D features of q and k, E features of v, h x w grid

import math
from typing import Any

import torch
from torch import Tensor

from softless.attention import cosine
from softless.attention.norms import keep
from softless.attention.options import Option, always
from softless.attention.places import cells, indices
from softless.attention.record import (
    TOLERANCE,
    Backend,
    Bounds,
    Claims,
    Dims,
    Grid,
    HostNeeds,
    Identity,
    Operator,
)
from softless.attention.streaming import ChunkPosition, Streaming, Summary, Tokens


def tables(
    x: Tensor, position: ChunkPosition | None, grid: Grid, parity: bool
) -> tuple[Tensor, Tensor]:
    """The tables of tokens as queries and as keys, (1, n, 4), or (1, n, 6) where there are prefix
    tokens.
    """
    line, column, on_grid = cells(indices(x.shape[-2], position, x.device), grid)
    down, across = (1.0, 1.0) if parity else (math.pi / 2 / grid[1], math.pi / 2 / grid[2])
    rows, columns = cosine.waves(line.to(x.dtype) * down), cosine.waves(column.to(x.dtype) * across)
    four = torch.stack([a * b for a in rows for b in columns], dim=-1)
    if not grid[0]:
        return four[None], four[None]
    four = four * on_grid[:, None]
    patch, prefix = on_grid[:, None].to(x.dtype), (~on_grid)[:, None].to(x.dtype)
    # as a query: the four terms, all prefix keys, and for a prefix token all patch keys too
    return torch.cat([four, torch.ones_like(patch), prefix], -1)[None], torch.cat(
        [four, prefix, patch], -1
    )[None]


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    grid: Grid,
    mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    parity: bool = False,
    eps: float = 1e-6,
) -> Tensor:
    """The formula in its linear form: q (B,H,N,D), k (B,H,N,D), v (B,H,N,E) -> (B,H,N,E)."""
    of_q, of_k = tables(q, None, grid, parity)
    f_q, f_k = cosine.features(q, of_q, query_mask), cosine.features(k, of_k, mask)
    weights = (f_q * f_k.sum(-2, keepdim=True)).sum(-1, keepdim=True).clamp_min(eps)
    return f_q @ (f_k.mT @ keep(v, mask)) / weights


def summarise(tokens: Tokens, _: None, *, grid: Grid, parity: bool, **__: Any) -> Summary:
    """Both sums over the keys of a chunk."""
    return cosine.summarise(
        tokens.k, tokens.v, tables(tokens.k, tokens.keys, grid, parity)[1], tokens.mask
    )


def read(
    tokens: Tokens, summary: Summary, *, grid: Grid, parity: bool, eps: float, **_: Any
) -> Tensor:
    """The output of these queries, (B,H,n,E)."""
    table = tables(tokens.q, tokens.queries, grid, parity)[0]
    return cosine.read(tokens.q, summary, table, tokens.query_mask, eps)


def eager(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    grid: Grid,
    mask: Tensor | None,
    query_mask: Tensor | None,
    parity: bool,
    eps: float,
) -> Tensor:
    """The streaming form over all tokens at once, with one table for queries and keys. Shapes: q
    (B,H,N,D), k (B,H,N,D), v (B,H,N,E) -> (B,H,N,E).
    """
    of_q, of_k = tables(q, None, grid, parity)
    return cosine.read(q, cosine.summarise(k, v, of_k, mask), of_q, query_mask, eps)


STREAMING = Streaming.sums(
    summarise,
    read,
    holds="ΣFₖᵀv (4D x E) and ΣFₖ (4D), F = relu(k) times cos and sin of row and column; 6D with "
    "prefix tokens",
)


def flops(d: Dims) -> int:
    """Context and reading over features 4 D wide, 6 D with prefix tokens; 2 FLOPs per
    multiply-add.
    """
    terms = 6 if d.grid and d.grid[0] else 4
    return 2 * d.B * d.H * terms * d.D * d.E * (d.N + d.M)


SPEC = Operator(
    identity=Identity(
        name="cosformer2d",
        summary="relu features, weights that fall with the distance in rows and columns",
        formula="o = Σⱼ wᵢⱼ vⱼ / Σⱼ wᵢⱼ, wᵢⱼ = relu(qᵢ)·relu(kⱼ) cos(π/2 Δr/h) cos(π/2 Δc/w)",
        paper="arXiv:2206.08898 §A.3",
        title="Cosformer2d",
        differs="SimA prints cos(i − j) cos(m − n) without a factor, whose weights turn negative; "
        "here the angles are π/2 over the grid's sides "
        "(`parity=True` gives the printed form). Nothing is printed for the class token: here its "
        "weight with every token is that of equal places.",
    ),
    reference=reference,
    claims=Claims(
        flops=flops,
        exps=lambda d: 4 * d.N,  # cos and sin of each token's row and column, once for all heads
        growth="N",
        normalises="rows",
        scale_free=False,
        equivariant=False,
        implied_matrix=True,
        cross=False,
        resolution="grid",
    ),
    streaming=STREAMING,
    options={
        "parity": Option(
            default=False,
            says="the angles as printed, without a factor: weights turn negative from a distance "
            "of two on",
            accepts=lambda value: isinstance(value, bool),
            values="True or False",
        ),
        "eps": cosine.FLOOR,
    },
    host=HostNeeds(
        needs={"grid": always},
    ),
    own=(
        Backend(
            name="eager",
            fn=eager,
            bounds=Bounds(
                tolerance={**TOLERANCE, torch.float32: 2e-6},
            ),
        ),
    ),
)
