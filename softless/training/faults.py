"""What happens when a loss or a gradient is not finite: it is written down, and the run stops,
leaves the step out, or goes back.
"""

import json
import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softless.errors import DivergedError
from softless.models.durable import write_text
from softless.training.run import Run

# steps in a row that the float16 scaler may leave out before the run counts as diverged
PATIENCE = 20
_log = logging.getLogger("softless.training")


class Rewind(Exception):
    """The step is not finite, and the recipe says to go back to the last checkpoint."""


@dataclass(frozen=True)
class StepOutcome:
    """A step before the optimiser moves, the same on all ranks."""

    loss: float
    norm: float  # of the gradient
    save: bool  # a checkpoint is due
    stop: bool  # a rank was sent a signal


def judge(run: Run, outcome: StepOutcome, step: int) -> bool:
    """Whether the optimiser may move. A float16 gradient may overflow: the scaler then leaves the
    step out and halves its scale.

    Raises:
        DivergedError: it may not, and the recipe's policy is to stop, or its patience is at an end.
        Rewind: it may not, and the run goes back to its last checkpoint.
    """
    overflow = run.scaler.is_enabled() and not math.isfinite(outcome.norm)
    run.skipped = run.skipped + 1 if overflow else 0
    if math.isfinite(outcome.loss) and (
        math.isfinite(outcome.norm) or (overflow and run.skipped <= PATIENCE)
    ):
        if run.recipe.divergence.policy == "skip":
            run.faults = 0
        return True
    reason = (
        f"loss is {outcome.loss}"
        if not math.isfinite(outcome.loss)
        else f"gradient norm is {outcome.norm}"
    )
    position = f"step {step + 1} of epoch {run.epoch + 1}"
    dump = run.world.first(lambda: _write_down(run, outcome, step))
    run.faults += 1
    policy, patience = run.recipe.divergence.policy, run.recipe.divergence.patience
    if policy == "stop" or run.faults > patience:
        tried = (
            "" if policy == "stop" else f"; divergence.policy={policy} was tried {patience} times"
        )
        raise DivergedError(
            f"{reason} at {position} (lr {run.optimizer.param_groups[0]['lr']:.2e}){tried}; "
            "nothing of this step was kept, the states in "
            f"{run.folder.path} are from before, {dump} names its images. Try a lower optim.lr, "
            "optim.clip_grad=1, or amp=none"
        )
    if policy == "rewind":
        _log.warning(
            "%s at %s: going back to the last checkpoint; %s names its images",
            reason,
            position,
            dump,
        )
        raise Rewind
    _log.warning("%s at %s: the step is left out; %s names its images", reason, position, dump)
    return False


def buffers(run: Run) -> list[Tensor] | None:
    """Copies of the model's buffers, of any shape, before a step that may be left out: a forward
    pass moves running means. None where no step is ever left out.
    """
    if run.recipe.divergence.policy != "skip" and run.world.size == 1:
        return None
    return [buffer.clone() for buffer in run.model.buffers()]


@torch.no_grad()
def leave_out(run: Run, before: list[Tensor] | None) -> None:
    """Undo what forward and backward pass did; `before`, of any shape, is what `buffers` gave."""
    run.optimizer.zero_grad(set_to_none=True)
    for buffer, was in zip(run.model.buffers(), before or (), strict=False):
        buffer.copy_(was)
    if run.scaler.is_enabled():
        run.scaler.update()  # forgets this step's overflow


def _write_down(run: Run, outcome: StepOutcome, step: int) -> str:
    """Write what is known of the step; returns the file's name."""
    order: Any = run.loader.batch_sampler
    positions = order.positions()[step * order.batch : (step + 1) * order.batch].tolist()
    samples = run.splits.train
    content = {
        "epoch": run.epoch + 1,
        "step": step + 1,
        "updates": run.updates,
        "loss": str(outcome.loss),
        "gradient_norm": str(outcome.norm),
        "lr": run.optimizer.param_groups[0]["lr"],
        "scale": run.scaler.get_scale(),
        "policy": run.recipe.divergence.policy,
        "samples": [samples.name(position % len(samples)) for position in positions],
    }
    name = f"diverged-e{run.epoch + 1:04d}-s{step + 1:06d}.json"
    write_text(run.folder.path / name, json.dumps(content, indent=1) + "\n")
    return name
