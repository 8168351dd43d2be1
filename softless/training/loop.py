"""Training, as an algorithm: set up; per epoch train, validate, keep; at the end test the best
epoch once.
"""

import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from softless.errors import DataError, DivergedError, Interrupted, RankGone
from softless.experiment.candidates import best_of
from softless.experiment.claim import clear_dead
from softless.experiment.epochs import START
from softless.experiment.folder import RunFolder
from softless.experiment.recipe import Recipe
from softless.layers.own_tensors import stepped
from softless.tasks.table import open_task
from softless.training import checkpoint, keep, opening, optim
from softless.training.agreement import agree_on_command
from softless.training.epoch_state import OnEpoch
from softless.training.faults import Rewind, StepOutcome, buffers, judge, leave_out
from softless.training.gradients import backward
from softless.training.loggers import check_loggers, logging_to
from softless.training.progress import Progress
from softless.training.result import Result, stored
from softless.training.run import Partial, Run
from softless.training.settle import settled
from softless.training.setup import continue_newest, set_up
from softless.training.signals import Signals, Stop
from softless.training.world import PATIENCE, hearing, join

LOADER = "DataLoader worker"  # how torch's message of a dead one begins


def fit(
    recipe: Recipe | None,
    run_dir: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    progress: bool = True,
    on_epoch: OnEpoch | None = None,
) -> Result:
    """Train a recipe and leave everything in its run folder; under torchrun, as one of its
    processes.

    The best epoch is chosen on the validation split; the test split is read once, at the end. The
    whole state is kept at the end of every epoch and as `recipe.save` says; SIGTERM and SIGINT save
    it too. On the same CPU and software a run that was interrupted anywhere and resumed equals, bit
    for bit, one that was not. Another number of threads moves last bits, so a run keeps its own.

    Args:
        recipe: the run; None continues the one in the folder with the recipe it has, which needs
            `resume`.
        run_dir: its folder, made if missing.
        resume: continue from the newest good checkpoint; a finished run is returned as it is.
        overwrite: delete the run that the folder holds.
        device: auto (cuda, mps or cpu, whichever is there), or a name.
        progress: show a bar, or lines where stderr is no terminal.
        on_epoch: called on the first rank after each epoch, with its `EpochState`; it may end the
            run.

    Raises:
        UsageError: the recipe, the folder or the data (DataError) cannot be used, another process
            trains in the folder, it cannot be written (StorageError), its checkpoint is another
            run's (ResumeMismatch), or none is good (CheckpointError).
        DivergedError: loss or gradient is not finite; the last and best states on disk are from
            before.
        Interrupted: a signal came; the state is saved, and the error's exit_code is 143 or 130.
    """
    if recipe is not None:
        recipe.check()
        check_loggers(recipe.loggers)
    folder = RunFolder(Path(run_dir))
    patience = PATIENCE if recipe is None else recipe.rank_patience
    with (
        join(device, patience, folder.path) as world,
        Signals(ranks=world.size) as signals,
        hearing(world),
    ):
        agree_on_command(world, recipe, folder.path, resume=resume, overwrite=overwrite)
        stored_recipe = world.first(folder.recipe) if resume else None
        recipe = world.first(lambda: settled(recipe, folder, resume=resume, overwrite=overwrite))
        world.compute_with(recipe.threads)
        finished = world.first(lambda: stored(folder)) if resume else None
        if finished is not None and _nothing_left(recipe, finished):
            world.first(lambda: clear_dead(folder.path))
            return finished
        try:
            run = set_up(
                recipe,
                folder.path,
                world,
                signals,
                open_task=open_task,
                resume=resume,
                overwrite=overwrite,
                stored_recipe=stored_recipe,
            )
            run.on_epoch = on_epoch
        except Stop as stop:
            raise Interrupted(
                "a signal came before the first step: there was nothing to save",
                128 + (signals.received or signal.SIGTERM),
            ) from stop
        world.may_speak()
        with ended(run):
            try:
                with hearing(world):
                    return train(run, progress=progress)
            except Stop:
                leave(run)
            except RankGone as error:
                left_alone(run, error)


def _nothing_left(recipe: Recipe, finished: Result) -> bool:
    """Whether a finished run has all epochs that the recipe asks for, or was ended earlier."""
    planned = recipe.schedule.epochs + recipe.schedule.cooldown_epochs
    return planned <= finished.epochs or bool(finished.ended_by)


@contextmanager
def ended(run: Run) -> Iterator[None]:
    """However the run ends, its folder says so and is given back."""
    state, message = "finished", ""

    def last_words(sentence: str) -> None:
        run.world.say(sentence)
        if run.claim is not None:
            run.claim.end("stopped", sentence, epoch=run.epoch, epochs=run.epochs)

    run.signals.last_words = last_words
    try:
        yield
    except BaseException as error:
        states = {Interrupted: "stopped", DivergedError: "diverged"}
        state, message = (
            next((name for kind, name in states.items() if isinstance(error, kind)), "failed"),
            str(error),
        )
        raise
    finally:
        if run.claim is not None:
            run.claim.end(state, message, epoch=run.epoch, epochs=run.epochs)


def train(run: Run, *, progress: bool) -> Result:
    """The epochs that are left, and the test."""
    show = progress and run.world.is_first
    opening.tell(run, show=progress)
    if run.task.measured_first and run.world.first(lambda: run.best is None):
        measure_start(run, show=show)
    if run.recipe.divergence.policy == "rewind" and run.saved is None:
        run.world.first(lambda: checkpoint.save(run))
    with (
        Progress(run.epochs, len(run.loader), run.updates, show=show) as bar,
        logging_to(run) as log,
    ):
        while run.epoch < run.epochs and not keep.ended_early(run):
            line = run_epoch_or_rewind(run, bar)
            if line is not None:
                bar.epoch(line["epoch"], keep.summary(run, line))
                log(line)
    with run.rest():
        return finish(run)


def measure_start(run: Run, *, show: bool) -> None:
    """Measure the state before the first step: epoch 0, which stands for election with the
    others.

    Raises:
        DivergedError: it is not finite.
        Stop: a signal came; the start is measured again.
    """
    start = time.perf_counter()
    with loaders_watched(run), run.rest():
        scores = validate(run, run.model)
    line = {"epoch": 0, START: True, "val": scores, "weights": None}
    candidate = best_of(line, run.recipe.metric)
    if not np.isfinite(candidate["loss"]):
        raise DivergedError(
            f"the start of {run.folder.path} has no finite validation loss: its weights or images "
            "are of no use"
        )
    line |= {"weights": candidate["weights"], "seconds": time.perf_counter() - start}
    run.world.first(lambda: keep.epoch(run, line))
    if show:
        sys.stderr.write(f"epoch 0/{run.epochs}  {keep.summary(run, line)}\n")
        sys.stderr.flush()


def run_epoch_or_rewind(run: Run, bar: Progress) -> dict[str, Any] | None:
    """An epoch's line, or None where the run went back to its last checkpoint.

    Raises:
        DataError: a process that loads images died.
    """
    try:
        with loaders_watched(run):
            return run_epoch(run, bar)
    except Rewind:
        rewind(run)
        return None


@contextmanager
def loaders_watched(run: Run) -> Iterator[None]:
    """Within it the death of a process that loads images is said as that.

    Raises:
        DataError: one died; torch says so in the middle of whatever runs, so the last checkpoint
            stands.
    """
    try:
        yield
    except RuntimeError as error:
        if LOADER not in str(error):
            raise
        raise DataError(
            f"a process that loads images died at step {run.step + 1} of epoch {run.epoch + 1} "
            f"({str(error).splitlines()[0]}): it was killed, often "
            "for want of memory; continue with --resume and fewer data.workers"
        ) from error


def run_epoch(run: Run, bar: Progress) -> dict[str, Any]:
    """Train what is left of an epoch, validate, keep what was reached; returns the epoch's line of
    the log.

    Raises:
        Stop: a signal came.
    """
    start = time.perf_counter() - run.partial.seconds
    line: dict[str, Any] = {"epoch": run.epoch + 1, **train_epoch(run, bar, start)}
    with bar.paused(), run.rest():
        line["val"] = validate(run, run.model)
        if run.ema is not None and run.recipe.ema_evaluate:
            line["val_ema"] = validate(run, run.ema.module)
    line["seconds"] = time.perf_counter() - start
    line["weights"] = None  # both kinds stand for election
    candidate = best_of(line, run.recipe.metric)
    line["weights"] = candidate["weights"]
    # the one schedule that follows the score; the others ignore this
    run.scheduler.step(run.epoch + 1, candidate["value"])
    run.epoch, run.step, run.partial = run.epoch + 1, 0, Partial()
    if run.recipe.divergence.policy == "rewind":
        run.faults = 0
    run.world.first(lambda: keep.epoch(run, line))
    if run.signals.received is not None and run.world.size == 1:
        raise Stop
    return line


def validate(run: Run, model: nn.Module) -> dict[str, Any]:
    """Scores on the validation split."""
    measured = run.task.evaluated(model)
    return run.task.validate(measured, run.val_loader, amp=run.recipe.amp)


def train_epoch(run: Run, bar: Progress, start: float) -> dict[str, float]:
    """The steps that are left of a pass over the training split.

    Raises:
        Stop: a rank was sent a signal.
    """
    run.loader.set_epoch(run.epoch, run.step)
    run.learner.train()
    first, began, rate = run.step, time.perf_counter(), 0.0
    for batch in batches(run):
        step, lr = run.step, max(group["lr"] for group in run.optimizer.param_groups)
        outcome = train_step(run, batch, step)
        run.partial.loss += outcome.loss
        run.partial.lr, run.partial.seconds = lr, time.perf_counter() - start
        rate = (run.step - first) * run.recipe.step_images / (time.perf_counter() - began)
        bar.step(run.epoch, step, outcome.loss, lr, rate)
        if outcome.stop:
            raise Stop
        if outcome.save:
            run.world.first(lambda: checkpoint.save(run))
    steps_taken = len(run.loader) - sum(epoch == run.epoch for epoch, _ in run.left_out)
    return {
        "train_loss": run.partial.loss / max(steps_taken, 1),
        "lr": run.partial.lr,
        "images_per_second": rate,
    }


def batches(run: Run) -> Iterator[Any]:
    """The batches that are left of the epoch.

    Raises:
        Stop: a signal came while one was awaited.
    """
    source: Iterator[Any] | None = None
    while True:
        try:
            with run.rest():
                source = source or iter(run.loader)
                batch = next(source, None)
        except RuntimeError as error:
            if LOADER in str(error):
                time.sleep(0.2)  # a signal to all processes may reach a loader first
                if run.signals.received is not None:
                    raise Stop from error
            raise
        if batch is None:
            return
        yield batch


def train_step(run: Run, batch: Any, step: int) -> StepOutcome:
    """Forward, backward, and the update if loss and gradient are finite; what was seen is the same
    on all ranks.

    All exchanges between ranks come before the update, so where one fails the step can be undone.

    Raises:
        RankGone: another rank is gone; model and optimizer are as they were before the step.
    """
    run.seed_step(step)
    if (run.epoch, step) in run.left_out:
        return moved_on(run, look(run, None, None))
    before = buffers(run)
    try:
        with hearing(run.world):
            outcome = exchanged(run, batch, step)
    except RankGone:
        leave_out(run, before)
        raise
    if judge(run, outcome, step):
        run.scaler.step(run.optimizer)
        run.scaler.update()
        run.task.after_step(run.model, run.progress)
        stepped(run.model)
        if run.ema is not None:
            run.ema.update(run.model, run.updates)
    else:
        leave_out(run, before)
        run.left_out.add((run.epoch, step))
        outcome = replace(outcome, loss=0.0)
    return moved_on(run, outcome)


def exchanged(run: Run, batch: Any, step: int) -> StepOutcome:
    """Forward and backward, gradients averaged over the ranks; what was seen of them."""
    prepared = run.task.prepare(batch, run.device, epoch=run.epoch, step=step)
    run.optimizer.zero_grad(set_to_none=True)
    loss = backward(
        run.task,
        run.learner,
        prepared,
        parts=run.recipe.accumulate,
        amp=run.recipe.amp,
        device=run.device,
        scaler=run.scaler,
    )
    run.scaler.unscale_(run.optimizer)
    run.task.before_step(run.model, run.optimizer, run.progress)
    return look(run, loss, clip(run))


def moved_on(run: Run, outcome: StepOutcome) -> StepOutcome:
    """The step is done, taken or left out."""
    run.updates += 1
    run.step += 1
    run.scheduler.step_update(optim.moment(run.recipe, run.updates, len(run.loader)))
    return outcome


def clip(run: Run) -> Tensor:
    """The global gradient norm (), after which gradients are at most `optim.clip_grad` long."""
    parameters = [p for p in run.model.parameters() if p.grad is not None]
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    if run.recipe.optim.clip_grad is not None:
        clip_grads_with_norm_(parameters, run.recipe.optim.clip_grad, norm)
    return norm


def look(run: Run, loss: Tensor | None, norm: Tensor | None) -> StepOutcome:
    """Loss and gradient over all ranks, and whether one of them wants to save or to stop, in one
    exchange.

    Args:
        run: the run.
        loss: () of this rank; None in a step that is left out.
        norm: () of the gradient, which is the same on all ranks; None likewise.
    """
    wishes = (float(due(run)), float(run.signals.received is not None))
    mine = torch.tensor([0.0, *wishes], device=run.device)
    if loss is not None:
        mine[0] = loss
    length = torch.zeros((), device=run.device) if norm is None else norm.float()
    value, save, stop, gradient_norm = torch.cat([run.world.mean(mine), length.reshape(1)]).tolist()
    return StepOutcome(value, gradient_norm, save > 0, stop > 0)


def due(run: Run) -> bool:
    """Whether this process wants a checkpoint after the step under way."""
    spec = run.recipe.save
    by_steps = spec.every_steps is not None and (run.updates + 1) % spec.every_steps == 0
    by_time = (
        spec.every_seconds is not None and time.monotonic() - run.saved_at > spec.every_seconds
    )
    return run.world.is_first and (by_steps or by_time)


def rewind(run: Run) -> None:
    """Back to the last checkpoint, with the step that was not finite marked to be left out."""
    left_out, faults = run.left_out | {(run.epoch, run.step)}, run.faults
    continue_newest(run)
    run.left_out, run.faults, run.skipped = left_out, faults, 0
    run.world.first(lambda: run.folder.rewind_log(run.logged))


def leave(run: Run) -> NoReturn:
    """Save where the run stands and end it, as the signal asked.

    Raises:
        Interrupted: always; its exit code is 128 + the signal's number.
    """
    run.signals.heard()
    run.world.first(lambda: checkpoint.save(run))
    came = [number for number in run.world.gather(run.signals.received) if number is not None]
    number = came[0] if came else signal.SIGTERM
    raise Interrupted(
        f"{number.name} at step {run.step} of epoch {min(run.epoch + 1, run.epochs)}: the state "
        f"is saved in {run.checkpoints.folder}; "
        f"continue with `softless train --resume --out {shlex.quote(str(run.folder.path))}`",
        128 + number,
    )


def left_alone(run: Run, error: RankGone) -> NoReturn:
    """Save where the run stands, which is after the last whole step, if this is the rank that
    saves; and end it.

    Raises:
        RankGone: always; it says how the run is continued.
    """
    again = f"continue with `softless train --resume --out {shlex.quote(str(run.folder.path))}`"
    if run.world.is_first:
        checkpoint.save(run)
        again = (
            f"the state after step {run.step} of epoch {min(run.epoch + 1, run.epochs)} is "
            f"saved; {again}"
        )
    raise RankGone(f"{error}: {again}") from error


def finish(run: Run) -> Result:
    """Read the test split once with the best weights and write the result."""
    measured = run.task.evaluated(run.model)
    measured.load_state_dict(run.world.first(lambda: keep.best_weights(run)))
    outcome = None
    if run.splits.test is not None:
        loader = run.task.eval_loader(run.splits.test, run.world.rank, run.world.size)
        outcome = run.task.evaluate(measured, loader, amp=run.recipe.amp, label="testing")
    return run.world.first(lambda: keep.result(run, outcome))
