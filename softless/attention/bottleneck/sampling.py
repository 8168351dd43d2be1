"""Bottleneck tokens of SOFT: which tokens are a part of which, and what is made of them."""

# B batch, H heads, N tokens, D features of q, E features of v, R bottleneck tokens, r side of a
# window

import torch
import torch.nn.functional as F
from torch import Tensor

from softless.attention.norms import keep
from softless.attention.places import indices, number_of_windows, windows
from softless.attention.record import Grid
from softless.attention.streaming import ChunkPosition


def scaled(q: Tensor, mask: Tensor | None) -> Tensor:
    """q / D^(1/4) of q (B,H,n,D), masked tokens 0."""
    return keep(q, mask) * q.shape[-1] ** -0.25


def scrambled(number: int, device: torch.device) -> Tensor:
    """A fixed order of the cells 0..number-1 that looks random and depends on their number alone,
    so that calls repeat and graphs trace. Shape (number,), int64.
    """
    x = torch.arange(number, device=device, dtype=torch.int64)
    for shift, factor in ((16, 0x45D9F3B), (16, 0x45D9F3B), (16, 1)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x.argsort()


def taken(index: Tensor, grid: Grid, sampling: str, ratio: int) -> Tensor:
    """(n,) the bottleneck token that each token is a part of, -1 for none: every cell of a window,
    its first one, or chosen cells.
    """
    window, spot, inside = windows(index, grid, ratio)
    number = number_of_windows(grid, ratio)
    cell = (index - grid[0]).clamp_min(0)
    if sampling == "strided":
        return torch.where(inside & (spot == 0), window, -1)
    if sampling == "first":
        return torch.where((index >= grid[0]) & (cell < number), cell, -1)
    if sampling == "random":
        order = scrambled(grid[1] * grid[2], index.device)[:number]
        which = torch.full((grid[1] * grid[2],), -1, device=index.device).scatter(
            0, order, torch.arange(number, device=index.device)
        )
        return torch.where(index >= grid[0], which[cell], -1)
    return torch.where(inside, window, -1)


def membership(
    x: Tensor,
    mask: Tensor | None,
    position: ChunkPosition | None,
    grid: Grid,
    sampling: str,
    ratio: int,
) -> Tensor:
    """(B or 1, 1, n, R) 1 where a token that counts is a part of a bottleneck token."""
    part = taken(indices(x.shape[-2], position, x.device), grid, sampling, ratio)
    member = (part[:, None] == torch.arange(number_of_windows(grid, ratio), device=x.device))[None]
    return (member if mask is None else member & mask[..., None])[:, None].to(x.dtype)


def activated(bottleneck: Tensor, learned: dict[str, Tensor]) -> Tensor:
    """LayerNorm and exact GELU of what the convolution made, (B,H,R,D)."""
    width = bottleneck.shape[-1]
    return F.gelu(F.layer_norm(bottleneck, (width,), learned["norm_weight"], learned["norm_bias"]))


def convolved(x: Tensor, grid: Grid, weight: Tensor) -> Tensor:
    """The strided convolution over a whole grid, shared by the heads: (B,H,N,D) -> (B,H,R,D)."""
    prefix, height, width = grid
    B, H, _, D = x.shape
    image = x[:, :, prefix:].reshape(B * H, height, width, D).permute(0, 3, 1, 2)
    return F.conv2d(image, weight, stride=weight.shape[-1]).flatten(2).mT.unflatten(0, (B, H))


def convolved_parts(
    x: Tensor, position: ChunkPosition | None, grid: Grid, weight: Tensor
) -> Tensor:
    """What some tokens add to the convolution of their windows: (B,H,n,D) -> (B,H,R,D)."""
    ratio = weight.shape[-1]
    window, spot, inside = windows(indices(x.shape[-2], position, x.device), grid, ratio)
    total = x.new_zeros(*x.shape[:2], number_of_windows(grid, ratio), x.shape[-1])
    for number in range(ratio * ratio):
        at_spot = (inside & (spot == number)).nonzero()[:, 0]
        total = total.index_add(
            2, window[at_spot], x[:, :, at_spot] @ weight[:, :, number // ratio, number % ratio].mT
        )
    return total


def sample(
    x: Tensor,
    mask: Tensor | None,
    grid: Grid,
    learned: dict[str, Tensor],
    sampling: str,
    ratio: int,
) -> tuple[Tensor, Tensor]:
    """Bottleneck tokens (B,H,R,D) of a whole sequence, and which of them are there
    (B or 1, 1, R, 1).
    """
    parts = membership(x, mask, None, grid, sampling, ratio)
    number = parts.sum(-2, keepdim=True).mT
    if sampling == "conv":
        return activated(convolved(x, grid, learned["conv"]), learned), number > 0
    return parts.mT @ x / number.clamp_min(1), number > 0
