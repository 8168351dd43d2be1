"""The outcome of a comparison: rows for a file, text for a terminal."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from softless.compare.steps import StepCost
from softless.exporting.report import Exported
from softless.report.groups import Group
from softless.report.runs import RunRecord
from softless.report.statistics import ShareEstimate
from softless.tasks.cost import Speed
from softless.words import table


@dataclass(frozen=True)
class Compared:
    """The outcome: one group of runs per operator, the last one being what the others are compared
    with.
    """

    recipe: str
    groups: tuple[Group, ...]
    accuracies: tuple[ShareEstimate, ...]
    differences: tuple[ShareEstimate, ...]  # of each group but the last, to the last
    speeds: Mapping[Path, Speed]
    only: Mapping[str, Mapping[str, Any]]  # operator -> options of the recipe that it does not have
    report: Path
    recorded: Path | None = None
    steps: Mapping[str, StepCost] = field(default_factory=dict)  # by operator
    settings: Mapping[str, str] = field(default_factory=dict)  # options of each operator, in words
    diverged: Mapping[str, str] = field(default_factory=dict)  # run folder's name -> what happened
    exported: Exported | None = None  # files of the first run

    @property
    def exit_code(self) -> int:
        """1 where a check of an exported file failed."""
        return 0 if self.exported is None else self.exported.exit_code

    def rows(self) -> list[dict[str, Any]]:
        """A row per run, then one per mean and per difference."""
        rows = [
            _run_row(self.recipe, group, run, self.speeds)
            for group in self.groups
            for run in group.runs
        ]
        for group, estimate in zip(self.groups, self.accuracies, strict=True):
            row = _summary_row(self.recipe, "mean", group.first.operator, group, estimate)
            rows.append(row | self._costs(group.first.operator))
        base = self.groups[-1].first.operator
        for group, estimate in zip(self.groups, self.differences, strict=False):
            rows.append(
                _summary_row(
                    self.recipe, "difference", f"{group.first.operator} - {base}", group, estimate
                )
            )
        diverged_rows = [
            {
                "kind": "diverged",
                "recipe": self.recipe,
                "operator": name.partition("-seed")[0],
                "seed": name.partition("-seed")[2],
                "how": why,
            }
            for name, why in self.diverged.items()
        ]
        return rows + diverged_rows

    def _costs(self, op: str) -> dict[str, Any]:
        """The columns of a mean that say what a training step takes."""
        if op not in self.steps:
            return {}
        step = self.steps[op]
        return {
            "options": self.settings.get(op, ""),
            "parameters": step.parameters,
            "step_ms": round(1e3 * step.seconds.median, 2),
            "step_quarters": f"{1e3 * step.seconds.low:.1f} to {1e3 * step.seconds.high:.1f}",
            "peak_mib": round(step.peak_bytes / 2**20, 1),
            "exps": step.exps,
            "transcendentals": step.transcendentals,
        }

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows(),
            "left_out": {op: dict(options) for op, options in self.only.items()},
            "diverged": dict(self.diverged),
            "report": str(self.report),
            **({} if self.exported is None else {"exported": self.exported.to_dict()}),
        }

    def __str__(self) -> str:
        return "\n".join([
            _runs_table(self),
            "",
            *_sentences(self),
            *([] if self.exported is None else ["", str(self.exported), ""]),
            f"report: {self.report}",
            *([f"recorded: {self.recorded}"] if self.recorded else []),
        ])


def _run_row(
    recipe: str, group: Group, run: RunRecord, speeds: Mapping[Path, Speed]
) -> dict[str, Any]:
    assert run.predictions is not None
    speed = speeds.get(run.folder)
    return {
        "kind": "run",
        "recipe": recipe,
        "operator": run.operator,
        "seed": run.seed,
        "images": len(run.predictions.targets),
        "accuracy": round(float(run.predictions.correct.mean()), 6),
        "low": "",
        "high": "",
        "balanced_accuracy": run.result["test"].get("balanced_accuracy"),
        "auc": run.result["test"].get("auc"),
        "validation_accuracy": run.result["val"]["top1"],
        "best_epoch": run.result["best_epoch"],
        "epochs": run.result["epochs"],
        "seconds": round(run.result["seconds"], 1),
        "parameters": run.result["parameters"],
        "eval_images_per_second": round(speed.median, 1) if speed else "",
        "eval_quarters": f"{speed.low:.1f} to {speed.high:.1f}" if speed else "",
        "how": f"{len(group.runs)} seeds",
    }


def _summary_row(
    recipe: str, kind: str, name: str, group: Group, estimate: ShareEstimate
) -> dict[str, Any]:
    values = {"accuracy": estimate.value, "low": estimate.low, "high": estimate.high}
    return {
        "kind": kind,
        "recipe": recipe,
        "operator": name,
        "seed": " ".join(map(str, group.seeds)),
        **{key: round(value, 6) for key, value in values.items()},
        "how": estimate.how,
    }


def _runs_table(compared: Compared) -> str:
    rows = []
    for group, estimate in zip(compared.groups, compared.accuracies, strict=True):
        first = group.first
        speed = compared.speeds.get(first.folder)
        rows.append([
            group.label,
            f"{100 * estimate.value:.2f} %",
            f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}",
            " ".join(
                f"{100 * float(run.predictions.correct.mean()):.1f}"
                for run in group.runs
                if run.predictions
            ),
            f"{speed.median:,.0f}" if speed else "–",
            f"{sum(run.result['seconds'] for run in group.runs) / len(group.runs):.0f} s",
            *_step_cells(compared, first.operator),
        ])
    head = ["", "test accuracy", "95 % interval", "by seed", "images/s in evaluation", "training"]
    return table(
        head + (["ms per step", "peak MiB", "exps per image"] if compared.steps else []), rows
    )


def _step_cells(compared: Compared, op: str) -> list[str]:
    if not compared.steps:
        return []
    step = compared.steps[op]
    return [f"{1e3 * step.seconds.median:.1f}", f"{step.peak_bytes / 2**20:.0f}", f"{step.exps:,}"]


def _sentences(compared: Compared) -> list[str]:
    base = compared.groups[-1]
    sentences = [
        f"{group.label} − {base.label}: {100 * estimate.value:+.2f} points, 95 % interval "
        f"{100 * estimate.low:+.2f} to {100 * estimate.high:+.2f} ({estimate.how})"
        for group, estimate in zip(compared.groups, compared.differences, strict=False)
    ]
    sentences += [f"{name} diverged: {why}" for name, why in compared.diverged.items()]
    for op, options in compared.only.items():
        listed = ", ".join(f"{name}={value}" for name, value in options.items())
        sentences.append(f"{op} does not have, and so ran without: {listed}")
    return sentences
