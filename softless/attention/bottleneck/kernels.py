"""Gaussian kernels of SOFT: of two sets of tokens, and of one with itself."""

# B batch, H heads, N tokens, D features of q, E features of v, R bottleneck tokens, r side of a
# window

import torch
from torch import Tensor


def kernel(a: Tensor, b: Tensor, middle: Tensor) -> Tensor:
    """exp(-|a - b|^2 / 2) in 0..1: (...,n,D), (...,m,D) -> (...,n,m); `middle` (...,1,D) is taken
    off both, which changes nothing but rounding.
    """
    a, b = a - middle, b - middle
    squares = (
        a.square().sum(-1, keepdim=True) + b.square().sum(-1, keepdim=True).mT - 2 * (a @ b.mT)
    )
    return (-0.5 * squares.clamp_min(0)).exp()


def own_kernel(a: Tensor) -> Tensor:
    """kernel(a, a), exactly symmetric with a diagonal of ones: (...,n,D) -> (...,n,n)."""
    products = a @ a.mT
    squares = a.square().sum(-1, keepdim=True)
    apart = squares + squares.mT - (products + products.mT)
    same = torch.eye(a.shape[-2], dtype=torch.bool, device=a.device)
    return (-0.5 * apart.clamp_min(0)).masked_fill(same, 0).exp()


def middle_of(bottleneck: Tensor, present: Tensor) -> Tensor:
    """(B,H,1,D) mean of the bottleneck tokens that are there; without gradient, since a common
    shift changes no distance.
    """
    number = present.sum(-2, keepdim=True).clamp_min(1)
    return (bottleneck.detach().masked_fill(~present, 0).sum(-2, keepdim=True) / number).to(
        bottleneck.dtype
    )
