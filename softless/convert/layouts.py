"""Attention for blocks that pass their tokens in other ways: as maps, as one block, with a bias
beside them, or with q, k and v in another order.
"""

# B batch, H heads, N tokens, D channels of a head, E those of its values

import inspect
from typing import Any

from torch import Tensor, nn

from softless.attention.record import Grid
from softless.layers.attention import Attention
from softless.layers.leaf import leaf


class MapAttention(Attention):
    """Attention of maps (B, height, width, dim) -> (B, height, width, dim_out), as VOLO's and SAM's
    blocks call theirs; the map is its own grid.

    Arguments are those of `Attention`.
    """

    @leaf
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Attention of all places of the maps x.

        Args:
            x: Maps (B, height, width, dim).
            mask: Boolean (B, height, width), True where a place counts.
        """
        tokens, grid = self.tokens_of(x), self._grid_of_map(x)
        key_mask = None if mask is None else mask.flatten(1)
        return self._map_of(super().forward(tokens, mask=key_mask, grid=grid), grid)

    def tokens_of(self, x: Tensor) -> Tensor:
        """The places of maps, row by row: (B, height, width, C) -> (B, N, C)."""
        return x.flatten(1, 2)

    def called_with(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Grid | None, dict[str, Any]]:
        """As `Attention.called_with`: tokens (B, N, dim) and the grid, which the map says."""
        x = inspect.signature(self.forward).bind(*args, **kwargs).arguments["x"]
        return self.tokens_of(x), self._grid_of_map(x), {}

    def _grid_of_map(self, x: Tensor) -> Grid:
        return 0, x.shape[1], x.shape[2]

    def _map_of(self, tokens: Tensor, grid: Grid) -> Tensor:
        return tokens.unflatten(1, grid[1:])


class ChannelsFirstAttention(MapAttention):
    """Attention of maps (B, dim, height, width) -> (B, dim_out, height, width), as FastViT calls
    its own.

    Arguments are those of `Attention`.
    """

    def tokens_of(self, x: Tensor) -> Tensor:
        """The places of maps, row by row: (B, C, height, width) -> (B, N, C)."""
        return x.flatten(2).transpose(1, 2)

    def _grid_of_map(self, x: Tensor) -> Grid:
        return 0, x.shape[2], x.shape[3]

    def _map_of(self, tokens: Tensor, grid: Grid) -> Tensor:
        return tokens.transpose(1, 2).unflatten(2, grid[1:])


class OneBlockAttention(Attention):
    """Attention of an image that is one block of tokens (B, 1, N, dim) -> (B, 1, N, dim_out): the
    last level of NesT.

    Arguments are those of `Attention`, and the side of the block, which is square.
    """

    def __init__(self, *args: Any, side: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.side = side

    @leaf
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Attention of all tokens of the images x.

        Args:
            x: Tokens (B, 1, N, dim).
            mask: Boolean (B, 1, N), True where a token counts.
        """
        key_mask = None if mask is None else mask.flatten(0, 1)
        grid = (0, self.side, self.side)
        return super().forward(self.tokens_of(x), mask=key_mask, grid=grid).unsqueeze(1)

    def tokens_of(self, x: Tensor) -> Tensor:
        """Without the number of blocks: (B, 1, N, C) -> (B, N, C)."""
        return x.flatten(0, 1)

    def called_with(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Grid | None, dict[str, Any]]:
        """As `Attention.called_with`: tokens (B, N, dim) and the grid of the block."""
        x = inspect.signature(self.forward).bind(*args, **kwargs).arguments["x"]
        return self.tokens_of(x), (0, self.side, self.side), {}


class UnbiasedAttention(Attention):
    """Attention whose block passes a bias of its scores as well (BEiT, ViTs with relative
    positions), which is dropped, as `force` accepted.

    Arguments are those of `Attention`.
    """

    @leaf
    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        shared_rel_pos_bias: Tensor | None = None,  # noqa: ARG002  # BEiT's block passes it
        mask: Tensor | None = None,
        grid: Grid | None = None,
        shared_rel_pos: Tensor | None = None,  # noqa: ARG002  # and timm's relpos block this
    ) -> Tensor:
        """Attention over the tokens x (B, N, dim): (B, N, dim_out). The mask (B, N) is True where a
        token counts, the grid that of `Attention`.
        """
        return super().forward(x, mask=mask, grid=grid)


class ByHeadAttention(Attention):
    """Attention whose one projection makes q, k and v of the first head, then of the next, v of
    another width (EfficientFormer).

    Arguments are those of `Attention`, and the width of a head's values. Tied q and k are the mean
    of both.
    """

    def __init__(self, *args: Any, value_dim: int, **kwargs: Any) -> None:
        self.value_dim = value_dim  # before the projection, which is made of it
        super().__init__(*args, **kwargs)

    def make_projections(self, dim: int, inner: int, bias: bool, place: dict[str, Any]) -> None:
        """The linear layer that makes q, k and v of the tokens."""
        values = inner // self.head_dim * self.value_dim
        self.qkv = nn.Linear(dim, 2 * inner + values, bias=bias, **place)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """q and k (B,H,N,D) and v (B,H,N,E) of tokens x (B,N,dim); k is None where it is tied."""
        heads = self.qkv(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        q, k, v = heads.split([self.head_dim, self.head_dim, self.value_dim], dim=-1)
        if len(self.parts) == 2:
            return self.q_norm((q + k) / 2), None, v
        return self.q_norm(q), self.k_norm(k), v


def as_tokens(attention: nn.Module, answer: Tensor) -> Tensor:
    """What an attention was given or answered, of any shape, as tokens (B, N, C)."""
    layout: Any = getattr(attention, "tokens_of", None)
    tokens: Tensor = answer if layout is None else layout(answer)
    return tokens


# told by the call where their tokens stand
KNOW_THEIR_GRID: tuple[type[Attention], ...] = (MapAttention, OneBlockAttention)
