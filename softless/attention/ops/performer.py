"""Performer: softmax attention by positive random features (FAVOR+), written so that nothing over-
or underflows.

    phi_r(x) = exp(<w_r, x> - |x|^2 / 2),    x = q / D^(1/4) and k / D^(1/4)
    o_n = phi(q_n) (phi(K)^T V) / (phi(q_n) (phi(K)^T 1))

What depends on the query alone (|q|^2 / 2, the 1 / sqrt(m), any stabiliser) cancels in the ratio.
With z_r = log sum_m phi_r(k_m) and v_r the average of v with weights phi_r(k_m),

    o_n = sum_r softmax_r(<w_r, q_n> + z_r) v_r

which is exact for keys of any size; the published stabilisers need an epsilon that biases the
result (`parity=True`). Choromanski et al., "Rethinking Attention with Performers", ICLR 2021,
arXiv:2009.14794, equations 5 and 7.
"""

# B batch, H heads, N query tokens, M key tokens, D features of q and k, E features of v, R random
# features

import math
from typing import Any

import torch
from torch import Tensor

from softless.attention import exponents
from softless.attention.norms import keep, product
from softless.attention.options import Learned, Option, Options, Sizes
from softless.attention.record import TOLERANCE, Backend, Bounds, Claims, Dims, Identity, Operator
from softless.attention.streaming import Streaming, Summary, Sweep, Tokens, add, at_once

RELU_FLOOR = 1e-3  # added to relu features (the generalised attention of the published code)
STABILISER = 1e-4  # epsilon of the published stabiliser


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    learned: dict[str, Tensor],
    mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    kind: str = "softmax",
    parity: bool = False,
    features: int | None = None,  # noqa: ARG001
    redraw_every: int = 1000,  # noqa: ARG001
) -> Tensor:  # the random features have them
    """The ratio of the docstring; with parity the published form, stabilisers and all. Shapes: q
    (B,H,N,D), k (B,H,M,D), v (B,H,M,E) -> (B,H,N,E).
    """
    if parity:
        return _published(q, k, v, learned["directions"], mask, query_mask)
    tokens = Tokens(q, k, v, mask, query_mask)
    return read(
        tokens,
        finish(summarise(tokens, None, learned=learned, kind=kind), kind=kind),
        learned=learned,
        kind=kind,
    )


def project(x: Tensor, directions: Tensor) -> Tensor:
    """<w_r, x / D^(1/4)>: (B,H,N,D) -> (B,H,N,R)."""
    return (x * x.shape[-1] ** -0.25) @ directions.mT


def half_square(x: Tensor) -> Tensor:
    """|x|^2 / 2 of x / D^(1/4): (B,H,N,D) -> (B,H,N,1)."""
    return x.square().sum(-1, keepdim=True) * (0.5 * x.shape[-1] ** -0.5)


def summarise(
    tokens: Tokens, _: None, *, learned: dict[str, Tensor], kind: str, **__: Any
) -> Summary:
    """For each feature: sum over keys of phi and of phi v, with its largest exponent for the
    exponential features. The sums are (B,H,R,1) and (B,H,R,E).
    """
    k = keep(tokens.k, tokens.mask)
    scores = project(k, learned["directions"])
    if kind == "softmax":
        return exponents.weigh(scores - half_square(k), tokens.v, tokens.mask)
    weights = keep(scores.relu() + RELU_FLOOR, tokens.mask)
    return {
        "sum": product(weights, torch.ones_like(weights[..., :1])),
        "context": product(weights, keep(tokens.v, tokens.mask)),
    }


def merge(a: Summary, b: Summary) -> Summary:
    """Exponential features carry their maximum; relu features are plain sums."""
    return exponents.merge(a, b) if "top" in a else add(a, b)


def finish(summary: Summary, *, kind: str, **_: Any) -> tuple[Tensor, Tensor]:
    """(B,H,1,R) z, or the sums of the relu features, and (B,H,R,E) their averages of v."""
    if kind == "softmax":
        z = exponents.log_totals(summary)
        return z.masked_fill(z == float("-inf"), 0).mT, exponents.averages(summary)
    return summary["sum"].mT, exponents.averages(summary)


def read(
    tokens: Tokens,
    reader: tuple[Tensor, Tensor],
    *,
    learned: dict[str, Tensor],
    kind: str,
    **_: Any,
) -> Tensor:
    """The output of these queries, (B,H,n,E)."""
    totals, averages = reader
    scores = project(keep(tokens.q, tokens.query_mask), learned["directions"])
    if kind == "softmax":
        weights = (scores + totals).softmax(-1)
    else:
        weights = (scores.relu() + RELU_FLOOR) * totals
        row_sums = weights.sum(-1, keepdim=True)
        weights = weights / row_sums.masked_fill(row_sums == 0, 1)  # 0 only where no key counts
    return keep(weights @ averages, tokens.query_mask)


def _published(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    directions: Tensor,
    mask: Tensor | None,
    query_mask: Tensor | None,
) -> Tensor:
    """Stabilised by the maximum over features per query, and over tokens and features for keys;
    1e-4 is added to each feature.
    """
    q, k, v = keep(q, query_mask), keep(k, mask), keep(v, mask)
    scale = directions.shape[0] ** -0.5
    q_dash, k_dash = project(q, directions), project(k, directions)
    q_top, k_top = (
        q_dash.detach().amax(-1, keepdim=True),
        k_dash.detach().amax((-2, -1), keepdim=True),
    )
    phi_q = scale * ((q_dash - half_square(q) - q_top).exp() + STABILISER)
    phi_k = keep(scale * ((k_dash - half_square(k) - k_top).exp() + STABILISER), mask)
    total = phi_q @ phi_k.sum(-2, keepdim=True).mT
    return keep(phi_q @ (phi_k.mT @ v) / total.masked_fill(total == 0, 1), query_mask)


def directions(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """(R, D) rows: blocks of D orthogonal directions, each with the length of a Gaussian vector."""
    rows, width = shape
    blocks = []
    for start in range(0, rows, width):
        basis, upper = torch.linalg.qr(
            torch.randn(width, width, generator=generator, dtype=torch.float64)
        )
        blocks.append((basis * upper.diagonal().sign()).mT[: rows - start])
    lengths = torch.randn(rows, width, generator=generator, dtype=torch.float64).norm(
        dim=-1, keepdim=True
    )
    return torch.cat(blocks) * lengths


def number(options: Options, head_dim: int) -> int:
    """How many random features: D ln D unless said."""
    return int(
        options["features"] or max(1, int(head_dim * math.log(head_dim)) if head_dim > 1 else 1)
    )


def _shape(sizes: Sizes) -> tuple[int, ...]:
    return number(sizes.options, sizes.head_dim), sizes.head_dim


STREAMING = Streaming(
    sweeps=(Sweep(summarise, finish, merge),),
    read=read,
    holds="per random feature its largest exponent, Σφ (R) and Σφ·v (R x E)",
    merges="both brought to the larger exponent, then added (relu features: plain addition)",
    refuses=lambda *, parity, **_: (
        "the published stabiliser takes a maximum over all keys and features and adds an epsilon "
        "to it: leave out parity=True"
        if parity
        else None
    ),
)


def eager(q: Tensor, k: Tensor, v: Tensor, *, parity: bool, **extras: Any) -> Tensor:
    """The streaming form over all tokens at once, or the published form. Shapes: q (B,H,N,D), k
    (B,H,M,D), v (B,H,M,E) -> (B,H,N,E).
    """
    return (
        reference(q, k, v, parity=True, **extras)
        if parity
        else at_once(STREAMING)(q, k, v, **extras)
    )


def flops(d: Dims) -> int:
    """Projections onto the features, sums over keys, reading; 2 FLOPs per multiply-add."""
    features = number(d.options, d.D)
    return 2 * d.B * d.H * features * ((d.N + d.M) * d.D + d.M * (d.E + 1) + d.N * d.E)


def exps(d: Dims) -> int:
    """Exponentials of keys and queries, and a logarithm per feature; none with relu features."""
    if d.options["kind"] == "relu":
        return 0
    features = number(d.options, d.D)
    return d.B * d.H * features * (d.N + d.M + (0 if d.options["parity"] else 1))


SPEC = Operator(
    identity=Identity(
        name="performer",
        summary="softmax attention estimated by positive random features",
        formula="o = φ(q) (φ(k)ᵀ v) / φ(q) Σφ(k), φ(x) = exp(w x − |x|²/2)",
        paper="arXiv:2009.14794",
        title="Performer",
        differs="The published code stabilises its exponents by maxima over all features "
        "(queries) and over all keys and features, and adds 1e-4; here "
        "each feature carries its own maximum, nothing is added, and far-away keys keep their "
        "weight. `parity=True` gives the published numbers.",
    ),
    reference=reference,
    claims=Claims(
        flops=flops,
        exps=exps,
        growth="N",
        normalises="rows",
        scale_free=False,
        equivariant=True,
        implied_matrix=True,
        cross=True,
    ),
    streaming=STREAMING,
    options={
        "features": Option(
            None,
            "number of random features; None is D ln D",
            lambda value: (
                value is None
                or (isinstance(value, int) and not isinstance(value, bool) and value > 0)
            ),
            "None or a positive whole number",
            small=12,
        ),
        "kind": Option(
            "softmax",
            "features: exponential, or relu + 1e-3, which takes no exponential (the generalised "
            "attention of the published code)",
            lambda value: value in {"softmax", "relu"},
            "'softmax' or 'relu'",
        ),
        "redraw_every": Option(
            1000,
            "steps after which `softless train` draws the features anew (a loop of one's own: "
            "softless.layers.stepped(model)); 0 is never",
            lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0,
            "a whole number, 0 for never",
        ),
        "parity": Option(
            default=False,
            says="the published form with its stabilisers and their epsilon",
            accepts=lambda value: isinstance(value, bool),
            values="True or False",
        ),
    },
    learned={"directions": Learned(_shape, directions, trained=False, redraw_every="redraw_every")},
    # exponents of some tens, rounded
    own=(
        Backend(
            name="eager",
            fn=eager,
            bounds=Bounds(
                tolerance={**TOLERANCE, torch.float32: 1e-5},
            ),
        ),
    ),
)
