"""Inputs for the operators, and the one way errors are measured here."""

# B batch, H heads, N queries, M keys, D features of q and k, E features of v

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import softless
from softless.attention import OPERATORS, Operator, get, samples
from softless.testing import comparing

Call = samples.Inputs
# one way to draw a call and to compare answers: the package's
draw, grid_of = samples.draw, samples.grid_of
SHAPES, CROSS, DTYPES = comparing.SHAPES, comparing.CROSS, comparing.DTYPES
sides, able, exact, reference, error = (
    comparing.sides,
    comparing.able,
    comparing.exact,
    comparing.reference,
    comparing.error,
)
# options of which a small test takes less than the default
SMALL = {
    name: option.small
    for op in OPERATORS.values()
    for name, option in op.options.items()
    if option.small is not None
}

attend_chunks: Any = softless.attention.attend_chunks


def _attend(q: Tensor, k: Tensor, v: Tensor, op: Any = "sima", **arguments: Any) -> Tensor:
    """`softless.attend`, which wants no k from a caller where q and k are tied."""
    return comparing.run(get(op), (q, k, v), **arguments)


attend: Any = _attend  # untyped, so that q, k and v can be passed as one

every = pytest.mark.parametrize("op", OPERATORS.values(), ids=list(OPERATORS))


def sensitivity(op: Operator, call: Any, extras: dict[str, Any], **masks: Tensor) -> float:
    """How far the exact answer moves when q, k and v are rounded to float32: no float32 form can be
    closer than that, but for luck.
    """
    generator = torch.Generator().manual_seed(1)
    q, k, v = (
        x.double() * (1 + 6e-8 * torch.randn(x.shape, generator=generator, dtype=torch.float64))
        for x in call
    )
    if call[0] is call[1]:
        k = q
    return error(exact(op, (q, k, v), extras, **masks), exact(op, call, extras, **masks))


def assert_near(actual: Tensor, expected: Tensor, bound: float, what: str = "") -> None:
    measured = error(actual, expected)
    assert measured <= bound, f"{what} relative error {measured:.2e}, bound {bound:.0e}"


Family = Callable[[torch.Generator, tuple[int, ...]], Tensor]


def _normal(generator: torch.Generator, size: tuple[int, ...]) -> Tensor:
    return torch.randn(size, generator=generator)


def _outlier(generator: torch.Generator, size: tuple[int, ...]) -> Tensor:
    x = _normal(generator, size)
    x[..., size[-2] // 2, :] *= 1e4
    return x


def _one_hot(generator: torch.Generator, size: tuple[int, ...]) -> Tensor:
    return torch.zeros(size).scatter_(
        -1, torch.randint(size[-1], (*size[:-1], 1), generator=generator), 1.0
    )


# The families of reliability.md D1; a constant family draws magnitudes, so that its signs do not
# cancel.
FAMILIES: dict[str, Family] = {
    "gauss": _normal,
    "biased": lambda g, size: _normal(g, size) + 2 * _normal(g, (*size[:-2], 1, size[-1])),
    "wide": lambda g, size: _normal(g, size) * (2 * _normal(g, (*size[:-2], 1, size[-1]))).exp(),
    "outlier": _outlier,
    "constant": lambda g, size: (
        (_normal(g, (*size[:-2], 1, size[-1])).abs() + 0.1).expand(size).contiguous()
    ),
    "one-hot": _one_hot,
}


def family(
    name: str,
    tokens: int,
    *,
    heads: int = 1,
    width: int = 64,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Call:
    """q, k and v of one family at a number of tokens, rounded to dtype.

    Where one or two tokens decide the answer, draws that nearly cancel are passed over: no relative
    bar exists for an answer that is next to nothing beside its terms.
    """
    for attempt in range(50):
        generator = torch.Generator().manual_seed(1000 * attempt + seed)
        q, k, v = (FAMILIES[name](generator, (1, heads, tokens, width)).to(dtype) for _ in range(3))
        if name == "one-hot":  # a query and a key that share a channel, else the answer is 0
            k[..., 0, :] = q[..., 0, :]
        if (tokens > 2 and name != "outlier") or _conditioned(q, k, v):
            return q, k, v
    raise AssertionError(f"no well-conditioned draw of {name} at {tokens} tokens")


def _conditioned(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether each head's answer is at least a tenth of what its terms would sum to without
    signs.
    """
    sima = OPERATORS["sima"].reference
    answer, terms = (
        sima(q.double(), k.double(), v.double()),
        sima(q.double().abs(), k.double().abs(), v.double().abs()),
    )
    return bool((answer.norm(dim=(-2, -1)) >= 0.1 * terms.norm(dim=(-2, -1))).all())
