"""A vision transformer of two attention layers, small enough to compute its maps by hand."""

import pytest
import torch
from torch import Tensor, nn

from softless.layers import Attention


class TinyViT(nn.Module):
    """The attention branch counts ten-fold, so that what a layer is given depends on the layer
    before.
    """

    def __init__(
        self,
        op: str = "sima",
        *,
        class_token: bool = True,
        depth: int = 2,
        dim: int = 16,
        patch: int = 4,
    ) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, patch, patch)
        self.patch_embed.patch_size = patch, patch  # type: ignore[assignment]
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim)) if class_token else None
        self.blocks = nn.ModuleList(Attention(dim, 2, op, qkv_bias=True) for _ in range(depth))
        self.head = nn.Linear(dim, 3)

    def tokens(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).mT
        return (
            x
            if self.cls_token is None
            else torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        for block in self.blocks:
            x = x + 10 * block(x)
        return self.head(x.mean(1))


@pytest.fixture
def make() -> type[TinyViT]:
    return TinyViT
