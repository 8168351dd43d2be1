"""Small models of bags whose attention counts, and bags for them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import softless
from softless.models.bag import CONTROLS, bag_models, operator_of
from tests.models.lively import drawn, scaled

FEATURES = 24


def operators() -> Iterator[str]:
    """Those that have models of bags."""
    return (op for name in bag_models() if name.endswith("_bag_tiny") and (op := operator_of(name)))


def features(tiles: int, bags: int = 1, seed: int = 0) -> Tensor:
    """(B,N,24)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(bags, tiles, FEATURES, generator=generator) + 0.2


def coordinates(tiles: int, bags: int = 1) -> Tensor:
    """(B,N,2) micrometres of tiles of 128 on a lattice of 16 columns, far from the corner."""
    index = torch.arange(tiles, dtype=torch.float64)
    xy = torch.stack([index % 16, index // 16], -1) * 128 + 12345.5
    return xy.expand(bags, -1, -1)


def bag_model(name: str, **arguments: Any) -> nn.Module:
    """A model whose branches of attention are 30 % of what they are added to."""
    size = {} if name in CONTROLS else {"width": 32, "depth": 2, "num_heads": 4}
    settings = {"in_dim": FEATURES, "num_classes": 3, **size, **arguments}
    model: Any = drawn(softless.create_model(name, **settings))
    x, where = features(150), coordinates(150)
    for block in getattr(model, "blocks", ()):
        scaled_in(model, block.attn, x, where)
    return model


def scaled_in(model: nn.Module, module: nn.Module, x: Tensor, where: Tensor) -> None:
    """`lively.scaled`, for a model that is called with coordinates."""

    class Called(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            answer: Tensor = model(image, where)
            return answer

    scaled(Called(), module, x)


def relative(a: Tensor, b: Tensor) -> float:
    """The Frobenius norm of the difference over that of b."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())
