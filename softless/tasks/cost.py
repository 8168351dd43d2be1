"""What one image costs each model: parameters, multiply-adds, exponentials, and the time that was
measured.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softless.measure.cost import Cost, cost
from softless.report.groups import FEW, Group
from softless.report.html import Html, tag
from softless.report.numbers import count, duration, ratio, short, size
from softless.report.tables import table
from softless.tasks.loaded import load_run


@dataclass(frozen=True)
class Speed:
    """Images per second in evaluation: the median of repeats and the quarters around it."""

    median: float
    low: float
    high: float
    how: str  # batch, device, threads, repeats


@dataclass(frozen=True)
class CostRow:
    """A line of the table; `less_is_better` decides nothing but the words."""

    name: str
    says: str
    values: list[float | None]
    write: Callable[[float], str]


def draw_cost(groups: Sequence[Group], speeds: Mapping[Path, Speed] | None = None) -> Html:
    """The table, with each model's ratio to the last one, which the others are compared with."""
    costs = [
        cost(load_run(group.first.folder, "cpu").model, group.first.pixels) for group in groups
    ]
    rows, caption = [*_counted(costs), *_timed(groups, speeds or {})], _caption(groups, costs)
    if len(groups) > FEW:
        return _listed(groups, rows, caption)
    base = len(groups) - 1
    head = [
        "",
        *(
            tag("span", tag("span", class_=f"swatch {group.colour}"), group.label)
            for group in groups
        ),
    ]
    head += (
        ["ratio"]
        if len(groups) == 2
        else [f"{group.label} / {groups[base].label}" for group in groups[:base]]
    )
    body = []
    for row in rows:
        cells: list[Any] = [tag("span", row.name, tag("small", row.says))]
        cells += ["–" if value is None else row.write(value) for value in row.values]
        for value in row.values[:base]:
            base_value = row.values[base]
            cells.append("–" if value is None or base_value is None else ratio(value, base_value))
        body.append(cells)
    return table(head, body, caption=caption, class_="plain cost")


def _listed(groups: Sequence[Group], rows: Sequence[CostRow], caption: str) -> Html:
    """A line for each model, where they are too many for columns."""
    body = [
        [tag("span", tag("span", class_=f"swatch {group.colour}"), group.label)]
        + ["–" if (value := row.values[number]) is None else row.write(value) for row in rows]
        for number, group in enumerate(groups)
    ]
    head = ["", *(tag("span", row.name, tag("small", row.says)) for row in rows)]
    return table(head, body, caption=caption, class_="plain cost listed")


def _caption(groups: Sequence[Group], costs: Sequence[Cost]) -> str:
    """What is counted, with the companions of attention that are counted along."""
    group_costs = zip(groups, costs, strict=True)
    clauses = [
        f"{group.label} has {', '.join(c.companions)}" for group, c in group_costs if c.companions
    ]
    return "; ".join(["Cost of one image", *clauses])


def _counted(costs: Sequence[Cost]) -> list[CostRow]:
    return [
        CostRow("Parameters", "trained numbers", [c.parameters for c in costs], count),
        CostRow(
            "Multiply-adds",
            "matrix products and convolutions, per image",
            [c.macs for c in costs],
            short,
        ),
        CostRow("Exponentials in attention", "per image", [c.exps for c in costs], count),
        CostRow(
            "Transcendentals in activations",
            "GELU's erf and the like, per image",
            [c.activation_exps for c in costs],
            count,
        ),
        CostRow("Weights", "parameters and buffers", [c.weight_bytes for c in costs], size),
        CostRow(
            "Peak inference memory",
            "weights and live tensors, one image",
            [c.peak_bytes for c in costs],
            size,
        ),
        CostRow(
            "Activation memory",
            "kept for the backward pass, per image",
            [c.activation_bytes for c in costs],
            size,
        ),
    ]


def _timed(groups: Sequence[Group], speeds: Mapping[Path, Speed]) -> list[CostRow]:
    measured = [speeds.get(group.first.folder) for group in groups]
    rows = []
    if any(measured):
        how = next(speed.how for speed in measured if speed)
        rows.append(
            CostRow(
                "Images per second, evaluation",
                how,
                [s.median if s else None for s in measured],
                short,
            )
        )
    training = [_mean(group, "images_per_second") for group in groups]
    rows += [
        CostRow(
            "Images per second, training",
            "mean over the run, other work on the machine included",
            training,
            short,
        ),
        CostRow(
            "Training time",
            "wall clock of one run",
            [_mean(group, "seconds") for group in groups],
            duration,
        ),
    ]
    return rows


def _mean(group: Group, key: str) -> float | None:
    values = [run.result[key] for run in group.runs if run.result.get(key) is not None]
    return sum(values) / len(values) if values else None
