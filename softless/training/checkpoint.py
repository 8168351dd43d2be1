"""The state of a run at the end of an epoch: written whole, read without running code, refused if it is another run's.

No generator state is stored: every epoch seeds its own from (seed, epoch, rank), and data and mixing derive from
(seed, epoch, index) and (seed, epoch, step). So the next epoch is the same whether the run was interrupted or not.
"""

from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch

from softless.errors import UsageError
from softless.evaluation.run import fill
from softless.training.run_folder import few, write_whole

if TYPE_CHECKING:
    from softless.training.setup import Run


def save(run: "Run") -> None:
    """Write checkpoint.pt after the epoch `run.epoch - 1`."""
    state = {
        "model": run.model.state_dict(),
        "ema": None if run.ema is None else run.ema.module.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scheduler": run.scheduler.state_dict(),
        "scaler": run.scaler.state_dict(),
        "epoch": run.epoch,
        "updates": run.updates,
        "best": run.best,
        "classes": list(run.splits.classes),
        "fingerprint": run.splits.fingerprint,
    }
    write_whole(run.folder.path / "checkpoint.pt", lambda path: torch.save(state, path))


def restore(run: "Run") -> None:
    """Continue from checkpoint.pt.

    Raises:
        UsageError: unreadable, or of another model, class list or data.
    """
    path = run.folder.path / "checkpoint.pt"
    state = read(path)
    fill(run.model, state["model"], path)
    if state["classes"] != list(run.splits.classes):
        both = set(state["classes"]) ^ set(run.splits.classes)
        raise UsageError(f"cannot resume {path}: the data has other classes ({few(sorted(both)) or 'another order'})")
    if state["fingerprint"] != run.splits.fingerprint:
        keys = [key for key, value in state["fingerprint"].items() if run.splits.fingerprint.get(key) != value]
        raise UsageError(f"cannot resume {path}: the data changed since ({few(keys) or 'new entries'})")
    if run.ema is not None:
        run.ema.module.load_state_dict(state["ema"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.scheduler.load_state_dict(state["scheduler"])
    run.scaler.load_state_dict(state["scaler"])
    run.epoch, run.updates, run.best = state["epoch"], state["updates"], state["best"]


def read(path: Path) -> dict[str, Any]:
    """The stored state; only tensors, numbers, texts and containers are accepted."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"cannot read the checkpoint {path}: {first}; start anew with --overwrite") from error
    return state
