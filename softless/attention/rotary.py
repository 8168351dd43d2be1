"""Rotary positions on a grid: pairs of channels turned by angles that grow with the row and with
the column.

    (x_2i, x_2i+1) turned by r b_i for the first half of the pairs, by c b_i for the second,    b_i = 10000^-linspace(0, 1)

r and c are row and column. A product of a query and a key then depends on the difference of their
places. Prefix tokens (class token, registers) have no place and are not turned. In this form the
linear attentions RALA and MALA (arXiv:2507.00698) publish it.
"""

# B batch, H heads, n tokens, D channels of a head, h x w grid

import torch
from torch import Tensor

from softless.attention.moments import precise
from softless.attention.places import cells, indices
from softless.attention.record import Grid
from softless.attention.streaming import ChunkPosition

BASE = 10000.0


def why_not(head_dim: int) -> str | None:
    """Why heads of so many channels cannot be turned, as the end of a sentence."""
    if head_dim % 4 == 0:
        return None
    return (
        f"rotary positions turn pairs by row and pairs by column, and heads have {head_dim} "
        "channels: choose a multiple of 4"
    )


def angles(x: Tensor, grid: Grid, position: ChunkPosition | None) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angle of each pair of tokens x (B,H,n,D): (n, D/2), each row and each
    column evaluated once.
    """
    _, height, width = grid
    line, column, _ = cells(indices(x.shape[-2], position, x.device), grid)
    quarter = x.shape[-1] // 4
    dtype = torch.promote_types(x.dtype, torch.float32)
    powers = [BASE ** -(i / max(1, quarter - 1)) for i in range(quarter)]
    frequencies = torch.tensor(
        powers, dtype=precise(x.new_empty(0, dtype=dtype)).dtype, device=x.device
    )
    waves = []
    for side, coordinate in ((height, line), (width, column)):
        of_side = torch.arange(side, device=x.device)[:, None] * frequencies
        waves.append((of_side.cos()[coordinate], of_side.sin()[coordinate]))
    cos, sin = (torch.cat(halves, dim=-1).to(dtype) for halves in zip(*waves, strict=True))
    return cos, sin


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The neighbouring pairs of tokens x (B,H,n,D), turned: in float32 for half precision,
    (B,H,n,D) in the dtype of x.
    """
    a, b = x.to(cos.dtype).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)


def at(x: Tensor, grid: Grid, position: ChunkPosition | None = None) -> Tensor:
    """Tokens x (B,H,n,D) turned where they stand; `position` is that of a chunk."""
    return turned(x, *angles(x, grid, position))


def exps(head_dim: int, grid: Grid) -> int:
    """Cosines and sines of one call of `angles`."""
    return (grid[1] + grid[2]) * (head_dim // 2)
