"""Linformer: softmax attention over a few projected keys and values.

    o = softmax(q (E^T k)^T / sqrt(D)) (F^T v),        E, F (tokens x projected), one row per token of the sequence

E^T k and F^T v are sums over tokens. A shorter sequence takes the first rows; a longer one is
refused. With `reduction="grid"` the few keys and values come from a strided convolution of the
module's input instead (PVT, arXiv:2102.12122, which SOFT's Table 2 calls Linformer): the operator
is then given them, and is softmax attention over them. Wang et al., "Linformer: Self-Attention with
Linear Complexity", 2020, arXiv:2006.04768, equation 7.
"""

# B batch, H heads, N query tokens, M key tokens, D features of q and k, E features of v, R
# projected tokens

from typing import Any

import torch
from torch import Tensor

from softless.attention.exponents import softmax_over_keys
from softless.attention.norms import keep, product
from softless.attention.options import Learned, Option, Sizes
from softless.attention.places import key_ranks
from softless.attention.record import (
    TOLERANCE,
    Backend,
    Bounds,
    Claims,
    Dims,
    HostNeeds,
    Identity,
    Operator,
)
from softless.attention.streaming import Streaming, Summary, Sweep, Tokens, at_once


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, query_mask: Tensor | None
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over the keys at hand: (B,H,N,D), (B,H,M,D), (B,H,M,E) ->
    (B,H,N,E).
    """
    q, k, v = keep(q, query_mask), keep(k, mask), keep(v, mask)
    return keep(softmax_over_keys(q @ k.mT * q.shape[-1] ** -0.5, mask) @ v, query_mask)


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    learned: dict[str, Tensor],
    mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    reduction: str = "tokens",
    projected: int = 256,  # noqa: ARG001
    ratio: int = 2,  # noqa: ARG001
    shared: bool = False,
) -> Tensor:  # the tensors and the module have them
    """The formula as printed: q (B,H,N,D), k (B,H,M,D), v (B,H,M,E) -> (B,H,N,E)."""
    if reduction == "grid":
        return attention(q, k, v, mask, query_mask)
    key_rows, value_rows = rows(Tokens(q, k, v, mask, query_mask), learned, shared)
    few_k, few_v = key_rows.mT @ keep(k, mask), value_rows.mT @ keep(v, mask)
    return attention(q, few_k, few_v, None, query_mask)


def rows(tokens: Tokens, learned: dict[str, Tensor], shared: bool) -> tuple[Tensor, Tensor]:
    """E's and F's rows of these tokens, by their rank among those that count: (B or 1, 1, m, R)
    each.
    """
    ranks, _ = key_ranks(tokens)
    of_k = learned["key_projection"][ranks][:, None]
    return of_k, of_k if shared else learned["value_projection"][ranks][:, None]


def summarise(
    tokens: Tokens, _: None, *, learned: dict[str, Tensor], shared: bool, **__: Any
) -> Summary:
    """E^T k (B,H,R,D) and F^T v (B,H,R,E) over some tokens."""
    of_k, of_v = rows(tokens, learned, shared)
    return {
        "k": product(of_k, keep(tokens.k, tokens.mask)),
        "v": product(of_v, keep(tokens.v, tokens.mask)),
    }


def finish(summary: Summary, **_: Any) -> Summary:
    """The projected keys and values."""
    return summary


def read(tokens: Tokens, summary: Summary, **_: Any) -> Tensor:
    """The output of these queries, (B,H,n,E)."""
    return attention(tokens.q, summary["k"], summary["v"], None, tokens.query_mask)


STREAMING = Streaming(
    sweeps=(Sweep(summarise, finish),),
    read=read,
    holds="Eᵀk (R x D) and Fᵀv (R x E), sums over tokens that know their rank",
    merges="plain addition",
    refuses=lambda *, reduction, **_: (
        'with reduction="grid" the operator is given keys and values that the module has already '
        "made few: there is nothing to stream"
        if reduction == "grid"
        else None
    ),
)


def eager(q: Tensor, k: Tensor, v: Tensor, *, reduction: str, **extras: Any) -> Tensor:
    """The streaming form over all tokens at once, or attention over the reduced ones. Shapes: q
    (B,H,N,D), k (B,H,M,D), v (B,H,M,E) -> (B,H,N,E).
    """
    if reduction == "grid":
        return attention(q, k, v, extras["mask"], extras["query_mask"])
    return at_once(STREAMING)(q, k, v, reduction=reduction, **extras)


def few(d: Dims) -> int:
    """Keys that a query weighs."""
    return int(d.options["projected"] if d.options["reduction"] == "tokens" else d.M)


def flops(d: Dims) -> int:
    """Projections of k and v, scores, reading; 2 FLOPs per multiply-add."""
    projections = d.M * few(d) * (d.D + d.E) if d.options["reduction"] == "tokens" else 0
    return 2 * d.B * d.H * (projections + d.N * few(d) * (d.D + d.E))


def limits(d: Dims, *, learned: dict[str, Tensor], **_: Any) -> str | None:
    """A sequence longer than the projections have rows. "key_projection" is (tokens, R)."""
    if "key_projection" not in learned or learned["key_projection"].shape[0] >= d.M:
        return None
    return (
        f"{d.M} tokens, and its projections have rows for {learned['key_projection'].shape[0]}: "
        "build the model for the longer sequence, "
        'or use reduction="grid"'
    )


def _uniform(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    return (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1) * shape[-1] ** -0.5


def _shape(sizes: Sizes) -> tuple[int, ...]:
    return sizes.tokens or 0, sizes.options["projected"]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


SPEC = Operator(
    identity=Identity(
        name="linformer",
        summary="softmax over keys and values projected to a few, by learned rows per token or by "
        "a strided convolution",
        formula="o = softmax(q (Eᵀk)ᵀ / √D) (Fᵀv)",
        paper="arXiv:2006.04768",
        title="Linformer",
        differs="Rows are taken by rank among the tokens that count, so that masking is removal. "
        "Projections are shared by the heads and start uniform in "
        '±1/√projected. With reduction="grid" prefix tokens bypass the convolution (PVT has '
        "none); the convolution reads the module's input.",
    ),
    reference=reference,
    claims=Claims(
        flops=flops,
        exps=lambda d: d.B * d.H * d.N * few(d),
        growth="N",
        normalises="nothing",  # the softmax's rows give one, but F^T v is no average
        scale_free=False,
        equivariant=False,
        implied_matrix=True,
        cross=True,
        resolution="fixed",
        limits=limits,
    ),
    streaming=STREAMING,
    options={
        "projected": Option(
            256,
            "number of projected keys and values",
            _is_count,
            "a positive whole number",
            small=4,
        ),
        "reduction": Option(
            "tokens",
            "how keys and values become few: learned rows per token, or a strided convolution of "
            "the module's input on the grid",
            lambda value: value in {"tokens", "grid"},
            "'tokens' or 'grid'",
        ),
        "ratio": Option(
            2,
            'side of the convolution\'s windows with reduction="grid"',
            _is_count,
            "a positive whole number",
        ),
        "shared": Option(
            default=False,
            says="keys and values share one projection",
            accepts=lambda value: isinstance(value, bool),
            values="True or False",
        ),
    },
    learned={
        "key_projection": Learned(
            _shape, _uniform, when=lambda options: options["reduction"] == "tokens"
        ),
        "value_projection": Learned(
            _shape,
            _uniform,
            when=lambda options: options["reduction"] == "tokens" and not options["shared"],
        ),
    },
    host=HostNeeds(
        needs={"tokens": lambda options: options["reduction"] == "tokens"},
        reduces=lambda options: options["ratio"] if options["reduction"] == "grid" else 1,
    ),
    own=(
        # one token ten thousand times as large drowns the others in the projected keys, and the
        # softmax feels their rounding
        Backend(
            name="eager",
            fn=eager,
            bounds=Bounds(
                tolerance={**TOLERANCE, torch.float32: 1e-4},
            ),
        ),
    ),
)
