"""The outcome of a figure: a table for people, rows for a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.speed.bars import Verdict
from lab.speed.crossover import Crossover
from lab.speed.work import SETTING, Case, words
from softless.compare.timing import Spread
from softless.words import table

BUSY = 0.5  # load average above which something else was running


@dataclass(frozen=True)
class Study:
    """All cases of a figure, what its bars say, and where softmax is faster."""

    name: str
    title: str
    cases: tuple[Case, ...]
    bases: tuple[str, ...]  # rivals to which ratios are told
    verdicts: tuple[Verdict, ...]
    crossovers: tuple[Crossover, ...]
    load: float  # of the machine, before anything ran: other work that was going on
    chart: Path
    recorded: Path | None = None
    note: str = ""  # of rivals that could not take part

    def rows(self) -> list[dict[str, Any]]:
        """A row per rival and case, then the bars, then the crossovers."""
        rows = [row for case in self.cases for row in _rows(case, self.bases)]
        rows += [verdict.row() for verdict in self.verdicts] + [
            crossover.row() for crossover in self.crossovers
        ]
        return [{**row, "load": self.load} for row in rows]

    def to_dict(self) -> dict[str, Any]:
        return {
            "figure": self.name,
            "rows": self.rows(),
            "met": all(verdict.met for verdict in self.verdicts),
            "missed": [verdict.row() for verdict in self.verdicts if not verdict.met],
            "chart": str(self.chart),
            **({"note": self.note} if self.note else {}),
        }

    def __str__(self) -> str:
        parts = [self.title, self._times()]
        if self.verdicts:
            parts.append(self._bars())
        if self.crossovers:
            parts.append(
                "\n".join(
                    f"{words(crossover.setting)}: {crossover.sentence}"
                    for crossover in self.crossovers
                )
            )
        if self.note:
            parts.append(self.note)
        if self.load > BUSY:
            parts.append(
                f"the machine was busy (load {self.load}): trust ratios more than times, and "
                "record neither"
            )
        files = [f"chart: {self.chart}", *([f"recorded: {self.recorded}"] if self.recorded else [])]
        return "\n\n".join([*parts, "\n".join(files)])

    def _times(self) -> str:
        rows = [row for case in self.cases for row in _rows(case, self.bases)]
        varying = [name for name in SETTING if len({row.get(name) for row in rows}) > 1]
        ratio_columns = [f"{kind}{base}" for kind in ("to_", "memory_to_") for base in self.bases]
        names = [*varying, "ms", "peak_mib", *ratio_columns, "error", "path"]
        names = [name for name in names if any(name in row for row in rows)]
        cells = [[row["rival"], *(str(row.get(name, "")) for name in names)] for row in rows]
        return table(["", *(name.replace("_", " ") for name in names)], cells)

    def _bars(self) -> str:
        rows = [verdict.row() for verdict in self.verdicts]
        verdict_cells = [
            [row[name] for name in ("ratio", "of", "bar", "measured", "quarters", "verdict")]
            for row in rows
        ]
        works = [str(verdict.work) for verdict in self.verdicts]
        cells = [[work, *cell] for work, cell in zip(works, verdict_cells, strict=True)]
        return table(["bars", "ratio", "of", "", "measured", "quarters", ""], cells)


def _rows(case: Case, bases: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for name in case.rivals:
        compared_bases = [base for base in bases if base != name and base in case.rivals]
        row: dict[str, Any] = {"kind": "rival", "rival": name, **case.work.columns()}
        if case.timings is not None:
            spread = Spread.of([1e3 * seconds for seconds in case.timings.seconds[name]])
            rounds = len(case.timings.seconds[name])
            row |= {"ms": _round(spread.median), "ms_quarters": _quarters(spread), "rounds": rounds}
            for base in compared_bases:
                ratio = case.timings.ratio(name, base)
                row |= {f"to_{base}": _round(ratio.median), f"to_{base}_quarters": _quarters(ratio)}
        if case.peaks:
            row["peak_mib"] = _round(case.peaks[name] / 2**20)
            row |= {
                f"memory_to_{base}": _round(case.peaks[name] / case.peaks[base])
                for base in compared_bases
            }
        if name in case.errors:
            row["error"] = float(f"{case.errors[name]:.1e}")
        rows.append(row | {"path": case.paths[name]})
    return rows


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def _quarters(spread: Spread) -> str:
    return f"{spread.low:.4g} to {spread.high:.4g}"
