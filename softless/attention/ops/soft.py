"""SOFT: a Gaussian kernel between tokens in place of softmax, made linear by bottleneck tokens.

    o = P^T (A + ridge I)^-1 (P v),     P = kernel(x~, x),  A = kernel(x~, x~),  x = q / D^(1/4),  kernel(a, b) = exp(-|a - b|^2 / 2)

q and k are one. The bottleneck tokens x~ are sampled on the grid (softless/attention/bottleneck);
prefix tokens have no window, and take part in P. Lu et al., "SOFT: Softmax-free Transformer with
Linear Complexity", NeurIPS 2021, arXiv:2110.11945, equations 5, 8 and 9.
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
        normalised=False,
        ratio=ratio,
        sampling=sampling,
        inverse=inverse,
        ridge=ridge,
        parity=parity,
    )


SPEC = Operator(
    identity=Identity(
        name="soft",
        summary="Gaussian kernel between tokens, by bottleneck tokens; q and k tied",
        formula="o = Pᵀ (A + 0.01 I)⁻¹ (P v), P = exp(−‖x̃ − x‖²/2), A = exp(−‖x̃ − x̃‖²/2)",
        paper="arXiv:2110.11945",
        title="SOFT",
        differs="The published inverse takes 20 Newton steps however far they come: 16 to 99.5 % "
        "off on flat image regions, and its derivative is that of an exact "
        "inverse. Here Cholesky, in float64 where the device has it; `parity=True` gives the "
        "published numbers. The convolution of v in the published module is "
        "`v_conv`. Distances are clamped, so that kernels lie in 0..1. In heads wider than the "
        "published 32 channels LayerNorm's weight starts at √(16/D) and "
        "not at 1, with which every kernel is next to nothing and nothing trains.",
    ),
    reference=reference,
    claims=Claims(
        flops=partial(claims.flops, normalised=False),
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
    streaming=streaming(normalised=False),
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
