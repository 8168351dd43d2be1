"""The data on which an operator's numbers are judged (reliability.md §3.2): friendly ones, and
those that break the published form.
"""
# N tokens, D channels of a head

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Generator, Tensor

Draw = Callable[[int, int, Generator], Tensor]  # (N, D, generator) -> (N, D) float64


def gauss(N: int, D: int, generator: Generator) -> Tensor:
    """Independent standard normal values (N, D), float64."""
    return torch.randn(N, D, dtype=torch.float64, generator=generator)


def biased(N: int, D: int, generator: Generator) -> Tensor:
    """(N, D) with a mean per channel: the l1 norm grows past what float16 holds."""
    return gauss(N, D, generator) + gauss(1, D, generator)


def wide(N: int, D: int, generator: Generator) -> Tensor:
    """(N, D) with log-normal scales of the channels."""
    return gauss(N, D, generator) * gauss(1, D, generator).exp()


def outlier(N: int, D: int, generator: Generator) -> Tensor:
    """(N, D) with one token in the middle ten thousand times as large (in q and k: with it in v,
    the answer would not fit float16).
    """
    x = gauss(N, D, generator)
    x[N // 2] *= 1e4
    return x


def constant(N: int, D: int, generator: Generator) -> Tensor:
    """The same token N times, (N, D)."""
    return gauss(1, D, generator).repeat(N, 1)


def one_hot(N: int, D: int, generator: Generator) -> Tensor:
    """(N, D), one channel of each token 1, drawn at random: most products are exactly zero, and
    with few tokens whole channels are.
    """
    return torch.nn.functional.one_hot(torch.randint(D, (N,), generator=generator), D).double()


FAMILIES: Mapping[str, Draw] = MappingProxyType({
    "gauss": gauss,
    "biased": biased,
    "wide": wide,
    "outlier": outlier,
    "constant": constant,
    "one-hot": one_hot,
})


# where one token decides q^ and k^, as it does with one or two tokens
REPEATED = frozenset({"outlier", "constant"})


def draw(
    family: str, N: int, D: int, seed: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v (1, 1, N, D) in dtype: rounded once, so that the float64 reference sees the same
    numbers.

    Where one token decides, SimA's answer is a multiple of the number of channels in which q and k
    agree in sign less those in which they differ. With that number at 0 the exact answer is 0 and
    no relative error means anything, so signs are drawn until it is at least a quarter of the
    channels.
    """
    generator = torch.Generator().manual_seed(seed)
    q, k = FAMILIES[family](N, D, generator), FAMILIES[family](N, D, generator)
    while family != "one-hot" and (family in REPEATED or N <= 2) and _agreement(q, k) < D / 4:
        k = FAMILIES[family](N, D, generator)
    v = FAMILIES["gauss" if family == "outlier" else family](N, D, generator)
    return tuple(x[None, None].to(dtype) for x in (q, k, v))  # type: ignore[return-value]


def _agreement(q: Tensor, k: Tensor) -> float:
    return float((q * k)[len(q) // 2].sign().sum().abs())
