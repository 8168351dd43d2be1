"""Loss, the measure that chose the best epoch, and learning rate over the epochs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from softless.experiment.candidates import KEYS, measured
from softless.experiment.measures import MEASURES
from softless.report.charts import EpochCurve, LineChart
from softless.report.groups import FEW, Group
from softless.report.html import Html, details, tag
from softless.report.numbers import percent, plain
from softless.report.tables import table

DIGITS = 4  # of a number on an axis


def draw_curves(groups: Sequence[Group]) -> Html:
    measure = MEASURES[groups[0].first.measure]
    scores, rate = _scores(groups), _lines(groups, _rate)
    begun = any(line.first == 0 for line in scores)  # the start is what the end is held against
    start = _late(scores) if measure.percent and not begun else None
    charts = [
        LineChart(
            "Training loss", _lines(groups, _loss), plain, plain, better="lower", digits=DIGITS
        ),
        LineChart(
            _title(groups),
            scores,
            percent if measure.percent else plain,
            percent if measure.percent else plain,
            digits=0 if measure.percent else DIGITS,
            within=(0, 1) if measure.percent else (-math.inf, math.inf),
            low=start,
            better="higher" if measure.higher else "lower",
            note=_score_note(scores, start),
        ),
        LineChart("Learning rate", rate, plain, plain, low=0, note=_same(rate), digits=DIGITS),
    ]
    legend = [
        tag("li", tag("span", class_=f"swatch {group.colour}"), group.label) for group in groups
    ]
    return tag(
        "div",
        tag("ul", legend, class_="legend") if len(groups) > 1 else None,
        tag(
            "div",
            [chart.render(f"chart-{number}") for number, chart in enumerate(charts)],
            class_="charts",
        ),
        details("The curves as a table", _as_table(groups)),
    )


def _title(groups: Sequence[Group]) -> str:
    name = groups[0].first.measure
    return "Validation accuracy" if name == "top1" else f"Validation: {MEASURES[name].title}"


def _validation(kind: str) -> Callable[[Group], Callable[[dict[str, Any]], float | None]]:
    """The measure of one kind of weights, raw or averaged."""
    return lambda group: lambda epoch: measured(epoch).get(kind, {}).get(group.first.measure)


def _kinds(groups: Sequence[Group]) -> list[str]:
    """The kinds of weights that were measured, averaged ones first."""
    measured_kinds = {
        kind
        for group in groups
        for run in group.runs
        for line in run.epochs
        for kind in measured(line)
    }
    return [kind for kind in KEYS if kind in measured_kinds]


def _scores(groups: Sequence[Group]) -> list[EpochCurve]:
    """Averaged weights, and behind them the raw ones of the same runs."""
    kinds = _kinds(groups)
    lines: list[EpochCurve] = []
    for number, kind in enumerate(kinds):
        drawn = _lines(groups, _validation(kind), mark_best=kind)
        if len(kinds) > 1:
            drawn = [replace(line, label=f"{line.label}, {kind} weights") for line in drawn]
        if number:  # of the second kind the means alone: seeds of both would hide them
            drawn = [replace(line, second=True) for line in drawn if not line.faint]
        lines += [line for line in drawn if any(value is not None for value in line.values)]
    return lines


def _late(lines: Sequence[EpochCurve]) -> float | None:
    """Where the axis of a share starts: at what every model has after a sixth of the epochs, so
    that the end can be told apart.
    """
    after = max(len(line.values) for line in lines) // 6
    values = [v for line in lines for v in line.values[after:] if v is not None]
    return min(values, default=None) if after else None


def _score_note(lines: Sequence[EpochCurve], start: float | None) -> str:
    sentences = (
        ["The ring is the epoch whose weights were kept."]
        if any(line.mark for line in lines)
        else []
    )
    if any(line.second for line in lines):
        sentences.insert(
            0, "Full lines are averaged weights, thin dashed ones the raw weights of the same run."
        )
    if any(line.first == 0 for line in lines):
        sentences.append("Epoch 0 is the state before the first step.")
    if start is not None and any(v < start for line in lines for v in line.values if v is not None):
        sentences.append("The first epochs lie below the axis.")
    return " ".join(sentences)


def _same(lines: Sequence[EpochCurve]) -> str:
    means = [line.values for line in lines if not line.faint]
    return (
        "The same for all: the curves lie on each other."
        if len(means) > 1 and all(v == means[0] for v in means)
        else ""
    )


def _loss(_: Group) -> Callable[[dict[str, Any]], float | None]:
    return lambda epoch: epoch.get("train_loss")  # the start has none


def _rate(_: Group) -> Callable[[dict[str, Any]], float | None]:
    return lambda epoch: epoch.get("lr")


def _lines(
    groups: Sequence[Group],
    part: Callable[[Group], Callable[..., float | None]],
    *,
    mark_best: str = "",
) -> list[EpochCurve]:
    """A curve for each group; `mark_best` is the kind of weights that the curve is of, and rings
    the epoch that was kept of it.
    """
    lines = []
    for group in groups:
        value = part(group)
        first = _first(group)
        seeds = [_from(first, run.epochs, value) for run in group.runs]
        is_best = mark_best and len(seeds) == 1 and group.first.weights == mark_best
        best = int(group.first.result["best_epoch"]) if is_best else None
        lines.append(EpochCurve(group.label, group.colour, _mean(seeds), mark=best, first=first))
        if len(seeds) > 1 and len(groups) <= FEW:
            lines += [  # with more models the seeds' own curves would hide them
                EpochCurve(
                    f"{group.label}, seed {seed}", group.colour, values, faint=True, first=first
                )
                for seed, values in zip(group.seeds, seeds, strict=True)
            ]
    return lines


def _first(group: Group) -> int:
    """The first epoch of a model: 0 where its start was measured."""
    return min(int(run.epochs[0]["epoch"]) for run in group.runs)


def _from(
    first: int, lines: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], float | None]
) -> list[float | None]:
    """The values of a run from this epoch on; None where it has no line."""
    missing = int(lines[0]["epoch"]) - first
    return [*[None] * missing, *map(value, lines)]


def _mean(seeds: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Mean over the seeds that reached an epoch."""
    out: list[float | None] = []
    for epoch in range(max(map(len, seeds))):
        present = [
            v for values in seeds if epoch < len(values) and (v := values[epoch]) is not None
        ]
        out.append(sum(present) / len(present) if present else None)
    return out


def _as_table(groups: Sequence[Group]) -> Html:
    first = min(map(_first, groups))
    last = max(int(run.epochs[-1]["epoch"]) for group in groups for run in group.runs)
    step = max(1, -(-last // 40))
    epochs = sorted({*range(first, last + 1, step), last})
    score = percent if MEASURES[groups[0].first.measure].percent else plain
    head: list[Any] = ["epoch"]
    columns: list[list[str]] = []
    kinds = _kinds(groups)
    validation = [
        (
            f"validation ({kind} weights)" if len(kinds) > 1 else "validation",
            _validation(kind),
            score,
        )
        for kind in kinds
    ]
    for group in groups:
        for name, part, write in (("loss", _loss, plain), *validation, ("rate", _rate, plain)):
            value = part(group)
            means = _mean([_from(first, run.epochs, value) for run in group.runs])
            head.append(f"{group.label}: {name}")
            columns.append(["" if mean is None else write(mean) for mean in means])
    rows = [
        [
            epoch,
            *(column[epoch - first] if epoch - first < len(column) else "" for column in columns),
        ]
        for epoch in epochs
    ]
    return table(
        head,
        rows,
        caption=f"Training loss, {_title(groups)[:1].lower()}{_title(groups)[1:]} and learning "
        "rate by epoch (mean over seeds)",
    )
