"""Normalised SOFT: SOFT with the inverse scaled by the square roots of the kernel's row sums on
both sides.

    o = P^T diag(A 1)^(-1/2) (A + ridge I)^-1 diag(A 1)^(-1/2) (P v)

Introduced so that a model carries over to dense prediction. The kernels, the bottleneck tokens and
the streaming form are SOFT's (softless/attention/bottleneck). Lu et al., "Softmax-free Linear
Transformers", IJCV 2024, arXiv:2207.03341; the formula is the code's.
"""

# B batch, H heads, N tokens, D features of q, E features of v

from functools import partial

from torch import Tensor

from softless.attention.bottleneck import claims
from softless.attention.bottleneck.product import attention
from softless.attention.bottleneck.sums import streaming
from softless.attention.options import always
from softless.attention.record import (
    Backend,
    Bounds,
    Claims,
    Grid,
    Half,
    HostNeeds,
    Identity,
    Operator,
)


def reference(
    q: Tensor,
    k: Tensor,  # noqa: ARG001
    v: Tensor,
    *,
    learned: dict[str, Tensor] | None = None,
    grid: Grid,
    mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    ratio: int = 2,
    sampling: str = "conv",
    inverse: str = "cholesky",
    ridge: float = 0.01,
    parity: bool = False,
) -> Tensor:  # every reference takes k
    """The formula as printed; k is q and is not looked at. Shapes: q (B,H,N,D), v (B,H,N,E) ->
    (B,H,N,E).
    """
    return attention(
        q,
        v,
        learned=learned or {},
        grid=grid,
        mask=mask,
        query_mask=query_mask,
        normalised=True,
        ratio=ratio,
        sampling=sampling,
        inverse=inverse,
        ridge=ridge,
        parity=parity,
    )


SPEC = Operator(
    identity=Identity(
        name="softnorm",
        summary="SOFT, its inverse normalised by the kernel's row sums",
        formula="o = Pᵀ S (A + 0.01 I)⁻¹ S (P v), S = diag(A 1)^−½",
        paper="arXiv:2207.03341",
        title="SOFTNorm",
        differs="The published class cannot be built (it names a class that does not exist), "
        "inverts without a ridge from one start for the whole batch, so that an "
        "image's result depends on its mates, and differentiates through the steps. Here the "
        "inverse is SOFT's, each matrix by itself. `parity=True` gives the "
        "published numbers. In heads wider than 32 channels LayerNorm's weight starts as SOFT's "
        "does.",
    ),
    reference=reference,
    claims=Claims(
        flops=partial(claims.flops, normalised=True),
        exps=claims.exps,
        growth="N",  # at a fixed number of bottleneck tokens
        normalises="nothing",
        scale_free=False,
        equivariant=False,
        implied_matrix=True,
        cross=False,
        resolution="grid",
        limits=claims.limits,
    ),
    streaming=streaming(normalised=True),
    options=claims.OPTIONS,
    learned=claims.LEARNED,
    half=Half(
        half_refusal=claims.half_refusal,
    ),
    host=HostNeeds(
        needs={"grid": always, "tied_qk": always},
    ),
    own=(
        Backend(
            name="eager",
            fn=reference,
            bounds=Bounds(
                tolerance=claims.CLAIMED,
            ),
        ),
    ),
)
