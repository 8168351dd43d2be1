"""Gaussian-kernel attention with bottleneck tokens: SOFT and its normalised form, written once.

    x = q / D^(1/4),    kernel(a, b) = exp(-|a - b|^2 / 2)
    x~ = R bottleneck tokens sampled from x on the grid
    P = kernel(x~, x)  (R x N),   A = kernel(x~, x~)  (R x R)
    o = P^T (S (A + ridge I)^-1 S (P v)),      S = I, or diag(A 1)^(-1/2) in the normalised form

Lu et al., "SOFT: Softmax-free Transformer with Linear Complexity", NeurIPS 2021, arXiv:2110.11945;
normalised: arXiv:2207.03341 and its code.
"""

# B batch, H heads, N tokens, D features of q, E features of v, R bottleneck tokens, r side of a
# window

import torch
from torch import Tensor

from softless.attention import inverse as inverses
from softless.attention.bottleneck.kernels import kernel, middle_of, own_kernel
from softless.attention.bottleneck.sampling import sample, scaled
from softless.attention.moments import precise
from softless.attention.norms import keep, product
from softless.attention.record import Grid


def island(few: Tensor, there: Tensor, *, ridge: float, inverse: str, normalised: bool) -> Tensor:
    """S (A + ridge I)^-1 S: (B,H,R,R); a bottleneck token that is not there stands alone."""
    both = there & there.mT
    one = torch.eye(few.shape[-2], dtype=few.dtype, device=few.device)
    a = torch.where(both, own_kernel(few - middle_of(few, there)), one)
    found = inverses.inverse(a, ridge, inverse)
    return symmetric(found, a.masked_fill(~both, 0)) if normalised else found


def symmetric(inverse: Tensor, a: Tensor) -> Tensor:
    """diag(A 1)^(-1/2) A^-1 diag(A 1)^(-1/2)."""
    root = a.sum(-1, keepdim=True).clamp_min(torch.finfo(a.dtype).tiny).rsqrt()
    return root * inverse * root.mT


def published_island(few: Tensor, there: Tensor, *, normalised: bool) -> Tensor:
    """The published iteration in the dtype at hand."""
    both = there & there.mT
    a = torch.where(
        both,
        own_kernel(few - middle_of(few, there)),
        torch.eye(few.shape[-2], dtype=few.dtype, device=few.device),
    )
    return symmetric(inverses.published_norm(a), a) if normalised else inverses.published(a)


def attention(
    q: Tensor,
    v: Tensor,
    *,
    learned: dict[str, Tensor],
    grid: Grid,
    mask: Tensor | None,
    query_mask: Tensor | None,
    sampling: str,
    ratio: int,
    inverse: str,
    ridge: float,
    parity: bool,
    normalised: bool,
) -> Tensor:
    """The formula at the top, over a whole sequence; the R x R island in float64 where the device
    has it.
    """
    x = scaled(q, mask)
    few, there = sample(x, mask, grid, learned, sampling, ratio)
    middle = middle_of(few, there)
    weights = keep(kernel(x, few, middle).masked_fill(~there.mT, 0), mask)  # P^T (B,H,N,R)
    rows = weights
    if query_mask is not None and query_mask is not mask:
        rows = kernel(scaled(q, query_mask), few, middle).masked_fill(~there.mT, 0)
    seen = product(weights, keep(v, mask))
    if parity:  # P^T A^-1 first, as in the code: N R R multiply-adds more
        return keep((rows @ published_island(few, there, normalised=normalised)) @ seen, query_mask)
    wide = island(precise(few), there, ridge=ridge, inverse=inverse, normalised=normalised)
    return keep(rows @ (wide @ precise(seen)).to(v.dtype), query_mask)
