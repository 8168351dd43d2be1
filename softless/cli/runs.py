"""`softless runs`: the runs below a folder, how each stands, and how to go on with it."""

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from softless.errors import DataError, located
from softless.experiment.candidates import KEYS, Candidate, best_of, better
from softless.experiment.checkpoints import Checkpoints
from softless.experiment.claim import holder
from softless.experiment.epochs import of_epoch
from softless.experiment.files import read_log, read_result
from softless.experiment.folder import CHECKPOINTS, FOLDERS, LOG, RECIPE, RESULT, STATE
from softless.experiment.measures import MEASURES, against
from softless.experiment.recipe import read_stored
from softless.models.records import read_json
from softless.words import table, visible


@dataclass(frozen=True)
class RunState:
    """One run."""

    run: str
    recipe: str
    state: str  # running, finished, stopped, diverged, failed, killed, damaged
    epoch: int  # finished ones
    epochs: int
    steps: int  # updates in the newest checkpoint
    value: float | None  # of the metric that chooses, at its best
    metric: str
    against: str  # what an accuracy is held against: the commonest class and chance, or nothing
    since: str  # of the state, UTC
    how: str  # to continue, or what it said

    @property
    def best(self) -> str:
        """The value in words."""
        if self.value is None:
            return ""
        if self.metric == "last":
            return f"epoch {self.value:.0f}, the last"
        return f"{self.metric} {self.value:.4f}" + (f" ({self.against})" if self.against else "")


@dataclass(frozen=True)
class Runs:
    """All of them; prints as a table."""

    folder: str
    runs: tuple[RunState, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"folder": self.folder, "runs": [asdict(run) for run in self.runs]}

    def __str__(self) -> str:
        if not self.runs:
            return f"no runs below {self.folder}"
        rows = [
            [
                run.run,
                run.state,
                f"{run.epoch}/{run.epochs}",
                run.steps,
                run.best,
                run.since.replace("T", " ").removesuffix("+00:00"),
            ]
            for run in self.runs
        ]
        remarks = [visible(f"{run.run}: {run.how}") for run in self.runs if run.how]
        return "\n".join([
            table(["run", "state", "epochs", "steps", "best", "since (UTC)"], rows),
            *([""] if remarks else []),
            *remarks,
        ])


def runs(folder: str | Path = "runs") -> Runs:
    """List the runs below a folder: running, finished, stopped by a signal, diverged, failed or
    killed, and how to continue.

    Args:
        folder: a run's folder, or one that holds some at any depth.

    Returns:
        A line for each run.

    Raises:
        DataError: there is no such folder.

    Examples:
        >>> print(softless.runs("runs"))
        run ...
        runs/digits  finished ...
    """
    root = located(folder)
    if not root.is_dir():
        raise DataError(f"no folder at {root}: name the one that `softless train --out` wrote into")
    return Runs(str(root), tuple(map(_state, sorted(_folders_of_runs(root)))))


def _folders_of_runs(root: Path) -> Iterator[Path]:
    """The folders at or below one that hold a recipe; links to folders are not followed."""
    for folder, inside, files in os.walk(root):
        if RECIPE in files:
            yield Path(folder)
            inside[:] = [name for name in inside if name not in FOLDERS]


def _state(path: Path) -> RunState:
    noted = _noted(path / STATE)
    try:
        stored = read_stored(path / RECIPE)
        lines = read_log(path / LOG) if (path / LOG).exists() else []
        best = _best(lines, stored.recipe.metric)
    except DataError as error:  # the others are listed all the same
        return _damaged(path, noted, str(error))
    state = _how_it_stands(path, noted)
    places = Checkpoints(path / CHECKPOINTS).positions()
    return RunState(
        run=str(path),
        recipe=stored.recipe.name,
        state=state,
        epoch=lines[-1]["epoch"] if lines else 0,
        epochs=stored.epochs,
        steps=places[0][0] if places else 0,
        value=None if best is None else float(best["value"]),
        metric=stored.recipe.metric,
        against=_against(lines, best),
        since=str(noted.get("since", "")),
        how=_how(path, state, noted),
    )


def _damaged(path: Path, noted: Mapping[str, Any], why: str) -> RunState:
    return RunState(
        str(path), "?", "damaged", 0, 0, 0, None, "", "", str(noted.get("since", "")), why
    )


def _how_it_stands(path: Path, noted: Mapping[str, Any]) -> str:
    if holder(path) is not None:
        return "running"
    if (path / RESULT).exists():
        return "finished"
    state = str(noted.get("state", "killed"))
    return "killed" if state == "running" else state


def _how(path: Path, state: str, noted: Mapping[str, Any]) -> str:
    command = f"softless train --out {shlex.quote(str(path))} --resume"
    message = str(noted.get("said", ""))
    return {
        "running": f"process {noted.get('pid')} on {noted.get('host')}",
        "finished": _early(path),
        "stopped": f"continue with {command}",
        "killed": f"its process is gone; continue with {command}",
        "diverged": message,
    }.get(state, f"{message}; then {command}")


def _early(path: Path) -> str:
    """What ended a finished run before its last epoch, where something did."""
    try:
        result = read_result(path / RESULT)
    except DataError as error:
        return str(error)
    cause = result.get("ended_by")
    return f"ended by {cause}, {result.get('planned')} epochs were planned" if cause else ""


def _best(lines: Sequence[Mapping[str, Any]], metric: str) -> Candidate | None:
    """The best epoch so far, as the run itself chooses it."""
    best: Candidate | None = None
    for line in lines if metric in MEASURES else ():
        if better(candidate := best_of(line, metric), best):
            best = candidate
    return best


ACCURACIES = frozenset({"top1", "balanced_accuracy"})


def _against(lines: Sequence[Mapping[str, Any]], best: Candidate | None) -> str:
    """What the best epoch's accuracy is held against, where the run wrote it down."""
    if best is None or best["metric"] not in ACCURACIES:
        return ""
    return against(of_epoch(lines, best["epoch"]).get(KEYS[best["weights"]], {}))


def _noted(path: Path) -> dict[str, Any]:
    """state.json, which is for people: without it a run is judged by its other files."""
    try:
        content: dict[str, Any] = read_json(path)
    except DataError:
        return {}
    return content
