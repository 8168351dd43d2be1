"""Blocks for inference: every branch adds itself to the residual.

One class per way of being called.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from softless.attention.record import Grid
from softless.inference.layers import PackedAttention
from softless.layers.attention import Attention


class PackedBlock(nn.Module):
    """x = attn(LN1 x, onto=x);  x = mlp(LN2 x, onto=x), as timm's ViT calls its blocks.

    Args:
        norm1: before attention.
        attn: attention, which adds itself.
        norm2: before the MLP.
        mlp: the MLP, which adds itself.
    """

    def __init__(self, norm1: nn.Module, attn: nn.Module, norm2: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = norm1, attn, norm2, mlp

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Tokens (B,N,dim) -> (B,N,dim); masks as timm's blocks take them."""
        x = self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal, onto=x)
        return self.mlp(self.norm2(x), onto=x)

    def first(self, x: Tensor) -> Tensor:
        """The first token of `forward`, for a model that reads no other: (B,N,dim) -> (B,1,dim)."""
        assert isinstance(self.attn, PackedAttention)
        x = self.attn.first(self.norm1(x), onto=x[:, :1])
        return self.mlp(self.norm2(x), onto=x)


class GridBlock(PackedBlock):
    """As the pyramids call theirs, with the grid."""

    def forward(self, x: Tensor, grid: Grid) -> Tensor:  # type: ignore[override]
        """Tokens (B,N,dim) of a grid (prefix, height, width) -> (B,N,dim)."""
        x = self.attn(self.norm1(x), grid=grid, onto=x)
        return self.mlp(self.norm2(x), onto=x)


class XcitBlock(PackedBlock):
    """As XCiT calls its own, with the sides of the grid; between attention and MLP the local patch
    interaction, where it has one.
    """

    def __init__(
        self,
        norm1: nn.Module,
        attn: nn.Module,
        norm2: nn.Module,
        mlp: nn.Module,
        norm3: nn.Module | None,
        local_mp: nn.Module | None,
    ) -> None:
        super().__init__(norm1, attn, norm2, mlp)
        self.norm3, self.local_mp = norm3, local_mp
        self.takes_grid = isinstance(getattr(attn, "branch", attn), Attention)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:  # type: ignore[override]
        """Tokens (B,N,dim) of a grid of N = height width -> (B,N,dim)."""
        position: dict[str, Any] = {"grid": (0, height, width)} if self.takes_grid else {}
        x = self.attn(self.norm1(x), onto=x, **position)
        if self.local_mp is not None and self.norm3 is not None:
            x = self.local_mp(self.norm3(x), height, width, onto=x)
        return self.mlp(self.norm2(x), onto=x)


# by how a host calls its blocks (`softless.models.host.BlockKind.call`)
BLOCKS: Mapping[str, type[PackedBlock]] = {
    "mask": PackedBlock,
    "grid": GridBlock,
    "sides": XcitBlock,
}
