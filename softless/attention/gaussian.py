"""Gaussian-kernel attention with bottleneck tokens: SOFT and its normalised form, written once.

    x = q / D^(1/4),    kernel(a, b) = exp(-|a - b|^2 / 2)
    x~ = R bottleneck tokens sampled from x on the grid
    P = kernel(x~, x)  (R x N),   A = kernel(x~, x~)  (R x R)
    o = P^T (S (A + ridge I)^-1 S (P v)),      S = I, or diag(A 1)^(-1/2) in the normalised form

Lu et al., "SOFT: Softmax-free Transformer with Linear Complexity", NeurIPS 2021, arXiv:2110.11945; normalised: arXiv:2207.03341 and its code.
"""

# B batch, H heads, N tokens, D features of q, E features of v, R bottleneck tokens, r side of a window

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from softless.attention import inverse as inverses
from softless.attention.moments import precise
from softless.attention.norms import keep, product
from softless.attention.options import Learned, Option, Options
from softless.attention.places import indices, number_of_windows, windows
from softless.attention.record import TOLERANCE, Dims, Grid
from softless.attention.streaming import Place, Streaming, Summary, Sweep, Tokens

MOST = inverses.MOST  # bottleneck tokens: the inverse costs R^3, and its error grows with R
# of the whole operator; float16's is for outputs that kernels of distant tokens leave below its normal numbers
CLAIMED = {**TOLERANCE, torch.float32: 1e-5, torch.float16: 1e-2}
HALF_CHANNELS = 16  # of a head, up to which float16 holds what the convolution's bottleneck tokens make
PUBLISHED_CHANNELS = 32  # of a head in the published pyramids
NEAR_CHANNELS = 16  # of a head whose bottleneck tokens start near enough to the tokens
SAMPLINGS = ("conv", "pool", "random", "first", "strided")


# Kernels


def kernel(a: Tensor, b: Tensor, middle: Tensor) -> Tensor:
    """exp(-|a - b|^2 / 2) in 0..1: (...,n,D), (...,m,D) -> (...,n,m); `middle` (...,1,D) is taken off both, which changes nothing but rounding."""
    a, b = a - middle, b - middle
    squares = a.square().sum(-1, keepdim=True) + b.square().sum(-1, keepdim=True).mT - 2 * (a @ b.mT)
    return (-0.5 * squares.clamp_min(0)).exp()


def own_kernel(a: Tensor) -> Tensor:
    """kernel(a, a): exactly symmetric, with a diagonal of ones."""
    products = a @ a.mT
    squares = a.square().sum(-1, keepdim=True)
    apart = squares + squares.mT - (products + products.mT)
    same = torch.eye(a.shape[-2], dtype=torch.bool, device=a.device)
    return (-0.5 * apart.clamp_min(0)).masked_fill(same, 0).exp()


def middle_of(few: Tensor, there: Tensor) -> Tensor:
    """(B,H,1,D) mean of the bottleneck tokens that are there; without gradient, since a common shift changes no distance."""
    number = there.sum(-2, keepdim=True).clamp_min(1)
    return (few.detach().masked_fill(~there, 0).sum(-2, keepdim=True) / number).to(few.dtype)


# Bottleneck tokens


def scaled(q: Tensor, mask: Tensor | None) -> Tensor:
    """q / D^(1/4), masked tokens 0."""
    return keep(q, mask) * q.shape[-1] ** -0.25


def scrambled(number: int, device: torch.device) -> Tensor:
    """A fixed order of the cells 0..number-1 that looks random and depends on their number alone, so that calls repeat and graphs trace."""
    x = torch.arange(number, device=device, dtype=torch.int64)
    for shift, factor in ((16, 0x45D9F3B), (16, 0x45D9F3B), (16, 1)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x.argsort()


def taken(index: Tensor, grid: Grid, sampling: str, ratio: int) -> Tensor:
    """(n,) the bottleneck token that each token is a part of, -1 for none: every cell of a window, its first one, or chosen cells."""
    window, place, inside = windows(index, grid, ratio)
    number = number_of_windows(grid, ratio)
    cell = (index - grid[0]).clamp_min(0)
    if sampling == "strided":
        return torch.where(inside & (place == 0), window, -1)
    if sampling == "first":
        return torch.where((index >= grid[0]) & (cell < number), cell, -1)
    if sampling == "random":
        order = scrambled(grid[1] * grid[2], index.device)[:number]
        which = torch.full((grid[1] * grid[2],), -1, device=index.device).scatter(
            0, order, torch.arange(number, device=index.device)
        )
        return torch.where(index >= grid[0], which[cell], -1)
    return torch.where(inside, window, -1)


def membership(x: Tensor, mask: Tensor | None, place: Place | None, grid: Grid, sampling: str, ratio: int) -> Tensor:
    """(B or 1, 1, n, R) 1 where a token that counts is a part of a bottleneck token."""
    part = taken(indices(x.shape[-2], place, x.device), grid, sampling, ratio)
    one = (part[:, None] == torch.arange(number_of_windows(grid, ratio), device=x.device))[None]
    return (one if mask is None else one & mask[..., None])[:, None].to(x.dtype)


def activated(few: Tensor, learned: dict[str, Tensor]) -> Tensor:
    """LayerNorm and exact GELU of what the convolution made."""
    width = few.shape[-1]
    return F.gelu(F.layer_norm(few, (width,), learned["norm_weight"], learned["norm_bias"]))


def convolved(x: Tensor, grid: Grid, weight: Tensor) -> Tensor:
    """The strided convolution over a whole grid, shared by the heads: (B,H,N,D) -> (B,H,R,D)."""
    prefix, height, width = grid
    B, H, _, D = x.shape
    image = x[:, :, prefix:].reshape(B * H, height, width, D).permute(0, 3, 1, 2)
    return F.conv2d(image, weight, stride=weight.shape[-1]).flatten(2).mT.unflatten(0, (B, H))


def convolved_parts(x: Tensor, place: Place | None, grid: Grid, weight: Tensor) -> Tensor:
    """What some tokens add to the convolution of their windows: (B,H,n,D) -> (B,H,R,D)."""
    ratio = weight.shape[-1]
    window, spot, inside = windows(indices(x.shape[-2], place, x.device), grid, ratio)
    total = x.new_zeros(*x.shape[:2], number_of_windows(grid, ratio), x.shape[-1])
    for number in range(ratio * ratio):
        here = (inside & (spot == number)).nonzero()[:, 0]
        total = total.index_add(2, window[here], x[:, :, here] @ weight[:, :, number // ratio, number % ratio].mT)
    return total


def sample(
    x: Tensor, mask: Tensor | None, grid: Grid, learned: dict[str, Tensor], sampling: str, ratio: int
) -> tuple[Tensor, Tensor]:
    """Bottleneck tokens (B,H,R,D) of a whole sequence, and which of them are there (B or 1, 1, R, 1)."""
    parts = membership(x, mask, None, grid, sampling, ratio)
    number = parts.sum(-2, keepdim=True).mT
    if sampling == "conv":
        return activated(convolved(x, grid, learned["conv"]), learned), number > 0
    return parts.mT @ x / number.clamp_min(1), number > 0


# The product


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
        both, own_kernel(few - middle_of(few, there)), torch.eye(few.shape[-2], dtype=few.dtype, device=few.device)
    )
    return symmetric(inverses.published_norm(a), a) if normalised else inverses.published(a)


def attention(q: Tensor, v: Tensor, *, learned: dict[str, Tensor], grid: Grid, mask: Tensor | None, query_mask: Tensor | None, sampling: str, ratio: int, inverse: str, ridge: float, parity: bool, normalised: bool) -> Tensor:  # fmt: skip
    """The formula at the top, over a whole sequence; the R x R island in float64 where the device has it."""
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


# The same as sums over tokens


def sum_parts(tokens: Tokens, _: None, *, learned: dict[str, Tensor], grid: Grid, sampling: str, ratio: int, **__: Any) -> Summary:  # fmt: skip
    """First sweep: what the tokens add to the bottleneck tokens, and how many do."""
    x = scaled(tokens.q, tokens.mask)
    parts = membership(x, tokens.mask, tokens.keys, grid, sampling, ratio)
    total = convolved_parts(x, tokens.keys, grid, learned["conv"]) if sampling == "conv" else product(parts, x)
    return {"few": total, "number": parts.sum(-2, keepdim=True).mT}


def place_bottleneck(summary: Summary, *, learned: dict[str, Tensor], sampling: str, **_: Any) -> Summary:
    """The bottleneck tokens."""
    number = summary["number"]
    few = activated(summary["few"], learned) if sampling == "conv" else summary["few"] / number.clamp_min(1)
    return {"few": few, "number": number}


def look(tokens: Tokens, placed: Summary, **_: Any) -> Summary:
    """Second sweep: P v; kernels are at most 1, so plain sums do. The bottleneck tokens travel with it."""
    there = placed["number"] > 0
    x = scaled(tokens.q, tokens.mask)
    weights = kernel(x, placed["few"], middle_of(placed["few"], there)).masked_fill(~there.mT, 0)
    return placed | {"seen": product(keep(weights, tokens.mask), keep(tokens.v, tokens.mask))}


def merge_looks(a: Summary, b: Summary) -> Summary:
    """P v is added; the bottleneck tokens are the same in both."""
    return a | {"seen": a["seen"] + b["seen"]}


def finish(summary: Summary, *, inverse: str, ridge: float, normalised: bool, **_: Any) -> Summary:
    """The bottleneck tokens and what each is worth (B,H,R,E)."""
    there = summary["number"] > 0
    wide = island(precise(summary["few"]), there, ridge=ridge, inverse=inverse, normalised=normalised)
    worth = (wide @ precise(summary["seen"])).to(summary["seen"].dtype)
    return {"few": summary["few"], "there": there, "worth": worth}


def read(tokens: Tokens, reader: Summary, **_: Any) -> Tensor:
    """The output of these queries."""
    few, there = reader["few"], reader["there"]
    weights = kernel(scaled(tokens.q, tokens.query_mask), few, middle_of(few, there)).masked_fill(~there.mT, 0)
    return keep(weights @ reader["worth"], tokens.query_mask)


def streaming(*, normalised: bool) -> Streaming:
    """Two sweeps: the bottleneck tokens, then P v."""
    return Streaming(
        sweeps=(Sweep(sum_parts, place_bottleneck), Sweep(look, partial(finish, normalised=normalised), merge_looks)),
        read=read,
        holds="first the sums that make the bottleneck tokens (R x D) and their numbers; then P v (R x E)",
        merges="plain addition in both sweeps: a kernel is at most 1",
        refuses=lambda *, parity, **_: (
            "the published inverse is kept for whole images, to compare with: leave out parity=True" if parity else None
        ),
    )


# Claims


def bottleneck(d: Dims) -> int:
    """How many bottleneck tokens a call has."""
    assert d.grid is not None
    return number_of_windows(d.grid, d.options["ratio"])


def limits(d: Dims, **_: Any) -> str | None:
    """No window, or too many."""
    assert d.grid is not None
    _, height, width = d.grid
    ratio, number = d.options["ratio"], bottleneck(d)
    if not number:
        return f"grid {height} x {width} has no window of {ratio} x {ratio}: choose a smaller ratio"
    if number > MOST:
        better = math.ceil(math.sqrt(height * width / MOST))
        return (
            f"grid {height} x {width} in windows of {ratio} x {ratio} has {number} bottleneck tokens, and their inverse is kept to {MOST}: "
            f"choose ratio={better} or more"
        )
    return None


def half_refusal(d: Dims, *, sampling: str, **_: Any) -> str | None:
    """Why float16 cannot hold this output: squared distances to the convolution's bottleneck tokens grow with the channels, kernels sink with them."""
    if sampling != "conv" or d.D <= HALF_CHANNELS:
        return None
    return (
        f"float16 cannot hold the output of heads of {d.D} channels (the limit is {HALF_CHANNELS}): kernels between tokens and the convolution's bottleneck tokens "
        'fall below its smallest number; pass out_dtype=torch.float32 or use bfloat16, or take bottleneck tokens from the tokens themselves with sampling="pool"'
    )


def flops(d: Dims, *, normalised: bool) -> int:
    """Sampling, both kernels, P v, the inverse applied and reading; 2 FLOPs per multiply-add. Cholesky has no matrix product.

    With parity P^T A^-1 comes first, and the published inverse has its twenty steps.
    """
    few, ratio = bottleneck(d), d.options["ratio"]
    sampling = few * ratio * ratio * d.D * d.D if d.options["sampling"] == "conv" else d.N * few * d.D
    if d.options["parity"]:
        published = inverses.PUBLISHED_PRODUCTS[normalised] * few**3
        return 2 * d.B * d.H * (sampling + few * few * d.D + published + d.N * few * (d.D + few + 2 * d.E))
    steps = inverses.most_steps(few, d.options["ridge"]) + inverses.FURTHER
    newton = 0 if d.options["inverse"] == "cholesky" else 2 * steps + 1
    island_products = few * few * d.D + newton * few**3 + few * few * d.E
    return 2 * d.B * d.H * (sampling + island_products + d.N * few * (d.D + 2 * d.E))


def exps(d: Dims) -> int:
    """Both kernels, and the GELU of the convolution's output."""
    few = bottleneck(d)
    return d.B * d.H * few * (d.N + few + (d.D if d.options["sampling"] == "conv" else 0))


def _kaiming(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """As torch.nn.Conv2d starts: uniform within 1 / sqrt(fan in)."""
    bound = math.prod(shape[1:]) ** -0.5
    return (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1) * bound


def _gain(shape: tuple[int, ...], _: torch.Generator | None) -> Tensor:
    """The LayerNorm's weight at the start: one up to the published width of a head, less beyond.

    With one, what LayerNorm and GELU leave of D channels has a square of 0.43 D: at 64 channels every kernel to it is exp(-14), the branch 1e-8
    of its input, and its gradient none. A weight of sqrt(16 / D) keeps the square at that of 16 channels.
    """
    width = shape[0]
    return torch.full(
        shape, 1.0 if width <= PUBLISHED_CHANNELS else math.sqrt(NEAR_CHANNELS / width), dtype=torch.float64
    )


def _convolves(options: Options) -> bool:
    return bool(options["sampling"] == "conv")


LEARNED = {
    "conv": Learned(
        lambda sizes: (sizes.head_dim, sizes.head_dim, sizes.options["ratio"], sizes.options["ratio"]),
        _kaiming,
        when=_convolves,
    ),
    "norm_weight": Learned(lambda sizes: (sizes.head_dim,), _gain, weight_decay=False, when=_convolves),
    "norm_bias": Learned(lambda sizes: (sizes.head_dim,), 0.0, weight_decay=False, when=_convolves),
}

OPTIONS = {
    "ratio": Option(
        2,
        "side of the windows on the grid, one bottleneck token each (published: 8, 4, 2 in the stages of the pyramid)",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value > 0,
        "a positive whole number",
    ),
    "sampling": Option(
        "conv",
        "how bottleneck tokens are made of x: strided convolution, LayerNorm and GELU (as published), mean of the window, the first cell of each "
        "window, the first cells of the grid, or cells in a fixed scrambled order",
        lambda value: value in SAMPLINGS,
        "'conv', 'pool', 'random', 'first' or 'strided'",
    ),
    "inverse": Option(
        "cholesky",
        "how A + ridge I is inverted: by Cholesky, or by Newton's iteration until its residual is small (Cholesky where it does not get there)",
        lambda value: value in {"cholesky", "newton"},
        "'cholesky' or 'newton'",
    ),
    "ridge": Option(
        0.01, "added to A's diagonal", lambda value: isinstance(value, float) and value > 0, "a positive number"
    ),
    "parity": Option(
        default=False,
        says="the published inverse: 20 steps, however far they came",
        accepts=lambda value: isinstance(value, bool),
        values="True or False",
    ),
}  # fmt: skip
