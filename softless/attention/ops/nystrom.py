"""Nystroemformer: softmax attention by a few landmarks, with an iterative pseudo-inverse between
them.

    o = softmax(q k~^T / sqrt(D)) Z softmax(q~ k^T / sqrt(D)) v,        Z ~ pinv(softmax(q~ k~^T / sqrt(D)))

q~ and k~ are means of q and k over segments of consecutive tokens, or over windows on the grid. Z
takes six steps of

    Z <- 1/4 Z (13 I - F (15 I - F (7 I - F))),    F = A Z,    Z_0 = A^T / (|A|_1 |A|_inf) for each matrix by itself

Where there are no more tokens than landmarks the result is softmax attention itself, as published.
Xiong et al., "Nystroemformer: A Nystroem-based Algorithm for Approximating Self-Attention", AAAI
2021, arXiv:2102.03902.
"""

# B batch, H heads, N query tokens, M key tokens, D features of q and k, E features of v, R
# landmarks

from typing import Any

import torch
from torch import Tensor

from softless.attention import exponents
from softless.attention.moments import precise
from softless.attention.norms import keep, product
from softless.attention.options import Option, Options
from softless.attention.places import indices, key_ranks, number_of_windows, query_ranks, windows
from softless.attention.record import (
    TOLERANCE,
    Backend,
    Bounds,
    Claims,
    Dims,
    Grid,
    HostNeeds,
    Identity,
    Operator,
)
from softless.attention.recording import recording
from softless.attention.streaming import ChunkPosition, Streaming, Summary, Sweep, Tokens, at_once


def segments(ranks: Tensor, counted: Tensor, landmarks: int) -> Tensor:
    """Segment of each token (B or 1, n): the first (s + 1) R - counted of them have s = counted //
    R tokens, the others s + 1.
    """
    short = counted // landmarks
    first = (short + 1) * landmarks - counted  # how many segments are short
    in_first = ranks < first * short
    return torch.where(
        in_first, ranks // short.clamp_min(1), first + (ranks - first * short) // (short + 1)
    )


def membership(x: Tensor, side: Tensor, mask: Tensor | None, number: int) -> Tensor:
    """(B or 1, 1, n, R) 1 where a token belongs to a landmark; the landmark of each token is
    `side`, out of range for none.
    """
    member = side[..., None] == torch.arange(number, device=x.device)
    if mask is not None:
        member = member & mask[..., None]
    return member[:, None].to(x.dtype)


def _in_windows(
    position: ChunkPosition | None, length: int, x: Tensor, grid: Grid, ratio: int
) -> Tensor:
    window, _, inside = windows(indices(length, position, x.device), grid, ratio)
    return torch.where(inside, window, -1)[None]


def members(tokens: Tokens, grid: Grid | None, options: Options) -> tuple[Tensor, Tensor]:
    """Membership of the queries (B or 1, 1, n, R) and of the keys (B or 1, 1, m, R) of a chunk."""
    number = landmarks(grid, options)
    if options["pooling"] == "grid" and grid is not None:
        of_q = _in_windows(tokens.queries, tokens.q.shape[-2], tokens.q, grid, options["ratio"])
        of_k = _in_windows(tokens.keys, tokens.k.shape[-2], tokens.k, grid, options["ratio"])
    else:
        of_q, of_k = (
            segments(*ranks, number) for ranks in (query_ranks(tokens), key_ranks(tokens))
        )
    return membership(tokens.q, of_q, tokens.query_mask, number), membership(
        tokens.k, of_k, tokens.mask, number
    )


def landmarks(grid: Grid | None, options: Options) -> int:
    """How many there are."""
    if options["pooling"] == "grid" and grid is not None:
        return number_of_windows(grid, options["ratio"])
    return int(options["landmarks"])


def means(total: Tensor, number: Tensor) -> Tensor:
    """Means from sums (B,H,R,D) and numbers of tokens (B or 1, 1, R, 1); 0 for a landmark without
    tokens.
    """
    return total / number.clamp_min(1)


def between(few_q: Tensor, few_k: Tensor, has_q: Tensor, has_k: Tensor) -> Tensor:
    """softmax(q~ k~^T / sqrt(D)): (B,H,R,R), rows and columns of empty landmarks 0."""
    scores = few_q @ few_k.mT * few_q.shape[-1] ** -0.5
    shut = torch.finfo(scores.dtype).min
    return scores.masked_fill(~has_k.mT, shut).softmax(-1).masked_fill(~has_k.mT | ~has_q, 0)


def pseudo_inverse(a: Tensor, steps: int, parity: bool) -> Tensor:
    """Z of the docstring, for (B,H,R,R)."""
    rows, columns = (
        a.abs().sum(-1, keepdim=True).amax(-2, keepdim=True),
        a.abs().sum(-2, keepdim=True).amax(-1, keepdim=True),
    )
    if parity:
        # over batch and heads: one image's start depends on its mates
        rows, columns = rows.amax(), columns.amax()
    z = a.mT / (rows * columns).clamp_min(torch.finfo(a.dtype).tiny)
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    for _ in range(steps):
        f = a @ z
        z = 0.25 * z @ (13 * identity - f @ (15 * identity - f @ (7 * identity - f)))
    return z


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, query_mask: Tensor | None
) -> Tensor:
    """Softmax attention over the keys at hand. Shapes: q (B,H,N,D), k (B,H,M,D), v (B,H,M,E) ->
    (B,H,N,E).
    """
    q, k, v = keep(q, query_mask), keep(k, mask), keep(v, mask)
    return keep(exponents.softmax_over_keys(q @ k.mT * q.shape[-1] ** -0.5, mask) @ v, query_mask)


def no_more_than_landmarks(k: Tensor, grid: Grid | None, options: Options) -> bool:
    """Whether every key is a landmark by itself, by the shapes at hand; an exported graph does not
    ask. Here k is (B,H,M,D).
    """
    if recording() or options["pooling"] == "grid":
        return False
    return bool(k.shape[-2] <= landmarks(grid, options))


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    grid: Grid | None = None,
    landmarks: int = 64,
    pooling: str = "segments",
    ratio: int = 2,
    iterations: int = 6,
    parity: bool = False,
) -> Tensor:
    """The formula as printed: q (B,H,N,D), k (B,H,M,D), v (B,H,M,E) -> (B,H,N,E)."""
    options = {"landmarks": landmarks, "pooling": pooling, "ratio": ratio}
    if no_more_than_landmarks(k, grid, options):
        return attention(q, k, v, mask, query_mask)
    of_q, of_k = members(Tokens(q, k, v, mask, query_mask), grid, options)
    number_q, number_k = (x.sum(-2, keepdim=True).mT for x in (of_q, of_k))
    q, k, v = keep(q, query_mask), keep(k, mask), keep(v, mask)
    few_q, few_k = means(of_q.mT @ q, number_q), means(of_k.mT @ k, number_k)
    to_landmarks = _to_landmarks(q, few_k, number_k > 0)
    inner = pseudo_inverse(between(few_q, few_k, number_q > 0, number_k > 0), iterations, parity)
    from_tokens = exponents.softmax_over_keys(few_q @ k.mT * q.shape[-1] ** -0.5, mask)
    o = to_landmarks @ (inner @ (from_tokens @ v))
    if mask is not None and pooling == "segments":
        plain = to_landmarks @ means(of_k.mT @ v, number_k)
        o = torch.where(mask.sum(-1)[:, None, None, None] <= number_k.shape[-2], plain, o)
    return keep(o, query_mask)


def _to_landmarks(q: Tensor, few_k: Tensor, has_k: Tensor) -> Tensor:
    """softmax(q k~^T / sqrt(D)): (B,H,N,R), 0 at empty landmarks."""
    scores = q @ few_k.mT * q.shape[-1] ** -0.5
    return (
        scores
        .masked_fill(~has_k.mT, torch.finfo(scores.dtype).min)
        .softmax(-1)
        .masked_fill(~has_k.mT, 0)
    )


def sum_landmarks(tokens: Tokens, _: None, *, grid: Grid | None = None, **options: Any) -> Summary:
    """First sweep: sums of q, k and v, and numbers of tokens, for each landmark."""
    of_q, of_k = members(tokens, grid, options)
    q, k, v = (
        keep(tokens.q, tokens.query_mask),
        keep(tokens.k, tokens.mask),
        keep(tokens.v, tokens.mask),
    )
    return {
        "q": product(of_q, q),
        "k": product(of_k, k),
        "v": product(of_k, v),
        "number_q": of_q.sum(-2, keepdim=True).mT,
        "number_k": of_k.sum(-2, keepdim=True).mT,
    }


def place_landmarks(summary: Summary, **_: Any) -> Summary:
    """The landmarks themselves."""
    number_q, number_k = summary["number_q"], summary["number_k"]
    few_q, few_k, few_v = (
        means(summary["q"], number_q),
        means(summary["k"], number_k),
        means(summary["v"], number_k),
    )
    return {
        "few_q": few_q,
        "few_k": few_k,
        "few_v": few_v,
        "number_q": number_q,
        "number_k": number_k,
    }


def look_at_tokens(tokens: Tokens, placed: Summary, **_: Any) -> Summary:
    """Second sweep: softmax(q~ k^T / sqrt(D)) v as a sum that carries its largest exponents; the
    landmarks travel with it.
    """
    scores = keep(tokens.k, tokens.mask) @ placed["few_q"].mT * tokens.k.shape[-1] ** -0.5
    return placed | exponents.weigh(scores, tokens.v, tokens.mask)


def merge_looks(a: Summary, b: Summary) -> Summary:
    """The landmarks are the same in both."""
    return a | exponents.merge(a, b)


def finish(summary: Summary, *, iterations: int, pooling: str, **_: Any) -> Summary:
    """k~, which of its rows count, and what each landmark key is worth (B,H,R,E)."""
    number_q, number_k = summary["number_q"], summary["number_k"]
    few_q, few_k = precise(summary["few_q"]), precise(summary["few_k"])
    inner = pseudo_inverse(
        between(few_q, few_k, number_q > 0, number_k > 0), iterations, parity=False
    )
    worth = (inner @ precise(exponents.averages(summary))).to(summary["few_v"].dtype)
    # no more tokens than landmarks: each is a landmark by itself, and this is softmax attention
    if pooling == "segments":
        worth = torch.where((number_k <= 1).all(-2, keepdim=True), summary["few_v"], worth)
    return {"few_k": summary["few_k"], "has_k": number_k > 0, "worth": worth}


def read(tokens: Tokens, reader: Summary, **_: Any) -> Tensor:
    """The output of these queries, (B,H,n,E)."""
    q = keep(tokens.q, tokens.query_mask)
    return keep(
        _to_landmarks(q, reader["few_k"], reader["has_k"]) @ reader["worth"], tokens.query_mask
    )


STREAMING = Streaming(
    sweeps=(Sweep(sum_landmarks, place_landmarks), Sweep(look_at_tokens, finish, merge_looks)),
    read=read,
    holds="first Σq, Σk, Σv and numbers of tokens per landmark (R x D); then per landmark its "
    "largest score, Σexp (R) and Σexp·v (R x E)",
    merges="first plain addition; then both brought to the larger maximum and added",
    refuses=lambda *, parity, **_: (
        "the published start of the iteration is one maximum over batch and heads: leave out "
        "parity=True"
        if parity
        else None
    ),
)


def eager(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None,
    query_mask: Tensor | None,
    parity: bool,
    **extras: Any,
) -> Tensor:
    """The streaming form over all tokens at once; softmax attention where every token is a
    landmark. Shapes: q (B,H,N,D), k (B,H,M,D), v (B,H,M,E) -> (B,H,N,E).
    """
    if parity:
        return reference(q, k, v, mask=mask, query_mask=query_mask, parity=True, **extras)
    options = {name: value for name, value in extras.items() if name != "grid"}
    if no_more_than_landmarks(k, extras.get("grid"), options):
        return attention(q, k, v, mask, query_mask)
    return at_once(STREAMING)(q, k, v, mask=mask, query_mask=query_mask, parity=parity, **extras)


def flops(d: Dims) -> int:
    """Landmark sums, three softmaxes' products, the iteration and reading; 2 FLOPs per
    multiply-add.
    """
    number, segmented = landmarks(d.grid, d.options), d.options["pooling"] == "segments"
    if segmented and number >= d.M:
        return 2 * d.B * d.H * d.N * d.M * (d.D + d.E)
    sums = (d.N + d.M) * number * d.D
    scores = (d.N * number + number * number + number * d.M) * d.D
    island = d.options["iterations"] * 4 * number**3
    values = number * d.M * d.E + number * number * d.E + d.N * number * d.E
    return 2 * d.B * d.H * (sums + scores + island + values)


def exps(d: Dims) -> int:
    """Three softmaxes, or one where every token is a landmark."""
    number = landmarks(d.grid, d.options)
    if d.options["pooling"] == "segments" and number >= d.M:
        return d.B * d.H * d.N * d.M
    return d.B * d.H * number * (d.N + d.M + number)


def limits(d: Dims, **_: Any) -> str | None:
    """Windows need a grid that holds one, and queries that are the keys."""
    if d.options["pooling"] != "grid" or d.grid is None:
        return None
    if d.N != d.M:
        return (
            f'pooling="grid" needs as many queries as keys, got {d.N} and {d.M}: use '
            'pooling="segments"'
        )
    if not number_of_windows(d.grid, d.options["ratio"]):
        return (
            f"grid {d.grid[1]} x {d.grid[2]} has no window of {d.options['ratio']} x "
            f"{d.options['ratio']}: choose a smaller ratio"
        )
    return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


OPTIONS = {
    "landmarks": Option(
        64,
        "number of segments whose means are landmarks",
        _is_count,
        "a positive whole number",
        small=4,
    ),
    "pooling": Option(
        "segments",
        "what a landmark is the mean of: a segment of consecutive tokens, or a window on the grid",
        lambda value: value in {"segments", "grid"},
        "'segments' or 'grid'",
    ),
    "ratio": Option(
        2, 'side of the windows with pooling="grid"', _is_count, "a positive whole number"
    ),
    "iterations": Option(6, "steps of the pseudo-inverse", _is_count, "a positive whole number"),
    "parity": Option(
        default=False,
        says="start the pseudo-inverse from one maximum over batch and heads, as the published "
        "code does",
        accepts=lambda value: isinstance(value, bool),
        values="True or False",
    ),
}

SPEC = Operator(
    identity=Identity(
        name="nystrom",
        summary="softmax attention by a few landmarks and an iterated pseudo-inverse",
        formula="o = softmax(q k̃ᵀ/√D) Z softmax(q̃ kᵀ/√D) v, Z ≈ pinv(softmax(q̃ k̃ᵀ/√D))",
        paper="arXiv:2102.03902",
        title="Nystrom",
        differs="The iteration starts from each matrix's own norms, as in the paper; the "
        "published code's default takes one maximum over batch and heads, so "
        "that an image's result depends on its mates (`parity=True`). The convolution of v is the "
        "module's `v_conv`, on the grid. Segments are cut "
        "among the tokens that count.",
    ),
    reference=reference,
    claims=Claims(
        flops=flops,
        exps=exps,
        growth="N",
        normalises="nothing",  # the rows give one only as far as the pseudo-inverse has converged
        scale_free=False,
        equivariant=False,
        implied_matrix=True,
        cross=True,
        limits=limits,
    ),
    streaming=STREAMING,
    options=OPTIONS,
    host=HostNeeds(
        needs={"grid": lambda options: options["pooling"] == "grid"},
    ),
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
