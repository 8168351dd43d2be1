"""The row of the table that a record has earned."""

from dataclasses import dataclass

import torch

from softless.attention.record import Operator
from softless.attention.samples import dims_of, draw
from softless.testing.comparing import SHAPES, able, error, exact, run

EXAMPLE = (1, 3, 196, 196, 64, 64)  # attention of a DeiT-Ti block at 224 px


@dataclass(frozen=True)
class Row:
    """What was measured of an operator.

    Prints as a row of the table in docs/operators.md, with its head.
    """

    name: str
    summary: str
    growth: str
    multiply_adds: int  # of one call with 3 heads, 196 tokens and 64 features
    exps: int  # of the same call
    normalises: str
    equivariant: bool
    sweeps: int | None
    resolution: str
    worst_float32: float  # largest relative error of the first backend
    meters: int  # that were passed
    seconds: float  # of processor time that they took

    def __str__(self) -> str:
        head = (
            "operator",
            "what it does",
            "cost",
            "MAC",
            "exps",
            "normalises",
            "permutes",
            "sweeps",
            "resolution",
            "float32 error",
            "meters",
        )
        cells = (
            f"`{self.name}`",
            self.summary,
            self.growth,
            f"{self.multiply_adds:,}",
            f"{self.exps:,}",
            self.normalises,
            "yes" if self.equivariant else "no",
            "none" if self.sweeps is None else str(self.sweeps),
            self.resolution,
            f"{self.worst_float32:.1e}",
            str(self.meters),
        )
        return "\n".join(
            "| " + " | ".join(line) + " |" for line in (head, ("---",) * len(head), cells)
        )


def row_of(op: Operator, meters: int, seconds: float) -> Row:
    """The row, with the error and the costs measured once more."""
    call, extras = draw(op, SHAPES["63"], torch.float32)
    best = able(op, call, extras)[0]
    worst = error(run(op, call, backend=best.name, **extras), exact(op, call, extras))
    inputs, drawn = draw(op, EXAMPLE, torch.float32)
    dims = dims_of(op, inputs, drawn)
    return Row(
        op.name,
        op.summary,
        op.growth,
        op.flops(dims) // 2,
        op.exps(dims),
        op.normalises,
        op.equivariant,
        op.sweeps,
        op.resolution,
        worst,
        meters,
        seconds,
    )
