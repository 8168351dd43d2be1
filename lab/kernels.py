"""The kernel matrices on which SOFT's inverse is judged (reliability.md §3.3): from well spread
bottleneck tokens to a flat image region.
"""

# R bottleneck tokens, D features

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Generator, Tensor

from softless.attention.bottleneck.kernels import own_kernel

Draw = Callable[[int, int, Generator], Tensor]  # (R, D, generator) -> bottleneck tokens (R, D)


def _spread(sigma: float) -> Draw:
    def draw(number: int, width: int, generator: Generator) -> Tensor:
        return sigma * torch.randn(number, width, generator=generator, dtype=torch.float64)

    return draw


def near_duplicates(number: int, width: int, generator: Generator) -> Tensor:
    """(R, D) float64: groups of four that differ by next to nothing."""
    groups = torch.randn(
        -(-number // 4), width, generator=generator, dtype=torch.float64
    ).repeat_interleave(4, 0)[:number]
    return groups + 1e-3 * torch.randn(number, width, generator=generator, dtype=torch.float64)


def flat(number: int, width: int, generator: Generator) -> Tensor:
    """(R, D) float64 of a flat image region: all but the same."""
    base = torch.randn(1, width, generator=generator, dtype=torch.float64)
    return base + 1e-4 * torch.randn(number, width, generator=generator, dtype=torch.float64)


KERNELS: Mapping[str, Draw] = MappingProxyType({
    "spread": _spread(1.0),
    "sigma 0.3": _spread(0.3),
    "near duplicates": near_duplicates,
    "sigma 0.1": _spread(0.1),
    "sigma 0.03": _spread(0.03),
    "flat": flat,
})


def matrices(name: str, number: int, *, width: int = 32, batch: int = 4, seed: int = 0) -> Tensor:
    """(batch, R, R) float32 kernel matrices of one family, without the ridge."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.stack([KERNELS[name](number, width, generator) for _ in range(batch)])
    return own_kernel(tokens.float())
