"""Everything a run holds while it trains, made from its recipe."""

import os
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from softless import origin
from softless.errors import CheckpointError
from softless.experiment import claim
from softless.experiment.checkpoints import Checkpoints
from softless.experiment.claim import Claim
from softless.experiment.configuration import written
from softless.experiment.folder import (
    CHECKPOINTS,
    CLASSES,
    LEFT_OUT,
    RECIPE,
    RECIPE_YAML,
    RESULT,
    SPLITS,
    RunFolder,
)
from softless.experiment.recipe import Recipe, as_json
from softless.experiment.started import RECOVERED
from softless.models.durable import delete, write_text
from softless.tasks.task import Task
from softless.training import checkpoint, optim, split_table
from softless.training.about import write_about
from softless.training.agreement import agree_on_steps, opened_alike
from softless.training.best import write_best
from softless.training.model import build_for, origin_for
from softless.training.recovered import recovered
from softless.training.run import Run
from softless.training.settle import data_are_there, with_loaders
from softless.training.signals import Signals
from softless.training.world import World


def set_up(
    recipe: Recipe,
    path: Path,
    world: World,
    signals: Signals,
    *,
    open_task: Callable[[Recipe], Task],
    resume: bool,
    overwrite: bool,
    stored_recipe: Recipe | None = None,
) -> Run:
    """Open the data, build the model, take the folder; continue from its checkpoint if `resume`.

    `open_task` opens a recipe's data. `stored_recipe` is what lay in the folder when the command
    began, on the first rank, where it is continued. Nothing in the folder is touched before data
    and model are known to be usable.
    """
    if resume:
        data_are_there(recipe, path)
    with signals.interruptible(alone=world.size == 1):
        run = _assembled(recipe, RunFolder(path), world, signals, open_task, resume=resume)
    world.first(lambda: _take(run, stored_recipe, resume=resume, overwrite=overwrite))
    try:
        if resume:
            continue_newest(run)
        world.first(lambda: _describe(run))
    except BaseException as error:
        if run.claim is not None:
            run.claim.end("failed", str(error))
        raise
    return run


def _assembled(
    requested: Recipe,
    folder: RunFolder,
    world: World,
    signals: Signals,
    open_task: Callable[[Recipe], Task],
    *,
    resume: bool,
) -> Run:
    checkpoints = Checkpoints(folder.path / CHECKPOINTS, requested.save.keep)
    task = opened_alike(world, requested, open_task)
    recipe = task.recipe = world.first(lambda: with_loaders(task.recipe, task, world))
    requested = replace(requested, data=recipe.data)  # with the loaders that were settled on
    continued = world.first(lambda: resume and bool(checkpoints.positions()))
    record: dict[str, Any] = {}

    def recover(built: nn.Module) -> None:
        record.update(recovered(task, built, world, lambda: origin_for(task)))

    model = build_for(
        task,
        drawn=continued,
        recover=None if continued else recover,
    )
    model = world.synced(model.to(world.device))
    optimizer = optim.optimizer(recipe, model)
    loader = task.train_loader(world.rank, world.size)
    scheduler, epochs = optim.scheduler(recipe, optimizer, len(loader))
    agree_on_steps(world, len(loader), epochs)
    task.to(world.device)
    return Run(
        requested=requested,
        recipe=recipe,
        folder=folder,
        world=world,
        task=task,
        model=model,
        learner=world.parallel(task.learner(model)),
        ema=optim.averaged(recipe, model),
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=torch.amp.GradScaler(world.device.type, enabled=recipe.amp == "float16"),
        loader=loader,
        val_loader=task.eval_loader(task.splits.val, world.rank, world.size),
        epochs=epochs,
        signals=signals,
        checkpoints=checkpoints,
        recovered=record,
    )


def continue_newest(run: Run) -> bool:
    """Put the run where its newest good checkpoint is; whether there is one.

    Raises:
        CheckpointError: none of those that are there is good, or the ranks do not see the same.
        ResumeMismatch: it is another run's.
    """
    stored = run.checkpoints.newest()
    if stored is not None:
        checkpoint.restore(run, stored)
    if run.world.first(lambda: run.updates) != run.updates:
        raise CheckpointError(
            f"the processes of this run see different checkpoints in {run.checkpoints.folder}: "
            "give them one folder"
        )
    if stored is None:
        run.world.first(run.folder.check_unfinished)
    run.world.first(run.checkpoints.set_aside)
    return stored is not None


def _take(run: Run, stored_recipe: Recipe | None, *, resume: bool, overwrite: bool) -> None:
    """Take the folder, with room for the checkpoints; delete the run it held if that was asked.

    Opening the data may have taken long: once the folder is held, what it holds is looked at again.
    """

    def look() -> None:
        if resume:
            run.folder.check_same(stored_recipe)
        else:
            run.folder.check(run.requested, resume=False, overwrite=overwrite)

    run.folder.make()
    run.claim = Claim.take(run.folder.path, look, lambda: run.signals.received or 0)
    try:
        if overwrite:
            run.folder.clear()
        claim.sweep(run.folder.path)
        run.folder.sweep()
        run.checkpoints.sweep()
        size = sum(
            parameter.numel() * parameter.element_size() for parameter in run.model.parameters()
        )
        run.folder.check_room(size, run.checkpoints.keep)
    except BaseException as error:
        run.claim.end("failed", str(error))
        raise


def _describe(run: Run) -> None:
    """What the folder says of the run; logs and best weights go back to where the state is."""
    run.folder.rewind_log(run.logged)
    fitted = {name: new_value for name, (_, new_value) in run.task.fitted.changed.items()}
    content = {**as_json(run.requested), "fitted": fitted}
    run.folder.write_json(RECIPE, {**content, **origin.versions(), "machine": machine(run.device)})
    write_text(run.folder.path / RECIPE_YAML, written(run.requested))
    run.folder.write_json(CLASSES, list(run.splits.classes))
    write_about(run)
    if run.recovered:
        run.folder.write_json(RECOVERED, run.recovered)
    write_text(run.folder.path / SPLITS, split_table.written(run.splits), errors="backslashreplace")
    if run.epoch < run.epochs:
        delete(run.folder.path / RESULT)  # of a run that was finished and is made longer
    if run.splits.left_out:
        rows = {
            part: [fault.row(annotated=False) for fault in faults]
            for part, faults in run.splits.left_out.items()
        }
        run.folder.write_json(LEFT_OUT, rows)
    if run.best is not None:
        write_best(run)


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, threads and device, for whoever compares seconds."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": name,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
