"""Inputs for the operators, and the one way errors are measured here."""

# B batch, H heads, N queries, M keys, D features of q and k, E features of v

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import softless
from softless.attention import OPERATORS, Backend, Operator, get, samples

Call = samples.Inputs
draw, grid_of = samples.draw, samples.grid_of  # one way to draw a call: the package's
# options of which a small test takes less than the default
SMALL = {
    name: option.small for op in OPERATORS.values() for name, option in op.options.items() if option.small is not None
}

attend_chunks: Any = softless.attention.attend_chunks

every = pytest.mark.parametrize("op", OPERATORS.values(), ids=list(OPERATORS))
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# (B, H, N, M, D, E); the awkward ones included: one token, odd lengths, fewer tokens than features
SHAPES = {
    "one token": (1, 2, 1, 1, 4, 4),
    "square": (2, 3, 33, 33, 8, 8),
    "short": (2, 2, 5, 5, 16, 16),
    "63": (1, 2, 63, 63, 8, 8),
    "100": (2, 1, 100, 100, 4, 4),
}
CROSS = {"fewer queries": (2, 2, 7, 40, 8, 8), "more queries": (1, 2, 50, 9, 4, 4), "other width": (1, 2, 20, 20, 8, 5)}


def _attend(q: Tensor, k: Tensor, v: Tensor, op: Any = "sima", **arguments: Any) -> Tensor:
    """`softless.attend`, which wants no k from a caller where q and k are tied."""
    tied = get(op).wants("tied_qk", {name: value for name, value in arguments.items() if name in get(op).options})
    return softless.attend(q, None if tied else k, v, op=op, **arguments)


attend: Any = _attend  # untyped, so that q, k and v can be passed as one


def sides(op: Operator, leaves: Any) -> list[Tensor]:
    """q, k and v, or q and v where k is tied to q: what a gradient reaches."""
    q, k, v = leaves
    return [q, v] if op.wants("tied_qk", {}) else [q, k, v]


def able(op: Operator, call: Any, extras: dict[str, Any], **masks: Tensor) -> list[Backend]:
    """The backends that run a call; that the native ones do is tests/ops/test_native.py's to see."""
    filled = op.filled({name: value for name, value in extras.items() if name in op.options})
    return [backend for backend in op.backends if not backend.refuses(*call, **{**extras, **filled}, **masks)]


def exact(op: Operator, call: Any, extras: dict[str, Any], **masks: Tensor) -> Tensor:
    """The reference in float64 on the same rounded inputs."""
    learned = {"learned": {name: x.double() for name, x in extras["learned"].items()}} if "learned" in extras else {}
    q, k, v = (x.double() for x in call)
    return reference(op, q, k, v, **{**extras, **learned}, **masks)


def sensitivity(op: Operator, call: Any, extras: dict[str, Any], **masks: Tensor) -> float:
    """How far the exact answer moves when q, k and v are rounded to float32: no float32 form can be closer than that, but for luck."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (x.double() * (1 + 6e-8 * torch.randn(x.shape, generator=generator, dtype=torch.float64)) for x in call)
    if call[0] is call[1]:
        k = q
    return error(exact(op, (q, k, v), extras, **masks), exact(op, call, extras, **masks))


def reference(op: Operator, q: Tensor, k: Tensor, v: Tensor, **extras: Any) -> Tensor:
    """The operator's reference, given q twice where q and k are tied."""
    return op.reference(q, q if op.wants("tied_qk", {}) else k, v, **extras)


def error(actual: Tensor, expected: Tensor) -> float:
    """The worse of two relative errors: Frobenius, and largest difference over largest value. NaN counts as infinite.

    Relative alone: no absolute slack that an all-zero answer could pass.
    """
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    difference = actual.double() - expected.double()
    if expected.numel() == 0 or not bool(expected.any()):
        return 0.0 if not bool(difference.any()) else math.inf
    frobenius = (difference.norm() / expected.double().norm()).item()
    largest = (difference.abs().max() / expected.double().abs().max()).item()
    return math.inf if math.isnan(frobenius + largest) else max(frobenius, largest)


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
    return torch.zeros(size).scatter_(-1, torch.randint(size[-1], (*size[:-1], 1), generator=generator), 1.0)


# The families of reliability.md D1; a constant family draws magnitudes, so that its signs do not cancel.
FAMILIES: dict[str, Family] = {
    "gauss": _normal,
    "biased": lambda g, size: _normal(g, size) + 2 * _normal(g, (*size[:-2], 1, size[-1])),
    "wide": lambda g, size: _normal(g, size) * (2 * _normal(g, (*size[:-2], 1, size[-1]))).exp(),
    "outlier": _outlier,
    "constant": lambda g, size: (_normal(g, (*size[:-2], 1, size[-1])).abs() + 0.1).expand(size).contiguous(),
    "one-hot": _one_hot,
}


def family(
    name: str, tokens: int, *, heads: int = 1, width: int = 64, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Call:
    """q, k and v of one family at a number of tokens, rounded to dtype.

    Where one or two tokens decide the answer, draws that nearly cancel are passed over: no relative bar exists for an answer that is
    next to nothing beside its terms.
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
    """Whether each head's answer is at least a tenth of what its terms would sum to without signs."""
    sima = OPERATORS["sima"].reference
    answer, terms = sima(q.double(), k.double(), v.double()), sima(q.double().abs(), k.double().abs(), v.double().abs())
    return bool((answer.norm(dim=(-2, -1)) >= 0.1 * terms.norm(dim=(-2, -1))).all())
