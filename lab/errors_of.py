"""How far a result is from the exact one, relative to the exact one's own size (reliability.md,
group D).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.inputs import Call

LEAST = 1e-3  # a gradient smaller than this share of the largest is judged by that share


@dataclass(frozen=True)
class Deviation:
    """Relative errors, and what a tolerance would not see."""

    frobenius: float  # |result - exact| / |exact|; an all-zero answer has 1
    largest: float  # max |result - exact| / max |exact|
    not_finite: int
    zeros: float  # share of values that are 0 where the exact one is not


def deviation(result: Tensor, exact: Tensor) -> Deviation:
    """Compare a result with the float64 one of the same shape, whatever it is; values that are not
    finite count as infinitely wrong.
    """
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


def gradients(
    run: Callable[[Call], Tensor], call: Call, *, like: Mapping[str, Tensor] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The value of a call, and the gradients of its inputs for a fixed random weighting of the
    value.

    Args:
        run: gives the value of a call: q (B, H, N, D), k (B, H, M, D) and v (B, H, M, E) to
            (B, H, N, E).
        call: what is differentiated; float16 under a loss scale where `like` is given.
        like: the exact gradients, by input. The scale is a power of two that brings the largest of
            them near 1, as training does.

    Returns:
        The value in its own dtype, and by input the gradient in float64, of the input's shape.
    """
    leaves = {name: x.detach().requires_grad_() for name, x in call.leaves.items()}
    value = run(call.with_leaves(**leaves))
    weights = torch.randn(
        value.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    scale = 1.0
    if like is not None and call.q.dtype == torch.float16:
        largest = max(float(x.abs().max()) for x in like.values())
        scale = 2.0 ** -round(math.log2(largest)) if largest else 1.0
    loss = (value.double() * weights).sum() * scale
    if not loss.requires_grad:  # a constant
        return value, {name: torch.zeros_like(x, dtype=torch.float64) for name, x in leaves.items()}
    slopes = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return value.detach(), {
        name: x.double() / scale for name, x in zip(leaves, slopes, strict=True)
    }


def gradient_deviation(computed: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> float:
    """The largest relative error (Frobenius) of the gradients of q, k and v.

    One that is next to nothing beside the others (exactly nothing for the queries of a softmax over
    a single key) is judged by a thousandth of the largest. Both mappings are from an input's name
    to a gradient of that input's shape.
    """
    sizes = {name: float(gradient.norm()) for name, gradient in exact.items()}
    floor = LEAST * max(sizes.values())
    return max(
        _relative(
            float(
                torch.where(
                    computed[name].isfinite(), computed[name] - exact[name], torch.inf
                ).norm()
            ),
            max(size, floor),
        )
        for name, size in sizes.items()
    )
