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


def island(
    bottleneck: Tensor, present: Tensor, *, ridge: float, inverse: str, normalised: bool
) -> Tensor:
    """S (A + ridge I)^-1 S: (B,H,R,R); a bottleneck token that is not there stands alone."""
    present_pairs = present & present.mT
    identity = torch.eye(bottleneck.shape[-2], dtype=bottleneck.dtype, device=bottleneck.device)
    a = torch.where(
        present_pairs, own_kernel(bottleneck - middle_of(bottleneck, present)), identity
    )
    inverted = inverses.inverse(a, ridge, inverse)
    return symmetric(inverted, a.masked_fill(~present_pairs, 0)) if normalised else inverted


def symmetric(inverse: Tensor, a: Tensor) -> Tensor:
    """diag(A 1)^(-1/2) A^-1 diag(A 1)^(-1/2), of A^-1 and A (B,H,R,R)."""
    root = a.sum(-1, keepdim=True).clamp_min(torch.finfo(a.dtype).tiny).rsqrt()
    return root * inverse * root.mT


def published_island(bottleneck: Tensor, present: Tensor, *, normalised: bool) -> Tensor:
    """The published iteration in the dtype at hand: (B,H,R,D), (B or 1, 1, R, 1) -> (B,H,R,R)."""
    present_pairs = present & present.mT
    a = torch.where(
        present_pairs,
        own_kernel(bottleneck - middle_of(bottleneck, present)),
        torch.eye(bottleneck.shape[-2], dtype=bottleneck.dtype, device=bottleneck.device),
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
    has it. Shapes: q (B,H,N,D) and v (B,H,N,E) -> (B,H,N,E).
    """
    x = scaled(q, mask)
    bottleneck, present = sample(x, mask, grid, learned, sampling, ratio)
    middle = middle_of(bottleneck, present)
    weights = keep(kernel(x, bottleneck, middle).masked_fill(~present.mT, 0), mask)  # P^T (B,H,N,R)
    rows = weights
    if query_mask is not None and query_mask is not mask:
        rows = kernel(scaled(q, query_mask), bottleneck, middle).masked_fill(~present.mT, 0)
    context = product(weights, keep(v, mask))
    if parity:  # P^T A^-1 first, as in the code: N R R multiply-adds more
        return keep(
            (rows @ published_island(bottleneck, present, normalised=normalised)) @ context,
            query_mask,
        )
    # an edge form holds no float64: what it is compared with has none either
    wide = _as_it_is if inverses.in_newton() else precise
    inverted = island(
        wide(bottleneck), present, ridge=ridge, inverse=inverse, normalised=normalised
    )
    return keep(rows @ (inverted @ wide(context)).to(v.dtype), query_mask)


def _as_it_is(x: Tensor) -> Tensor:
    return x
