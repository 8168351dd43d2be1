"""Cross-validation: a run for each fold, `fold0`, `fold1`, … in one folder, and what they reached
together in `folds.json`.

Each image is tested once, by the run that neither learnt from it nor from its group. An interval
is Student's over the folds,

    mean +- t(0.975, K - 1) * deviation / sqrt(K),

and the folds share most of their training images, so it is somewhat narrow (Bengio and
Grandvalet, JMLR 5, 2004).
"""

import json
import math
import os
import shlex
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from softless.errors import DataError, Interrupted, ResumeMismatch, UsageError, need
from softless.experiment.claim import holder
from softless.experiment.folder import FOLDS, REPORT, TOGETHER, RunFolder, differences
from softless.experiment.measures import MEASURES
from softless.experiment.recipe import Recipe, as_json, restored
from softless.models.durable import delete, make_folder, write_text
from softless.models.records import TABLE, check, read_json, whole
from softless.tasks.table import TASKS
from softless.training.loop import fit
from softless.training.result import Result
from softless.training.settle import located
from softless.words import few

LEVEL = 0.95  # of the intervals
MEND = "bring it back from a backup, or start anew with --overwrite"


@dataclass(frozen=True)
class FoldEstimate:
    """A measure over the folds: its mean, its standard deviation, and the ends of its 95 %
    interval.
    """

    mean: float
    deviation: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], *, share: bool) -> "FoldEstimate":
        """From one value a fold; the interval of a share keeps to 0..1."""
        from scipy.stats import t

        mean, deviation = statistics.fmean(values), statistics.stdev(values)
        half = float(t.ppf(0.5 + LEVEL / 2, len(values) - 1)) * deviation / math.sqrt(len(values))
        low, high = mean - half, mean + half
        return (
            cls(mean, deviation, max(low, 0.0), min(high, 1.0))
            if share
            else cls(mean, deviation, low, high)
        )


@dataclass(frozen=True)
class Folds:
    """The runs of all folds, and what they reached together on their test parts."""

    folder: Path
    results: tuple[Result, ...]
    estimates: Mapping[str, FoldEstimate]  # by measure
    together: Mapping[str, Any] = field(default_factory=dict)  # what the task says of all folds

    def to_dict(self) -> dict[str, Any]:
        """What folds.json holds: estimates by measure, and the result of each fold."""
        return {
            "folds": len(self.results),
            "estimates": {name: vars(estimate) for name, estimate in self.estimates.items()},
            "results": [_entry(result) for result in self.results],
            **({"together": dict(self.together)} if self.together else {}),
        }

    def __str__(self) -> str:
        head = "each tested on another part: mean, 95 % interval, values of the folds"
        lines = [f"{len(self.results)} folds, {head}"]
        for name, estimate in self.estimates.items():
            measure = MEASURES[name]
            low, high = measure.write(estimate.low), measure.write(estimate.high)
            values = ", ".join(measure.write(_tested(result)[name]) for result in self.results)
            lines.append(
                f"  {measure.title:<10} {measure.write(estimate.mean)}  ({low} to {high})  {values}"
            )
        return "\n".join([
            *lines,
            *([str(self.together["text"])] if self.together.get("text") else []),
            (
                f"run folders {self.folder / 'fold0'} to fold{len(self.results) - 1}, numbers "
                f"{self.folder / FOLDS}"
            ),
        ])


def fit_folds(
    recipe: Recipe,
    folder: Path,
    folds: int | None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    finished: Callable[[Recipe, Path], object] = lambda recipe, run_dir: None,  # noqa: ARG005
) -> Folds:
    """Train a recipe once for each fold. Killed anywhere and continued, it goes on with the fold
    that is not finished.

    Args:
        recipe: of a task that folds can be cut for (`experiment.groups.LISTED`); its images may
            have no parts of their own.
        folder: of the folders of the folds.
        folds: how many, at least 2; None continues as many as there are.
        resume: go on with the folds in the folder.
        overwrite: delete the folds in the folder.
        device: as of `fit`.
        finished: called with recipe and folder of each fold whose run has ended.

    Raises:
        UsageError: the folder holds something else, or the recipe cannot be cut into folds
            (DataError says why).
        ResumeMismatch: the folds there have another recipe or another number.
    """
    recipe = located(recipe)
    count = _number(recipe, folder, folds, resume=resume, overwrite=overwrite)
    each = [
        replace(recipe, data=replace(recipe.data, folds=count, fold=fold)) for fold in range(count)
    ]
    _try_cuts(each[0])
    make_folder(folder)
    if overwrite:
        _clear_beyond(folder, count)
        for name in TOGETHER:
            delete(folder / name)
    _write(folder, {"folds": count, "recipe": as_json(recipe)})
    results = []
    for fold, fold_recipe in enumerate(each):
        run_folder = RunFolder(folder / f"fold{fold}")
        with _named(fold, count, folder):
            has_run = run_folder.holds_run()
            results.append(
                fit(
                    fold_recipe,
                    run_folder.path,
                    resume=has_run and not overwrite,
                    overwrite=has_run and overwrite,
                    device=device,
                )
            )
            if not run_folder.has(REPORT):
                finished(fold_recipe, run_folder.path)
    together = TASKS[recipe.task].over_folds(folder, [result.run_dir for result in results])
    reached = Folds(folder, tuple(results), _estimates(results), together)
    _write(folder, {"folds": count, "recipe": as_json(recipe), **reached.to_dict()})
    return reached


def held_recipe(folder: Path) -> Recipe | None:
    """The recipe of the folds in a folder, without a fold; None where there are none.

    Raises:
        DataError: folds.json is damaged.
    """
    stored = _stored(folder)
    if stored is None:
        return None
    try:
        return restored(stored["recipe"])
    except (UsageError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / FOLDS} holds no recipe ({error}): {MEND}") from error


def _stored(folder: Path) -> dict[str, Any] | None:
    path = folder / FOLDS
    if not path.exists():
        return None
    content: dict[str, Any] = read_json(path, mend=MEND)
    check(content, {"folds": whole(2, 1000), "recipe": TABLE}, path, mend=MEND)
    return content


def _number(
    recipe: Recipe, folder: Path, folds: int | None, *, resume: bool, overwrite: bool
) -> int:
    """How many folds there are; whether this folder may hold them."""
    _check(recipe, folder, resume=resume, overwrite=overwrite)
    stored = None if overwrite else _stored(folder)
    if stored is not None and resume:
        return _continued(stored, recipe, folder, folds)
    if stored is not None and any(
        RunFolder(folder / f"fold{fold}").holds_run() for fold in range(stored["folds"])
    ):
        raise UsageError(
            f"{folder} already holds {stored['folds']} folds: continue them with --resume, "
            "replace them with --overwrite, or choose another --out"
        )
    if folds is None:
        raise UsageError(f"no folds to continue in {folder}: give --folds K")
    if folds < 2:
        raise UsageError(
            f"--folds {folds}: at least two folds are needed, one to test and one to learn from"
        )
    return folds


def _check(recipe: Recipe, folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Whether folds can be trained at all."""
    need("sklearn")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "--folds trains one fold after the other in one process: under torchrun start each "
            "fold alone, --set data.folds=K data.fold=I"
        )
    if recipe.data.folds is not None or recipe.data.fold is not None:
        raise UsageError(
            "--folds trains every fold, and data.fold is set to one of them: leave one of the two "
            "out"
        )
    if resume and overwrite:
        raise UsageError(
            "resume continues the folds in the folder, overwrite deletes them: choose one"
        )
    if RunFolder(folder).holds_run():
        raise UsageError(f"{folder} holds a run that is no fold: choose another --out")


def _continued(stored: Mapping[str, Any], recipe: Recipe, folder: Path, folds: int | None) -> int:
    """How many folds the folder has; whether they are those that are asked for."""
    if folds is not None and folds != stored["folds"]:
        raise ResumeMismatch(
            f"cannot resume {folder}: it has {stored['folds']} folds, and {folds} were asked; "
            "leave --folds out"
        )
    if changed := differences(stored["recipe"], as_json(recipe)):
        raise ResumeMismatch(
            f"cannot resume {folder}: its recipe differs in {few(changed)}; give the same fields, "
            "or another --out"
        )
    return int(stored["folds"])


def _try_cuts(first: Recipe) -> None:
    """Cut all folds before the first is trained."""
    first.check()
    TASKS[first.task].open(first)


def _clear_beyond(folder: Path, count: int) -> None:
    """Delete the runs of folds beyond so many, which others left; the others are overwritten by
    `fit`.
    """
    for path in folder.glob("fold*"):
        number = path.name.removeprefix("fold")
        if number.isdecimal() and int(number) >= count and RunFolder(path).holds_run():
            if holder(path) is not None:
                raise UsageError(
                    f"another process trains in {path}: stop it, or choose another --out"
                )
            RunFolder(path).clear()


@contextmanager
def _named(fold: int, count: int, folder: Path) -> Iterator[None]:
    """An interruption says how all folds are continued."""
    try:
        yield
    except Interrupted as error:
        message = str(error).partition("; continue with")[0]
        raise Interrupted(
            f"fold {fold} of 0 to {count - 1}: {message}; continue with `softless train --resume "
            f"--out {shlex.quote(str(folder))}`",
            error.exit_code,
        ) from error


def _estimates(results: Sequence[Result]) -> dict[str, FoldEstimate]:
    """The measures that every fold has."""
    tests = [_tested(result) for result in results]
    names = [
        name for name in MEASURES if all(isinstance(test.get(name), int | float) for test in tests)
    ]
    return {
        name: FoldEstimate.of(
            [float(test[name]) for test in tests], share=MEASURES[name].percent or name == "auc"
        )
        for name in names
    }


def _tested(result: Result) -> dict[str, Any]:
    return result.test or {}


def _entry(result: Result) -> dict[str, Any]:
    return {
        "run": result.run_dir.name,
        "best_epoch": result.best_epoch,
        "epochs": result.epochs,
        "val": result.val,
        "test": result.test,
    }


def _write(folder: Path, content: Mapping[str, Any]) -> None:
    write_text(folder / FOLDS, json.dumps(content, indent=1, default=str) + "\n")
