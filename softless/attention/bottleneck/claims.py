"""What the records of SOFT and of its normalised form claim: limits, FLOPs, options, tensors at
their start.
"""

# B batch, H heads, N tokens, D features of q, E features of v, R bottleneck tokens, r side of a
# window

import math
from typing import Any

import torch
from torch import Tensor

from softless.attention import inverse as inverses
from softless.attention.options import Learned, Option, Options
from softless.attention.places import number_of_windows
from softless.attention.record import TOLERANCE, Dims

MOST = inverses.MOST  # bottleneck tokens: the inverse costs R^3, and its error grows with R
# of the whole operator; float16's is for outputs that kernels of distant tokens leave below its
# normal numbers
CLAIMED = {**TOLERANCE, torch.float32: 1e-5, torch.float16: 1e-2}
# of a head, up to which float16 holds what the convolution's bottleneck tokens make
HALF_CHANNELS = 16
PUBLISHED_CHANNELS = 32  # of a head in the published pyramids
NEAR_CHANNELS = 16  # of a head whose bottleneck tokens start near enough to the tokens
SAMPLINGS = ("conv", "pool", "random", "first", "strided")


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
            f"grid {height} x {width} in windows of {ratio} x {ratio} has {number} bottleneck "
            f"tokens, and their inverse is kept to {MOST}: "
            f"choose ratio={better} or more"
        )
    return None


def half_refusal(d: Dims, *, sampling: str, **_: Any) -> str | None:
    """Why float16 cannot hold this output: squared distances to the convolution's bottleneck tokens
    grow with the channels, kernels sink with them.
    """
    if sampling != "conv" or d.D <= HALF_CHANNELS:
        return None
    return (
        f"float16 cannot hold the output of heads of {d.D} channels (the limit is "
        f"{HALF_CHANNELS}): kernels between tokens and the convolution's bottleneck "
        "tokens "
        "fall below its smallest number; pass out_dtype=torch.float32 or use bfloat16, or take "
        'bottleneck tokens from the tokens themselves with sampling="pool"'
    )


def flops(d: Dims, *, normalised: bool) -> int:
    """Sampling, both kernels, P v, the inverse applied and reading; 2 FLOPs per multiply-add.
    Cholesky has no matrix product.

    With parity P^T A^-1 comes first, and the published inverse has its twenty steps.
    """
    bottlenecks, ratio = bottleneck(d), d.options["ratio"]
    sampling = (
        bottlenecks * ratio * ratio * d.D * d.D
        if d.options["sampling"] == "conv"
        else d.N * bottlenecks * d.D
    )
    if d.options["parity"]:
        published = inverses.PUBLISHED_PRODUCTS[normalised] * bottlenecks**3
        return (
            2
            * d.B
            * d.H
            * (
                sampling
                + bottlenecks * bottlenecks * d.D
                + published
                + d.N * bottlenecks * (d.D + bottlenecks + 2 * d.E)
            )
        )
    steps = inverses.most_steps(bottlenecks, d.options["ridge"]) + inverses.FURTHER
    newton = 0 if d.options["inverse"] == "cholesky" else 2 * steps + 1
    island_products = (
        bottlenecks * bottlenecks * d.D + newton * bottlenecks**3 + bottlenecks * bottlenecks * d.E
    )
    return 2 * d.B * d.H * (sampling + island_products + d.N * bottlenecks * (d.D + 2 * d.E))


def exps(d: Dims) -> int:
    """Both kernels, and the GELU of the convolution's output."""
    bottlenecks = bottleneck(d)
    return (
        d.B
        * d.H
        * bottlenecks
        * (d.N + bottlenecks + (d.D if d.options["sampling"] == "conv" else 0))
    )


def _kaiming(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """As torch.nn.Conv2d starts: uniform within 1 / sqrt(fan in)."""
    bound = math.prod(shape[1:]) ** -0.5
    return (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1) * bound


def _gain(shape: tuple[int, ...], _: torch.Generator | None) -> Tensor:
    """The LayerNorm's weight at the start: one up to the published width of a head, less beyond.

    With one, what LayerNorm and GELU leave of D channels has a square of 0.43 D: at 64 channels
    every kernel to it is exp(-14), the branch 1e-8 of its input, and its gradient none. A weight of
    sqrt(16 / D) keeps the square at that of 16 channels.
    """
    width = shape[0]
    return torch.full(
        shape,
        1.0 if width <= PUBLISHED_CHANNELS else math.sqrt(NEAR_CHANNELS / width),
        dtype=torch.float64,
    )


def _convolves(options: Options) -> bool:
    return bool(options["sampling"] == "conv")


LEARNED = {
    "conv": Learned(
        lambda sizes: (
            sizes.head_dim,
            sizes.head_dim,
            sizes.options["ratio"],
            sizes.options["ratio"],
        ),
        _kaiming,
        when=_convolves,
    ),
    "norm_weight": Learned(
        lambda sizes: (sizes.head_dim,), _gain, weight_decay=False, when=_convolves
    ),
    "norm_bias": Learned(lambda sizes: (sizes.head_dim,), 0.0, weight_decay=False, when=_convolves),
}

OPTIONS = {
    "ratio": Option(
        2,
        "side of the windows on the grid, one bottleneck token each (published: 8, 4, 2 in the "
        "stages of the pyramid)",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value > 0,
        "a positive whole number",
    ),
    "sampling": Option(
        "conv",
        "how bottleneck tokens are made of x: strided convolution, LayerNorm and GELU (as "
        "published), mean of the window, the first cell of each "
        "window, the first cells of the grid, or cells in a fixed scrambled order",
        lambda value: value in SAMPLINGS,
        "'conv', 'pool', 'random', 'first' or 'strided'",
    ),
    "inverse": Option(
        "cholesky",
        "how A + ridge I is inverted: by Cholesky, or by Newton's iteration until its residual is "
        "small (Cholesky where it does not get there)",
        lambda value: value in {"cholesky", "newton"},
        "'cholesky' or 'newton'",
    ),
    "ridge": Option(
        0.01,
        "added to A's diagonal",
        lambda value: isinstance(value, float) and value > 0,
        "a positive number",
    ),
    "parity": Option(
        default=False,
        says="the published inverse: 20 steps, however far they came",
        accepts=lambda value: isinstance(value, bool),
        values="True or False",
    ),
}
