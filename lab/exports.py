"""What eight bits cost: trained runs exported by every tool's recipes, pooled over their seeds."""

import importlib.util
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lab.kept import answer_in
from softless.compare.record import record_path, write_csv
from softless.data.progress import track
from softless.errors import UsageError, located
from softless.evaluation.intervals import Interval, bootstrap_mean, paired_bootstrap
from softless.exporting.export import export
from softless.exporting.formats.format import Int8
from softless.exporting.formats.table import FORMATS, format_named
from softless.exporting.source import opened
from softless.models.durable import make_folder, write_text
from softless.words import table

KINDS: tuple[Int8, ...] = ("static", "weights")
LEAST_DROP = -0.005  # of the accuracy: the estimate, pooled over seeds
LEAST_LOW = -0.01  # of the lower end of its interval
ANSWERS = "answers.json"


@dataclass(frozen=True)
class Answers:
    """One run in one format and kind of eight bits, on its test images."""

    data: str
    op: str
    seed: int
    format: str
    kind: Int8
    recipe: str
    passed: bool  # whether the gate of `softless export` let it through
    tried: dict[str, str]
    form: str
    right: list[bool]  # the file's answers
    right_plain: list[bool]  # the model's, the same images
    agreement: float
    difference: float  # of all logits, relative
    bytes: int
    float_bytes: int


@dataclass(frozen=True)
class Pooled:
    """The runs of one model over its seeds."""

    runs: tuple[Answers, ...]

    @property
    def plain(self) -> Interval:
        """The accuracy of the models."""
        return bootstrap_mean([run.right_plain for run in self.runs])

    @property
    def drop(self) -> Interval:
        """Files less models, seeds and images drawn together."""
        return paired_bootstrap(
            [run.right for run in self.runs], [run.right_plain for run in self.runs]
        )

    @property
    def holds(self) -> bool:
        """Whether eight bits cost no more than the bar."""
        return self.drop.value >= LEAST_DROP and self.drop.low >= LEAST_LOW

    def row(self) -> dict[str, Any]:
        """For the CSV file."""
        first, drop = self.runs[0], self.drop
        return {
            "data": first.data,
            "op": first.op,
            "format": first.format,
            "int8": first.kind,
            "recipe": " ".join(sorted({run.recipe for run in self.runs})),
            "form": " ".join(sorted({run.form for run in self.runs})),
            "seeds": len(self.runs),
            "images": len(first.right),
            "top1_float": round(self.plain.value, 4),
            "top1_int8": round(self.plain.value + drop.value, 4),
            "drop": round(drop.value, 4),
            "drop_low": round(drop.low, 4),
            "drop_high": round(drop.high, 4),
            "agreement": round(float(np.mean([run.agreement for run in self.runs])), 4),
            "least_agreement": round(min(run.agreement for run in self.runs), 4),
            "logits_error": round(float(np.mean([run.difference for run in self.runs])), 4),
            "bytes": first.bytes,
            "float_bytes": first.float_bytes,
            "gate": f"{sum(run.passed for run in self.runs)} of {len(self.runs)}",
            "bar": "met" if self.holds else "missed",
        }


@dataclass(frozen=True)
class Exports:
    """All of them."""

    pooled: tuple[Pooled, ...]
    recorded: Path | None = None

    @property
    def exit_code(self) -> int:
        return 0 if all(pooled.holds for pooled in self.pooled) else 1

    def rows(self) -> list[dict[str, Any]]:
        return [pooled.row() for pooled in self.pooled]

    def to_dict(self) -> list[dict[str, Any]]:
        return self.rows()

    def __str__(self) -> str:
        rows = self.rows()
        footer = f"\n\nrecorded: {self.recorded}" if self.recorded else ""
        return table(list(rows[0]), [list(row.values()) for row in rows]) + footer


def exports(
    runs: Sequence[str] = (),
    *,
    formats: Sequence[str] = (),
    kinds: Sequence[str] = KINDS,
    out: str | Path = "runs/int8-exports",
    resume: bool = False,
    record: bool = False,
) -> Exports:
    """Export trained classifiers in eight bits by every tool, and pool what it costs over their
    seeds.

    Args:
        runs: folders of `softless train`; those that differ in the seed alone are pooled.
        formats: all that have eight bits and are installed, by default.
        kinds: static, weights; both by default.
        out: a folder for the files' answers.
        resume: keep the answers that are there.
        record: also write benchmarks/int8.csv of the repository.

    Raises:
        UsageError: no runs, an unknown format or kind, runs that do not fit each other, answers
            that are there already.
    """
    target = record_path("int8") if record else None
    if not runs:
        raise UsageError("no runs: name folders of `softless train`, several seeds of each model")
    folder = located(out)
    chosen = list(_kinds(formats, kinds))
    wanted = [(run, name, kind) for name, kind in chosen for run in map(located, runs)]
    answers: dict[tuple[Any, ...], list[Answers]] = {}
    for run, name, kind in track(wanted, len(wanted), "exporting"):
        measured = _measured(run, name, kind, folder, resume=resume)
        key = measured.data, measured.op, measured.format, measured.kind
        answers.setdefault(key, []).append(measured)
    pooled = tuple(Pooled(tuple(together)) for _, together in sorted(answers.items()))
    if target is not None:
        write_csv(target, [each.row() for each in pooled])
    return Exports(pooled, target)


def _kinds(formats: Sequence[str], kinds: Sequence[str]) -> Iterator[tuple[str, Int8]]:
    """The formats and their kinds of eight bits; those not installed are left out where none is
    asked for by name.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"no kind '{kind}' of eight bits: choose of {', '.join(KINDS)}")
    for record in map(format_named, formats or FORMATS):
        needed = record.writes_with if formats else (*record.writes_with, *(record.runs_with or ()))
        if not formats and any(importlib.util.find_spec(package) is None for package in needed):
            continue
        yield from ((record.name, kind) for kind in KINDS if kind in kinds and kind in record.int8)


def _measured(run: Path, name: str, kind: Int8, folder: Path, *, resume: bool) -> Answers:
    source = opened(run)
    assert source.run is not None
    recipe = source.run.recipe
    data = Path(recipe.data.path).stem if recipe.data.path else recipe.data.source
    op = str(recipe.model.op or source.best["operators"])
    path = folder / f"{data}-{op}-{recipe.seed}-{name}-{kind}" / ANSWERS
    measure = partial(_exported, run, name, kind, data, op, recipe.seed, folder)
    return answer_in(path, Answers, measure, resume=resume)


def _exported(
    run: Path, name: str, kind: Int8, data: str, op: str, seed: int, folder: Path
) -> Answers:
    """What a run's file answers."""
    with tempfile.TemporaryDirectory() as place:
        (file,) = export(run, name, place, int8=kind).files
    found = file.measured
    assert found is not None
    assert found.right is not None
    assert found.agreement is not None
    assert found.difference is not None
    right, right_plain = (of_each.tolist() for of_each in found.right)
    return Answers(
        data,
        op,
        seed,
        name,
        kind,
        file.int8,
        file.ok,
        dict(file.tried),
        file.form,
        right,
        right_plain,
        found.agreement,
        found.difference,
        file.bytes,
        _float_bytes(run, name, folder / f"{data}-{op}-{name}-float.json"),
    )


def _float_bytes(run: Path, name: str, path: Path) -> int:
    """Of the file in float32, which all seeds share."""
    if not path.exists():
        with tempfile.TemporaryDirectory() as place:
            (file,) = export(run, name, place).files
        make_folder(path.parent)
        write_text(path, json.dumps(file.bytes))
    return int(json.loads(path.read_text(encoding="utf-8")))
