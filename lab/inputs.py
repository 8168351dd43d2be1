"""One call of an operator on data of a family: q, k, v, the grid, the options a grid asks for, and
the operator's own tensors.
"""
# N tokens, D channels of a head

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lab.families import draw
from softless.attention import Operator, attend
from softless.attention.learned import starting
from softless.attention.options import Sizes
from softless.attention.record import Grid

FEW = 64  # windows of the grid at most, as landmarks and bottleneck tokens are in the papers
ROUNDING = 6e-8  # half of float32's last bit


@dataclass(frozen=True)
class Call:
    """The arguments of one call; q and k are one tensor where the operator ties them."""

    record: Operator
    q: Tensor
    k: Tensor
    v: Tensor
    extras: Mapping[str, Any]  # options, grid, learned

    def run(
        self, *, backend: str = "auto", out: torch.dtype | None = None, **options: Any
    ) -> Tensor:
        """The operator's output through `attend`, (B, H, N, E); in `out` where that is a dtype."""
        k = None if self.tied else self.k
        return attend(
            self.q,
            k,
            self.v,
            op=self.record,
            backend=backend,
            out_dtype=out,
            **self.extras,
            **options,
        )

    @property
    def tied(self) -> bool:
        return self.q is self.k

    @property
    def leaves(self) -> dict[str, Tensor]:
        """The inputs that a gradient reaches, by name: q (B, H, N, D), k (B, H, M, D) unless q
        stands for both, v (B, H, M, E).
        """
        return {"q": self.q, "v": self.v} if self.tied else {"q": self.q, "k": self.k, "v": self.v}

    def with_leaves(self, **leaves: Tensor) -> "Call":
        """The same call of other q, k, v, of any shapes that the operator takes; without a k, q
        is k too.
        """
        q = leaves["q"]
        return replace(self, q=q, k=leaves.get("k", q), v=leaves["v"])

    def double(self) -> "Call":
        """The same rounded numbers in float64."""
        learned = {name: value.double() for name, value in self.extras.get("learned", {}).items()}
        extras = {**self.extras, "learned": learned} if learned else self.extras
        return replace(
            self.with_leaves(**{name: x.double() for name, x in self.leaves.items()}), extras=extras
        )

    def nudged(self) -> "Call":
        """The same call with every input moved at random by float32's rounding."""
        generator = torch.Generator().manual_seed(1)
        return self.with_leaves(**{
            name: x * (1 + ROUNDING * torch.randn(x.shape, generator=generator, dtype=x.dtype))
            for name, x in self.leaves.items()
        })

    def setting(self) -> str:
        """Grid and window in words."""
        words = []
        if grid := self.extras.get("grid"):
            words.append(f"grid={grid[0]}+{grid[1]}x{grid[2]}")
        return " ".join(
            words + [f"{name}={self.extras[name]}" for name in ("ratio",) if name in self.extras]
        )


def call(
    record: Operator,
    family: str,
    tokens: int,
    width: int,
    seed: int,
    dtype: torch.dtype,
    *,
    queries: int | None = None,
) -> Call:
    """One head of an operator on data of a family, rounded to dtype; `queries` keeps the first few
    of them.
    """
    q, k, v = draw(family, tokens, width, seed, dtype)
    extras: dict[str, Any] = {}
    if record.wants("grid", {}):
        grid = squarest(tokens)
        extras = {"grid": grid}
        if "ratio" in record.options:
            extras["ratio"] = min(*grid[1:], math.ceil(math.sqrt(grid[1] * grid[2] / FEW)))
    options = {name: value for name, value in extras.items() if name in record.options}
    sizes = Sizes(1, width, record.filled(options), tokens, width)
    if learned := starting(record, sizes, torch.Generator().manual_seed(0)):
        extras["learned"] = {name: value.to(dtype) for name, value in learned.items()}
    if record.wants("tied_qk", {}):
        k = q
    return Call(record, q if queries is None else q[:, :, :queries], k, v, extras)


def squarest(tokens: int) -> Grid:
    """The squarest grid of so many tokens, with or without a class token."""
    candidates = []
    for prefix in (0, 1):
        cells = tokens - prefix
        if cells:
            height = next(side for side in range(math.isqrt(cells), 0, -1) if cells % side == 0)
            candidates.append((height / cells * height, prefix, height))
    _, prefix, height = max(candidates, key=lambda candidate: (candidate[0], -candidate[1]))
    return prefix, height, (tokens - prefix) // height
