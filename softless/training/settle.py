"""What a run decides once, before its first step, and writes into recipe.json: places, threads and
processes that load images.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from softless.errors import DataError, UsageError
from softless.experiment.folder import RECIPE, RunFolder, changes
from softless.experiment.recipe import Recipe, read_stored
from softless.models.create import FOLDER
from softless.tasks.task import Task
from softless.training import machine
from softless.training.result import stored
from softless.training.world import World

_log = logging.getLogger("softless.training")


def settled(recipe: Recipe | None, folder: RunFolder, *, resume: bool, overwrite: bool) -> Recipe:
    """The recipe that a run in this folder trains, with paths from the root and a number of
    threads.

    A run that is continued needs no recipe, and keeps what it decided at its start; what is given
    anew and may change is said.

    Raises:
        UsageError: no recipe and nothing to continue, or a folder that this run may not have.
    """
    previous = folder.recipe() if resume else None
    if recipe is None and previous is None:
        raise UsageError(
            f"no run to continue in {folder.path}: give a recipe to start one there, or the run's "
            "folder"
        )
    chosen = located(recipe or previous)  # type: ignore[arg-type]  # one of them is there
    longer = None if previous is None else extended(previous, chosen, folder)
    requested = (
        chosen
        if longer is None or previous is None
        else replace(chosen, schedule=previous.schedule)
    )
    folder.check(requested, resume=resume, overwrite=overwrite)
    chosen = longer or chosen
    if previous is None:
        return chosen if chosen.threads is not None else replace(chosen, threads=machine.threads())
    settled_recipe = kept_from(previous, chosen)
    for change in changes(previous, settled_recipe):
        _log.warning("%s", change)
    _say_other_machine(
        previous,
        settled_recipe,
        explicit=recipe is not None and recipe.threads not in {None, previous.threads},
    )
    return settled_recipe


def extended(previous: Recipe, requested: Recipe, folder: RunFolder) -> Recipe | None:
    """What was asked, where it is the run in the folder with more epochs; otherwise None.

    The longer schedule begins as the run did: what was fitted to the data at its start
    (`tasks.lengths`) stays.

    Raises:
        UsageError: the run has as many epochs already, or something ended it.
    """
    same: dict[str, Any] = {
        "epochs": previous.schedule.epochs,
        "min_steps": previous.schedule.min_steps,
    }
    if (
        requested.schedule.epochs == previous.schedule.epochs
        or replace(requested.schedule, **same) != previous.schedule
    ):
        return None
    fitted: dict[str, Any] = {
        name.removeprefix("schedule."): tuple(value) if isinstance(value, list) else value
        for name, value in read_stored(folder.path / RECIPE).fitted.items()
        if name.startswith("schedule.")
    }
    previous_epochs = fitted.pop("epochs", previous.schedule.epochs)
    done = stored(folder)
    if done is not None and done.ended_by:
        raise UsageError(
            f"the run in {folder.path} was ended by {done.ended_by} after {done.epochs} of "
            f"{done.planned} epochs, "
            "and more would be ended likewise: start another run without it"
        )
    if requested.schedule.epochs <= previous_epochs:
        raise UsageError(
            f"schedule.epochs={requested.schedule.epochs}: the run in {folder.path} has "
            f"{previous_epochs} epochs, and a run that is continued can only "
            f"be made longer: set more than {previous_epochs}, or start another run with "
            "another --out"
        )
    _log.warning(
        "the run is made longer: %d epochs, %d before", requested.schedule.epochs, previous_epochs
    )
    return replace(requested, schedule=replace(requested.schedule, min_steps=None, **fitted))


def located(recipe: Recipe) -> Recipe:
    """The recipe with its paths from the root, so that the run finds them again from any folder.

    Folders below the data (`segmentation.labels`, `fov`, `observer`) are named from there and stay
    as they are.
    """
    data, table, model = recipe.data, recipe.table, recipe.model
    if data.path:
        data = replace(data, path=from_root(data.path))
    if model.weights:
        model = replace(model, weights=from_root(model.weights.removeprefix(FOLDER)))
    if table is not None:
        files = {name: getattr(table, name, None) for name in ("path", "slides", "splits")}
        rooted: Any = {name: from_root(file) for name, file in files.items() if file}
        table = replace(table, **rooted)
    return replace(recipe, data=data, table=table, model=model)


def data_are_there(recipe: Recipe, run_dir: Path) -> None:
    """Whether the data of a run to continue lie where its recipe says.

    Raises:
        DataError: they do not; the way out is named.
    """
    if recipe.data.path and not Path(recipe.data.path).exists():
        raise DataError(
            f"the data of the run {run_dir} are not at {recipe.data.path}: say where they are now "
            "with --data PATH (data.path)"
        )
    if recipe.table is not None and not Path(recipe.table.path or "").is_file():
        raise DataError(
            f"the table of the run {run_dir} is not at {recipe.table.path}: say where it is now "
            "with --table FILE (table.path)"
        )


def from_root(path: str | Path) -> str:
    """The same place by its whole path; links are followed only where the path goes up."""
    named = Path(path).expanduser()
    return str(named.resolve() if ".." in named.parts else named.absolute())


def kept_from(previous: Recipe, requested: Recipe) -> Recipe:
    """What was asked, with the threads and loading processes of the run's start where nothing else
    is asked.
    """
    workers = previous.data.workers if requested.data.workers is None else requested.data.workers
    threads = previous.threads if requested.threads is None else requested.threads
    return replace(
        requested,
        data=replace(requested.data, workers=workers),
        threads=threads or machine.threads(),
    )


def with_loaders(recipe: Recipe, task: Task, world: World) -> Recipe:
    """The recipe with a number of processes that load images, now that the images are known."""
    if recipe.data.workers is not None:
        return recipe
    height, width = task.pixels()
    images = max(recipe.step_images // world.size, 1)
    workers = machine.loaders(
        source=recipe.data.source,
        images=len(task.splits.train),
        batch_bytes=4 * images * task.splits.in_chans * height * width,
        on_cpu=world.device.type == "cpu",
    )
    return replace(recipe, data=replace(recipe.data, workers=workers))


def _say_other_machine(previous: Recipe, settled_recipe: Recipe, *, explicit: bool) -> None:
    available = machine.threads()
    if (
        not explicit
        and settled_recipe.threads == previous.threads
        and previous.threads != available
    ):
        _log.warning(
            "the run keeps the %d threads of its start, and this machine gives %d: --set "
            "threads=%d takes those",
            previous.threads,
            available,
            available,
        )
