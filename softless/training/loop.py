"""Training, as an algorithm: set up; per epoch train, validate, keep; at the end test the best epoch once."""

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from softless.errors import DivergedError
from softless.evaluation import evaluate
from softless.evaluation.evaluate import autocast
from softless.training import keep
from softless.training.progress import Progress
from softless.training.recipe import Recipe
from softless.training.result import Result, stored
from softless.training.run_folder import RunFolder
from softless.training.scalars import Scalars
from softless.training.setup import Run, set_up, share
from softless.training.world import join

PATIENCE = 20  # steps in a row that the float16 scaler may leave out before the run counts as diverged


def fit(
    recipe: Recipe,
    run_dir: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    progress: bool = True,
) -> Result:
    """Train a recipe and leave everything in its run folder; under torchrun, as one of its processes.

    The best epoch is chosen on the validation split; the test split is read once, at the end. On the same CPU and software
    a run that was interrupted and resumed equals, bit for bit, one that was not.

    Args:
        recipe: the run.
        run_dir: its folder, made if missing.
        resume: continue from the last finished epoch; a finished run is returned as it is.
        overwrite: delete the run that the folder holds.
        device: auto (cuda, mps or cpu, whichever is there), or a name.
        progress: show a bar, or lines where stderr is no terminal.

    Raises:
        UsageError: the recipe, the folder or the data cannot be used (DataError), or its checkpoint is another run's.
        DivergedError: loss or gradient is not finite; the last and best states on disk are from before.
    """
    folder = RunFolder(Path(run_dir))
    with join(device, recipe.threads) as world:
        world.first(lambda: folder.check(recipe, resume=resume, overwrite=overwrite))
        finished = world.first(lambda: stored(folder)) if resume else None
        if finished is not None:
            return finished
        run = set_up(recipe, folder.path, world, resume=resume, overwrite=overwrite)
        show = progress and world.is_first
        with Progress(run.epochs, len(run.loader), run.epoch, show=show) as bar, Scalars(run) as scalars:
            while run.epoch < run.epochs:
                line = run_epoch(run, bar)
                bar.epoch(line["epoch"], keep.summary(run, line))
                scalars.write(line)
        return finish(run)


def run_epoch(run: Run, bar: Progress) -> dict[str, Any]:
    """Train one epoch, validate, keep what was reached; returns the epoch's line of the log."""
    start = time.perf_counter()
    line: dict[str, Any] = {"epoch": run.epoch, **train_epoch(run, bar)}
    with bar.paused():
        line["val"] = validate(run, run.model)
        if run.ema is not None and run.recipe.ema_evaluate:
            line["val_ema"] = validate(run, run.ema.module)
    line["seconds"] = time.perf_counter() - start
    move_plateau(run, line)
    run.epoch += 1
    run.world.first(lambda: keep.epoch(run, line))
    return line


def validate(run: Run, model: nn.Module) -> dict[str, Any]:
    """Scores on the validation split."""
    return evaluate(model, run.val_loader, run.splits.classes, amp=run.recipe.amp, label="validating").summary()


def train_epoch(run: Run, bar: Progress) -> dict[str, float]:
    """One pass over the training split."""
    run.seed_epoch()
    run.loader.set_epoch(run.epoch)
    run.parallel.train()
    total, rate, start = 0.0, 0.0, time.perf_counter()
    for step, (images, targets) in enumerate(run.loader):
        lr = max(group["lr"] for group in run.optimizer.param_groups)
        loss = train_step(run, images, targets, step)
        total += loss
        rate = (step + 1) * run.recipe.batch_size / (time.perf_counter() - start)
        bar.step(run.epoch, step, loss, lr, rate)
    return {"train_loss": total / len(run.loader), "lr": lr, "images_per_second": rate}


def train_step(run: Run, images: Tensor, targets: Tensor, step: int) -> float:
    """Forward, backward, and the update if loss and gradient are finite; returns the loss over all ranks."""
    images = images.to(run.device, non_blocking=True)
    targets = targets.to(run.device, non_blocking=True)
    images, targets = run.task.mix(images, targets, epoch=run.epoch, step=step)
    with autocast(run.device, run.recipe.amp):
        loss = run.task.loss(run.parallel(images), targets)
    run.optimizer.zero_grad(set_to_none=True)
    run.scaler.scale(loss).backward()
    run.scaler.unscale_(run.optimizer)
    value = checked(run, loss, clip(run), step)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.updates += 1
    run.scheduler.step_update(run.updates)
    if run.ema is not None:
        run.ema.update(run.model)
    return value


def clip(run: Run) -> Tensor:
    """The global gradient norm, after which gradients are at most `optim.clip_grad` long."""
    parameters = [p for p in run.model.parameters() if p.grad is not None]
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    if run.recipe.optim.clip_grad is not None:
        clip_grads_with_norm_(parameters, run.recipe.optim.clip_grad, norm)
    return norm


def checked(run: Run, loss: Tensor, norm: Tensor, step: int) -> float:
    """The loss as a number; raises before the optimiser moves if it, or the gradient, is not finite.

    A float16 gradient may overflow: the scaler then leaves the step out and halves its scale.
    """
    value, length = torch.stack([run.world.mean(loss.detach().float()), norm.float()]).tolist()
    overflow = run.scaler.is_enabled() and not math.isfinite(length)
    run.skipped = run.skipped + 1 if overflow else 0
    if math.isfinite(value) and (math.isfinite(length) or (overflow and run.skipped <= PATIENCE)):
        return float(value)
    what = f"loss is {value}" if not math.isfinite(value) else f"gradient norm is {length}"
    raise DivergedError(
        f"{what} at step {step + 1} of epoch {run.epoch + 1} (lr {run.optimizer.param_groups[0]['lr']:.2e}); nothing of "
        f"this step was kept, the states in {run.folder.path} are from before. Try a lower optim.lr, optim.clip_grad=1, "
        "or amp=none"
    )


def move_plateau(run: Run, line: dict[str, Any]) -> None:
    """The one schedule that follows the validation score; the others ignore this."""
    run.scheduler.step(run.epoch + 1, keep.score(run, line)["value"])


def finish(run: Run) -> Result:
    """Read the test split once with the best weights and write the result."""
    run.model.load_state_dict(run.world.first(lambda: keep.best_weights(run)))
    outcome = None
    if run.splits.test is not None:
        loader = share(run.recipe, run.splits, run.splits.test, run.world)
        outcome = evaluate(run.model, loader, run.splits.classes, amp=run.recipe.amp, label="testing")
    return run.world.first(lambda: keep.result(run, outcome))
