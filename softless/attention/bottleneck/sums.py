"""SOFT as sums over tokens, in two sweeps: the bottleneck tokens, then what they see."""

# B batch, H heads, N tokens, D features of q, E features of v, R bottleneck tokens, r side of a
# window

from functools import partial
from typing import Any

from torch import Tensor

from softless.attention.bottleneck.kernels import kernel, middle_of
from softless.attention.bottleneck.product import island
from softless.attention.bottleneck.sampling import activated, convolved_parts, membership, scaled
from softless.attention.moments import precise
from softless.attention.norms import keep, product
from softless.attention.record import Grid
from softless.attention.streaming import Streaming, Summary, Sweep, Tokens


def sum_parts(
    tokens: Tokens,
    _: None,
    *,
    learned: dict[str, Tensor],
    grid: Grid,
    sampling: str,
    ratio: int,
    **__: Any,
) -> Summary:
    """First sweep: what the tokens add to the bottleneck tokens, and how many do. "few" is
    (B,H,R,D), "number" (B or 1, 1, R, 1).
    """
    x = scaled(tokens.q, tokens.mask)
    parts = membership(x, tokens.mask, tokens.keys, grid, sampling, ratio)
    total = (
        convolved_parts(x, tokens.keys, grid, learned["conv"])
        if sampling == "conv"
        else product(parts, x)
    )
    return {"few": total, "number": parts.sum(-2, keepdim=True).mT}


def place_bottleneck(
    summary: Summary, *, learned: dict[str, Tensor], sampling: str, **_: Any
) -> Summary:
    """The bottleneck tokens "few" (B,H,R,D), and how many tokens each is made of."""
    number = summary["number"]
    bottleneck = (
        activated(summary["few"], learned)
        if sampling == "conv"
        else summary["few"] / number.clamp_min(1)
    )
    return {"few": bottleneck, "number": number}


def look(tokens: Tokens, placed: Summary, **_: Any) -> Summary:
    """Second sweep: P v; kernels are at most 1, so plain sums do.

    The bottleneck tokens travel with it.

    "seen" is (B,H,R,E).
    """
    present = placed["number"] > 0
    x = scaled(tokens.q, tokens.mask)
    weights = kernel(x, placed["few"], middle_of(placed["few"], present)).masked_fill(
        ~present.mT, 0
    )
    return placed | {"seen": product(keep(weights, tokens.mask), keep(tokens.v, tokens.mask))}


def merge_looks(a: Summary, b: Summary) -> Summary:
    """P v is added; the bottleneck tokens are the same in both."""
    return a | {"seen": a["seen"] + b["seen"]}


def finish(summary: Summary, *, inverse: str, ridge: float, normalised: bool, **_: Any) -> Summary:
    """The bottleneck tokens and what each is worth (B,H,R,E)."""
    present = summary["number"] > 0
    inverted = island(
        precise(summary["few"]), present, ridge=ridge, inverse=inverse, normalised=normalised
    )
    worth = (inverted @ precise(summary["seen"])).to(summary["seen"].dtype)
    return {"few": summary["few"], "there": present, "worth": worth}


def read(tokens: Tokens, reader: Summary, **_: Any) -> Tensor:
    """The output of these queries, (B,H,n,E)."""
    bottleneck, present = reader["few"], reader["there"]
    weights = kernel(
        scaled(tokens.q, tokens.query_mask), bottleneck, middle_of(bottleneck, present)
    ).masked_fill(~present.mT, 0)
    return keep(weights @ reader["worth"], tokens.query_mask)


def streaming(*, normalised: bool) -> Streaming:
    """Two sweeps: the bottleneck tokens, then P v."""
    return Streaming(
        sweeps=(
            Sweep(sum_parts, place_bottleneck),
            Sweep(look, partial(finish, normalised=normalised), merge_looks),
        ),
        read=read,
        holds="first the sums that make the bottleneck tokens (R x D) and their numbers; then P v "
        "(R x E)",
        merges="plain addition in both passes: a kernel is at most 1",
        refuses=lambda *, parity, **_: (
            "the published inverse is kept for whole images, to compare with: leave out parity=True"
            if parity
            else None
        ),
    )
