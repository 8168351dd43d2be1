"""The papers' uses under one recipe and several operators: what each reaches on test images, and
what a step of it takes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from softless.compare.models import checked_operators, host_and_operator, with_operator
from softless.compare.record import record_path, write_csv
from softless.compare.steps import peak_bytes
from softless.compare.timing import Spread, interleaved, waiting_for
from softless.compare.training import lacking, prepared, trained
from softless.evaluation.evaluate import autocast
from softless.experiment.candidates import described, gain
from softless.experiment.measures import MEASURES
from softless.experiment.recipe import Recipe
from softless.report.groups import operator_title
from softless.report.runs import RunRecord, read_run
from softless.tasks import page
from softless.tasks.table import open_task
from softless.training.model import build_for
from softless.training.optim import optimizer
from softless.training.world import choose_device
from softless.words import table


@dataclass(frozen=True)
class StepTime:
    """One training step on the first batch of the recipe, of the whole task: forward, loss,
    backward, optimiser.
    """

    seconds: Spread
    peak_bytes: int  # most held at once beyond what lay there before it


@dataclass(frozen=True)
class Used:
    """Runs of one recipe that differ in operator and seed, and numbers that need no training to
    compare them with.
    """

    recipe: Recipe
    runs: tuple[RunRecord, ...]
    steps: Mapping[str, StepTime]
    baselines: Mapping[str, Mapping[str, float]]  # name -> measure -> value, on the test split
    only: Mapping[str, Mapping[str, Any]]  # operator -> options of the recipe that it does not have
    diverged: Mapping[str, str]
    report: Path
    recorded: Path | None

    def rows(self) -> list[dict[str, Any]]:
        """A row per run, then one per baseline."""
        rows = []
        for run in self.runs:
            trained_as = folder_of(run)
            step = self.steps[trained_as]
            rows.append({
                "model": operator_title(trained_as),
                "operator": run.operator,
                "seed": run.seed,
                **numbers(run.result["test"] or run.result["val"]),
                "split": "test" if run.result["test"] else "val",
                "epochs": run.result["epochs"],
                "best_epoch": run.result["best_epoch"],
                "weights": run.result.get("weights", ""),
                "still_rising": rising(run),
                "minutes": round(run.result["seconds"] / 60, 1),
                "step_s": round(step.seconds.median, 3),
                "step_quarters": f"{step.seconds.low:.3f} to {step.seconds.high:.3f}",
                "peak_mib": round(step.peak_bytes / 2**20),
                "parameters": run.result["parameters"],
                "amp": run.recipe.amp,
            })
        for name, scores in self.baselines.items():
            rows.append({"model": name, **numbers(scores), "split": "test"})
        rows += [
            {"model": name, "still_rising": f"diverged: {why}"}
            for name, why in self.diverged.items()
        ]
        return rows

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows(),
            "left_out": {op: dict(options) for op, options in self.only.items()},
            "report": str(self.report),
        }

    def __str__(self) -> str:
        rows = self.rows()
        names = [name for name in MEASURES if any(name in row for row in rows)] + [
            "best_epoch",
            "epochs",
            "minutes",
            "step_s",
            "peak_mib",
        ]
        cells = [[row["model"], *(_cell(name, row.get(name)) for name in names)] for row in rows]
        head = [
            "",
            *(
                MEASURES[name].title if name in MEASURES else name.replace("_", " ")
                for name in names
            ),
        ]
        sentences = [
            f"{op} does not have, and so ran without: {', '.join(map(str, options))}"
            for op, options in self.only.items()
        ]
        sentences += [f"{name} diverged: {why}" for name, why in self.diverged.items()]
        sentences += [
            f"report: {self.report}",
            *([f"recorded: {self.recorded}"] if self.recorded else []),
        ]
        return "\n".join([table(head, cells), "", *sentences])


def uses(
    recipe: str | Recipe = "digits",
    ops: Sequence[str] = (),
    *,
    data: str | Path | None = None,
    epochs: int | None = None,
    set: str | Sequence[str] | Mapping[str, Any] = (),
    seeds: int = 1,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    record: bool = False,
    device: str = "auto",
) -> Used:
    """Train a recipe of any task with several operators, everything else alike, and put their test
    scores and costs in one table.

    Args:
        recipe: name, or a Recipe.
        ops: operators; the recipe's own and softmax by default.
        data: folder of the data, for recipes that take one.
        epochs: how long each trains; the recipe's own length by default.
        set: fields of the recipe, as field=value: `softless list recipes NAME`. In Python also one
            text, or a mapping.
        seeds: how many, from the recipe's own seed on.
        out: folder for the runs and report.html; runs/RECIPE-uses by default.
        overwrite: delete the runs that the folder holds.
        resume: keep finished runs and continue those that were stopped.
        record: also write benchmarks/uses_RECIPE.csv of the repository.
        device: auto, cpu, cuda, mps.

    Raises:
        UsageError: unknown recipe or operator, fewer than two operators, or a folder that already
            holds these runs.
    """
    chosen = prepared(recipe, data, epochs, set)
    recipes = {
        op: with_operator(chosen, op)
        for op in checked_operators(ops or (host_and_operator(chosen.model)[1], "softmax"))
    }
    return used(chosen, recipes, "uses", seeds, out, overwrite, resume, record, device)


def used(
    chosen: Recipe,
    recipes: Mapping[str, Recipe],
    name: str,
    seeds: int,
    out: str | Path | None,
    overwrite: bool,
    resume: bool,
    record: bool,
    device: str,
) -> Used:
    """Train each recipe over the seeds, and put scores and costs in one table; rows are recorded as
    NAME_RECIPE.

    Raises:
        UsageError: no seeds, a folder that already holds these runs, or `record` outside of the
            repository.
        DivergedError: every run diverged.
    """
    target = record_path(f"{name}_{chosen.name}") if record else None
    folder = Path(out or Path("runs") / f"{chosen.name}-{name}")
    run_dirs, diverged = trained(
        recipes, folder, seeds, resume=resume, overwrite=overwrite, device=device
    )
    runs = [read_run(run_dir) for run_dir in run_dirs]
    done = {
        name: recipe
        for name, recipe in recipes.items()
        if any(folder_of(run) == name for run in runs)
    }
    outcome = Used(
        recipe=chosen,
        runs=tuple(runs),
        steps=training_steps(done, choose_device(device)),
        baselines=_baselines(chosen),
        only=lacking(chosen, recipes),
        diverged=diverged,
        report=page.write(run_dirs, folder / "report.html"),
        recorded=target,
    )
    if target is not None:
        write_csv(target, outcome.rows())
    return outcome


def folder_of(run: RunRecord) -> str:
    """What a run was trained as: an operator, or a model that is taken as it is."""
    return run.folder.name.rpartition("-seed")[0]


def training_steps(
    recipes: Mapping[str, Recipe], device: torch.device, rounds: int = 5
) -> dict[str, StepTime]:
    """A training step of each recipe on its first batch, in turns: seconds and the most memory
    held.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(next(iter(recipes.values())).threads or before)
    try:
        calls = {name: _step(recipe, device) for name, recipe in recipes.items()}
        synchronise = waiting_for(device)
        timed = interleaved(calls, rounds=rounds, warmup=1, synchronise=synchronise)
        return {
            name: StepTime(timed.spread(name), peak_bytes(call, device))
            for name, call in calls.items()
        }
    finally:
        torch.set_num_threads(before)


def _step(recipe: Recipe, device: torch.device) -> Callable[[], None]:

    task = open_task(recipe).to(device)
    model = build_for(task).to(device)
    learner, mover = task.learner(model).train(), optimizer(recipe, model)
    loader = task.train_loader(0, 1)
    loader.set_epoch(0)
    batch = next(iter(loader))

    def step() -> None:
        mover.zero_grad(set_to_none=True)
        inputs = task.prepare(batch, device, epoch=0, step=0)
        with autocast(device, recipe.amp):
            loss = learner(*inputs)
        loss.backward()
        mover.step()

    return step


def _baselines(recipe: Recipe) -> Mapping[str, Mapping[str, float]]:
    """What no training reaches on the test split, where the task knows such numbers."""
    task = open_task(recipe)
    return task.baselines(task.splits.test) if task.splits.test is not None else {}


# measures that a table has a column of for each class
DENSE_CLASSES = ("iou", "dice", "box_ap", "mask_ap")


def rising(run: RunRecord) -> str:
    """How much of the validation measure the last quarter of the epochs added: how far the curve
    was from flat.
    """
    added = gain(run.epochs, run.measure)
    return "" if added is None else described(added, run.measure)


def numbers(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The measures among the scores, and those of each class, rounded."""
    measures = {name: _rounded(scores[name]) for name in MEASURES if scores.get(name) is not None}
    for measure in DENSE_CLASSES:
        by_class = scores.get("per_class", {}).get(measure, {})
        measures |= {
            f"{measure}_{name}": _rounded(value)
            for name, value in by_class.items()
            if value is not None
        }
    return measures


def _rounded(value: float) -> float:
    return round(value, 4)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "–"
    return MEASURES[name].write(value) if name in MEASURES else str(value)
