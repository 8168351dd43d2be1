"""Where tokens stand: along their sequence, among those that count, and on the grid of an image."""

# B batch, n tokens of a chunk

import torch
from torch import Tensor

from softless.attention.record import Grid
from softless.attention.streaming import ChunkPosition, Tokens


def indices(length: int, position: ChunkPosition | None, device: torch.device) -> Tensor:
    """(n,) index of each token in the whole sequence, masked tokens counted."""
    index = torch.arange(length, device=device)
    return index if position is None else index + position.start


def ranks(
    mask: Tensor | None, length: int, position: ChunkPosition | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(B or 1, n) number of tokens that count before each token, and (B or 1, 1) number of those
    that count in all.
    """
    if mask is None:
        total = length if position is None else position.total
        return indices(length, position, device)[None], torch.full((1, 1), total, device=device)
    ahead = mask.cumsum(-1) - mask.long()
    if position is None:
        return ahead, mask.sum(-1, keepdim=True)
    assert position.before is not None, "a chunk under a mask says how many tokens count before it"
    assert position.counted is not None, "and in all"
    return ahead + position.before[:, None], position.counted[:, None]


def query_ranks(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """`ranks` of the queries of a chunk: (B or 1, n) and (B or 1, 1)."""
    return ranks(tokens.query_mask, tokens.q.shape[-2], tokens.queries, tokens.q.device)


def key_ranks(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """`ranks` of the keys of a chunk: (B or 1, n) and (B or 1, 1)."""
    return ranks(tokens.mask, tokens.k.shape[-2], tokens.keys, tokens.k.device)


def cells(index: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column, and whether a token stands on the grid at all, for indices in the whole
    sequence; prefix tokens do not. All are (n,).
    """
    prefix, _, width = grid
    cell = (index - prefix).clamp_min(0)
    line = cell // width
    # no remainder: ONNX has none by a size that is free
    return line, cell - line * width, index >= prefix


def windows(index: Tensor, grid: Grid, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Window, place inside it, and whether a token is in one: prefix tokens and what a whole number
    of windows leaves over are not.

    Windows are side x side cells, row by row: floor(height / side) * floor(width / side) of them.

    All are (n,).
    """
    line, column, on = cells(index, grid)
    down, across = grid[1] // side, grid[2] // side
    inside = on & (line < down * side) & (column < across * side)
    return (line // side) * across + column // side, (line % side) * side + column % side, inside


def number_of_windows(grid: Grid, side: int) -> int:
    """How many whole windows the grid has."""
    return (grid[1] // side) * (grid[2] // side)
