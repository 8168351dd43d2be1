"""How far a result is from the exact one, relative to the exact one's own size (reliability.md, group D)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Deviation:
    """Relative errors, and what a tolerance would not see."""

    frobenius: float  # |result - exact| / |exact|; an all-zero answer has 1
    largest: float  # max |result - exact| / max |exact|
    not_finite: int
    zeros: float  # share of values that are 0 where the exact one is not


def deviation(result: Tensor, exact: Tensor) -> Deviation:
    """Compare a result with the float64 one; values that are not finite count as infinitely wrong."""
    result = result.double()
    apart = (result - exact).abs()
    apart = torch.where(result.isfinite(), apart, torch.inf)
    size, top = float(exact.norm()), float(exact.abs().max())
    return Deviation(
        frobenius=_relative(float(apart.norm()), size),
        largest=_relative(float(apart.max()), top),
        not_finite=int((~result.isfinite()).sum()),
        zeros=float(((result == 0) & (exact != 0)).double().mean()),
    )


def _relative(error: float, size: float) -> float:
    return error / size if size else (0.0 if error == 0 else float("inf"))
