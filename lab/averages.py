"""What a run publishes beside the weights that it ended with: whether averaging and choosing pay,
on little data and on much.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from softless.compare.record import record_path, write_csv
from softless.compare.training import prepared, trained
from softless.compare.uses import rising
from softless.errors import UsageError
from softless.experiment.candidates import AVERAGED, KEYS, RAW
from softless.experiment.measures import MEASURES
from softless.experiment.recipe import Recipe
from softless.report.runs import RunRecord, read_run
from softless.words import counted, table

STATES = {RAW: "model", AVERAGED: "ema"}  # of a checkpoint


@dataclass(frozen=True)
class Ended:
    """One run: what it published, and what it ended with, on validation and test images."""

    limit: str  # training images asked for; "all"
    run: RunRecord
    images: int  # of training
    batch: int  # that fits them
    # split -> raw or averaged -> scores of the last epoch
    last: Mapping[str, Mapping[str, Mapping[str, Any]]]

    @property
    def measures(self) -> list[str]:
        """What chose the best epoch, and accuracy where there is one."""
        return list(
            dict.fromkeys([
                self.run.measure,
                *(name for name in ("top1",) if name in self.run.result["val"]),
            ])
        )

    def values(self, measure: str) -> dict[str, float]:
        """Split and weights -> value: of what the run published, and of what it ended with."""
        return {
            f"{split}_{name}": float(scores[measure])
            for split, scores_by_kind in self.last.items()
            for name, scores in {
                "shipped": self.run.result[split],
                **{f"last_{kind}": scores_by_kind[kind] for kind in sorted(scores_by_kind)},
            }.items()
        }

    def row(self, measure: str) -> dict[str, Any]:
        result = self.run.result
        return {
            "limit": self.limit,
            "kind": "run",
            "seed": self.run.seed,
            "images": self.images,
            "batch": self.batch,
            "epochs": result["epochs"],
            "steps": self.images // self.batch * result["epochs"],
            "amp": self.run.recipe.amp,
            "measure": measure,
            "best_epoch": result["best_epoch"],
            "weights": result["weights"],
            **_rounded(self.values(measure)),
            "still_rising": rising(self.run),
            "minutes": round(result["seconds"] / 60, 1),
        }


@dataclass(frozen=True)
class Averages:
    """The outcome; prints as a table of means over the seeds."""

    runs: tuple[Ended, ...]
    report: Path
    diverged: Mapping[str, str]
    recorded: Path | None

    def rows(self) -> list[dict[str, Any]]:
        """A row per run and measure, then one of means per number of images and measure."""
        rows = [run.row(measure) for run in self.runs for measure in run.measures]
        for limit in dict.fromkeys(run.limit for run in self.runs):
            runs = [run for run in self.runs if run.limit == limit]
            for measure in runs[0].measures:
                values = [run.values(measure) for run in runs]
                rows.append({
                    "limit": limit,
                    "kind": "mean",
                    "seed": counted(len(runs), "seed"),
                    "images": runs[0].images,
                    "measure": measure,
                    **_rounded({
                        name: float(np.mean([run_values[name] for run_values in values]))
                        for name in values[0]
                    }),
                })
        return rows

    def to_dict(self) -> dict[str, Any]:
        return {"rows": self.rows(), "diverged": dict(self.diverged), "report": str(self.report)}

    def __str__(self) -> str:
        rows = [row for row in self.rows() if row["kind"] == "mean"]
        names = [name for name in rows[0] if name.startswith(("val_", "test_"))]
        cells = [
            [
                row["limit"],
                row["seed"],
                MEASURES[row["measure"]].title,
                *(f"{row[name]:.4f}" for name in names),
            ]
            for row in rows
        ]
        sentences = [f"{name} diverged: {why}" for name, why in self.diverged.items()]
        sentences += [
            f"report: {self.report}",
            *([f"recorded: {self.recorded}"] if self.recorded else []),
        ]
        head = ["images", "", "", *(name.replace("_", " ") for name in names)]
        return "\n".join([table(head, cells), "", *sentences])


def averages(
    recipe: str | Recipe = "digits",
    limits: Sequence[int] = (),
    *,
    data: str | Path | None = None,
    epochs: int | None = None,
    set: str | Sequence[str] | Mapping[str, Any] = (),
    seeds: int = 1,
    name: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    record: bool = False,
    device: str = "auto",
    threads: int | None = None,
) -> Averages:
    """Train a recipe as it is on several numbers of images, and measure what it publishes beside
    its last weights.

    The test images of a run are read once more here, for the weights that it did not publish:
    nothing is chosen from them.

    Args:
        recipe: name, or a Recipe.
        limits: training images; all of them where none is given.
        data: folder of the data, for recipes that take one.
        epochs: how long each trains; the recipe's own length by default.
        set: fields of the recipe, as field=value: `softless list recipes NAME`. In Python also one
            text, or a mapping.
        seeds: how many, from the recipe's own seed on.
        name: what the rows are recorded as; the recipe's name by default.
        out: folder for the runs and report.html; runs/NAME-averages by default.
        overwrite: delete the runs that the folder holds.
        resume: keep finished runs and continue those that were stopped.
        record: also write benchmarks/averages_NAME.csv of the repository.
        device: auto, cpu, cuda, mps.
        threads: of the processor for each run; the recipe's own number by default.

    Raises:
        UsageError: unknown recipe, a limit below one or given twice, a folder that already holds
            these runs.
        DivergedError: every run diverged.
    """
    from softless.tasks import page

    if len(dict.fromkeys(limits)) < len(limits):
        raise UsageError(f"limits {' '.join(map(str, limits))}: each once")
    chosen = prepared(recipe, data, epochs, set)
    if threads is not None:
        chosen = replace(chosen, threads=threads)
    recipes = {str(limit): chosen.with_fields(**{"data.limit": limit}) for limit in limits} or {
        "all": chosen
    }
    for limited in recipes.values():
        limited.check()
    named = name or chosen.name
    target = record_path(f"averages_{named}") if record else None
    folder = Path(out or Path("runs") / f"{named}-averages")
    run_dirs, diverged = trained(
        recipes, folder, seeds, resume=resume, overwrite=overwrite, device=device
    )
    ended = tuple(
        _ended(run_dir, recipes[run_dir.name.rpartition("-")[0]], device) for run_dir in run_dirs
    )
    outcome = Averages(ended, page.write(run_dirs, folder / "report.html"), diverged, target)
    if target is not None:
        write_csv(target, outcome.rows())
    return outcome


def _ended(folder: Path, recipe: Recipe, device: str) -> Ended:
    """A finished run, with what its last checkpoint answers."""
    from softless.experiment.checkpoints import Checkpoints
    from softless.experiment.folder import CHECKPOINTS
    from softless.tasks.table import open_task
    from softless.training.model import build_for
    from softless.training.world import choose_device

    run = read_run(folder)
    state = Checkpoints(folder / CHECKPOINTS).newest()
    if state is None or state["epoch"] != run.result["epochs"]:
        raise UsageError(
            f"{folder} does not hold the checkpoint of its last epoch: train it anew with "
            "--overwrite"
        )
    task, chosen_device = open_task(replace(recipe, seed=run.seed)), choose_device(device)
    task = task.to(chosen_device)
    line = run.epochs[-1]
    last = {"val": {kind: line[key] for kind, key in KEYS.items() if key in line}}
    if task.splits.test is not None:
        model = build_for(task).to(chosen_device)
        last["test"] = {}
        for kind in last["val"]:
            model.load_state_dict(state[STATES[kind]])
            loader = task.eval_loader(task.splits.test, 0, 1)
            evaluation = task.evaluate(
                task.evaluated(model), loader, amp=recipe.amp, label=f"{folder.name}, {kind}"
            )
            last["test"][kind] = evaluation.summary()
    return Ended(
        folder.name.rpartition("-")[0], run, len(task.splits.train), task.recipe.batch_size, last
    )


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}
