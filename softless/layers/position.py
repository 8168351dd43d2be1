"""Fourier positions of XCiT (arXiv:2106.09681): sines and cosines of the normalised row and column,
projected to the width.
"""

import math

import torch
from torch import Tensor, nn

from softless.layers.grid import Kept
from softless.layers.leaf import leaf
from softless.layers.plain import place_of


def fourier_table(
    height: int,
    width: int,
    features: int = 32,
    temperature: float = 10000.0,
    device: torch.device | None = None,
) -> Tensor:
    """(1, 2 features, height, width) in float32: row features first, sine and cosine interleaved.

    Rows and columns count from 1 and are divided by the last one, so the table has no size limit.
    """
    octave = torch.arange(features, device=device, dtype=torch.float32)
    octave = temperature ** (2 * torch.div(octave, 2, rounding_mode="floor") / features)

    def axis(length: int) -> Tensor:
        position = torch.arange(1, length + 1, device=device, dtype=torch.float32)
        position = position / (position[-1:] + 1e-6) * (2 * math.pi)
        angle = position[:, None] / octave
        # (length, features)
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=-1).flatten(1)

    rows = axis(height)[:, None].expand(-1, width, -1)
    columns = axis(width)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1).permute(2, 0, 1)[None]


class FourierPosition(nn.Module):
    """(batch, height, width) -> (batch, dim, height, width); the table is made once per grid.

    The table is float32, as published, whatever the model's dtype; the projection runs in the
    model's own.
    """

    def __init__(self, dim: int, features: int = 32) -> None:
        super().__init__()
        self.features = features
        self.token_projection = nn.Conv2d(2 * features, dim, kernel_size=1)
        self.tables = Kept()

    def table(self, height: int, width: int) -> Tensor:
        """The float32 table of a grid, from the store where eager code may keep one. It is (1, 2
        features, height, width).
        """
        device = place_of(self.token_projection).device
        return self.tables.get(
            (height, width, device),
            lambda: fourier_table(height, width, self.features, device=device),
        )

    @leaf
    def forward(self, batch: int, height: int, width: int) -> Tensor:
        """Positions of a grid, (batch, dim, height, width)."""
        table = self.table(height, width).to(place_of(self.token_projection).dtype)
        return self.token_projection(table).expand(batch, -1, -1, -1)
