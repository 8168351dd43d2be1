"""How answers are compared: relative to the exact answer's own size, with no slack that zeros could
pass.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from softless.attention.attend import attend
from softless.attention.record import Backend, Operator
from softless.attention.samples import given_options

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# (B, H, N, M, D, E); the awkward ones included: one token, odd lengths, fewer tokens than features
SHAPES = {
    "one token": (1, 2, 1, 1, 4, 4),
    "square": (2, 3, 33, 33, 8, 8),
    "short": (2, 2, 5, 5, 16, 16),
    "63": (1, 2, 63, 63, 8, 8),
    "100": (2, 1, 100, 100, 4, 4),
}
CROSS = {
    "fewer queries": (2, 2, 7, 40, 8, 8),
    "more queries": (1, 2, 50, 9, 4, 4),
    "other width": (1, 2, 20, 20, 8, 5),
}


def shapes_of(op: Operator) -> dict[str, tuple[int, ...]]:
    """The shapes that an operator is tried on."""
    return {**SHAPES, **(CROSS if op.cross else {})}


def run(op: Operator, inputs: Iterable[Tensor], **arguments: Any) -> Tensor:
    """`attend` of q (B,H,N,D), k (B,H,M,D), v (B,H,M,E); it wants no k where q and k are tied."""
    q, k, v = inputs
    tied = op.wants("tied_qk", given_options(op, arguments))
    return attend(q, None if tied else k, v, op=op, **arguments)


def sides(op: Operator, leaves: Iterable[Tensor]) -> list[Tensor]:
    """What a gradient reaches: q (B,H,N,D), k (B,H,M,D), v (B,H,M,E); no k where it is tied."""
    q, k, v = leaves
    return [q, v] if op.wants("tied_qk", {}) else [q, k, v]


def reference(op: Operator, q: Tensor, k: Tensor, v: Tensor, **extras: Any) -> Tensor:
    """The operator's reference, given q twice where q and k are tied: q (B,H,N,D), k (B,H,M,D),
    v (B,H,M,E) -> (B,H,N,E).
    """
    return op.reference(q, q if op.wants("tied_qk", {}) else k, v, **extras)


def exact(
    op: Operator, inputs: Iterable[Tensor], extras: dict[str, Any], **masks: Tensor
) -> Tensor:
    """The reference in float64 on the same rounded inputs: (B,H,N,D), (B,H,M,D), (B,H,M,E) ->
    (B,H,N,E).
    """
    learned = (
        {"learned": {name: x.double() for name, x in extras["learned"].items()}}
        if "learned" in extras
        else {}
    )
    q, k, v = (x.double() for x in inputs)
    return reference(op, q, k, v, **{**extras, **learned}, **masks)


def able(
    op: Operator, inputs: Iterable[Tensor], extras: dict[str, Any], **masks: Tensor
) -> list[Backend]:
    """The backends that run a call of q (B,H,N,D), k (B,H,M,D), v (B,H,M,E)."""
    filled = op.filled(given_options(op, extras))
    return [
        backend
        for backend in op.backends
        if not backend.refuses(*inputs, **{**extras, **filled}, **masks)
    ]


def error(actual: Tensor, expected: Tensor) -> float:
    """The worse of two relative errors of tensors of one shape: Frobenius, and largest difference
    over largest value. NaN counts as infinite.

    Relative alone: no absolute slack that an all-zero answer could pass.
    """
    assert actual.shape == expected.shape, (
        f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    )
    difference = actual.double() - expected.double()
    if expected.numel() == 0 or not bool(expected.any()):
        return 0.0 if not bool(difference.any()) else math.inf
    frobenius = (difference.norm() / expected.double().norm()).item()
    largest = (difference.abs().max() / expected.double().abs().max()).item()
    return math.inf if math.isnan(frobenius + largest) else max(frobenius, largest)
