"""SOFT's inverse beside the published one and a plain float32 Cholesky: errors of value and
gradient over the kernel matrices of `kernels.py`.
"""
# R bottleneck tokens

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lab.errors_of import deviation
from lab.kernels import KERNELS, matrices
from softless.attention import inverse as inverses
from softless.attention.bottleneck.claims import OPTIONS
from softless.compare.record import record_path, write_csv
from softless.words import table

SIZES = (1, 2, 49, 196, 256)
RIDGE = float(OPTIONS["ridge"].default)
# kernel matrices (B,R,R) float32, without the ridge -> their inverses
Invert = Callable[[Tensor], Tensor]

METHODS: Mapping[str, Invert] = {
    # as the operator calls it
    "cholesky": lambda a: inverses.inverse(a.double(), RIDGE, "cholesky"),
    "newton": lambda a: inverses.inverse(a.double(), RIDGE, "newton"),
    # as on a device without float64
    "cholesky float32": lambda a: inverses.inverse(a, RIDGE, "cholesky"),
    "newton float32": lambda a: inverses.inverse(a, RIDGE, "newton"),
    "published": inverses.published,  # parity=True
}


@dataclass(frozen=True)
class Measured:
    """One method on four matrices of one family and size."""

    kernel: str
    tokens: int
    method: str
    error: float  # Frobenius, relative, the worst of the four
    gradient_error: float


@dataclass(frozen=True)
class Inverses:
    """All measurements."""

    lines: tuple[Measured, ...]
    recorded: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"rows": [asdict(line) for line in self.lines]}

    def rows(self) -> list[dict[str, Any]]:
        """A row per family and size, a column per method: value error / gradient error."""
        by_case: dict[tuple[str, int], dict[str, Any]] = {}
        for line in self.lines:
            row = by_case.setdefault(
                (line.kernel, line.tokens), {"kernel": line.kernel, "tokens": line.tokens}
            )
            row[line.method] = f"{line.error:.1e} / {line.gradient_error:.1e}"
        return list(by_case.values())

    def __str__(self) -> str:
        rows = self.rows()
        lines = table(list(rows[0]), [list(row.values()) for row in rows])
        footer = f"\n\nrecorded: {self.recorded}" if self.recorded else ""
        return f"relative error of the value / of the gradient, against float64\n\n{lines}{footer}"


def compare_inverses(*, record: bool = False) -> Inverses:
    """Every method on every kernel matrix; the gradient is that of a fixed random weighting of the
    inverse.

    Args:
        record: also write benchmarks/inverse.csv of the repository.

    Raises:
        UsageError: `record` outside of the repository.
    """
    target = record_path("inverse") if record else None
    lines = [
        Measured(name, size, method, *_errors(matrices(name, size), invert))
        for name in KERNELS
        for size in SIZES
        for method, invert in METHODS.items()
    ]
    outcome = Inverses(tuple(lines), target)
    if target is not None:
        write_csv(target, outcome.rows())
    return outcome


def exactly(a: Tensor) -> Tensor:
    """The inverse (B, R, R) of A + ridge I by LU in float64, A of (B, R, R)."""
    return torch.linalg.inv(a.double() + RIDGE * torch.eye(a.shape[-1], dtype=torch.float64))


def _errors(a: Tensor, invert: Invert) -> tuple[float, float]:
    weights = torch.randn(a.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def with_gradient(run: Invert, x: Tensor) -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_()
        value = run(leaf)
        (slope,) = torch.autograd.grad((value.double() * weights).sum(), leaf)
        return value.detach(), slope

    (value, slope), (true_value, true_slope) = (
        with_gradient(invert, a),
        with_gradient(exactly, a.double()),
    )
    pairs = ((value, true_value), (slope, true_slope))
    value_error, slope_error = (
        max(deviation(x, y).frobenius for x, y in zip(*computed_and_true, strict=True))
        for computed_and_true in pairs
    )
    return value_error, slope_error
