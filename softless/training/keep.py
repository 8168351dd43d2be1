"""What a run keeps: a line per epoch, the last state, the best weights, and at the end its result."""

import logging
import shutil
import statistics
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import Tensor

from softless.errors import DivergedError, UsageError
from softless.evaluation.measures import MEASURES
from softless.models.publish import save_weights
from softless.tasks import Outcome
from softless.training import checkpoint
from softless.training.best import take_best
from softless.training.result import Result
from softless.training.run_folder import MODEL, RESULT
from softless.training.setup import Run

_log = logging.getLogger("softless.training")


def epoch(run: Run, line: dict[str, Any]) -> None:
    """Log the epoch, keep its weights if they are the best, then the whole state with the next epoch's start.

    The state comes last: a crash before it repeats the end of the epoch, which writes the same line and the same weights again.
    """
    run.folder.log(line)
    candidate = score(run, line)
    if _finite(candidate, "loss") and not _finite(candidate, "value"):
        raise UsageError(
            f"{run.recipe.metric} cannot be computed on this validation split of {line['val']['seen']} images, so no epoch "
            "can be chosen by it: set metric=loss or metric=top1"
        )
    if better(candidate, run.best):
        run.best = candidate
        take_best(run)
    checkpoint.save(run)


def score(run: Run, line: dict[str, Any]) -> dict[str, Any]:
    """The epoch's value of `recipe.metric` on the validation split, of the weights that the recipe evaluates."""
    val = line["val_ema" if run.recipe.ema_evaluate else "val"]
    value = line["epoch"] if run.recipe.metric == "last" else val[run.recipe.metric]
    return {"epoch": line["epoch"], "metric": run.recipe.metric, "value": value, "loss": val.get("loss", 0.0)}


def better(new: dict[str, Any], old: dict[str, Any] | None) -> bool:
    """Whether the epoch beats the best so far; equal values are decided by the loss. What is not finite never wins.

    On a few hundred validation images several epochs reach the same accuracy, and the one of lower loss is the surer. Tasks that
    measure no loss in validation keep the earlier epoch.
    """
    if not _finite(new, "value", "loss"):
        return False
    return old is None or _rank(new) > _rank(old)


def _finite(found: dict[str, Any], *keys: str) -> bool:
    return all(found[key] is not None and np.isfinite(found[key]) for key in keys)


def _rank(found: dict[str, Any]) -> tuple[float, float]:
    sign = 1.0 if MEASURES[found["metric"]].higher else -1.0
    return sign * found["value"], -found["loss"]


def best_weights(run: Run) -> dict[str, Tensor]:
    """The weights of the best epoch.

    Raises:
        DivergedError: no epoch had a finite validation loss.
    """
    if run.best is None or run.best_weights is None:
        raise DivergedError(
            f"no epoch of {run.folder.path} has a finite validation loss: nothing can be chosen. Try a lower optim.lr or amp=none"
        )
    return run.best_weights


def result(run: Run, outcome: Outcome | None) -> Result:
    """Write result.json and the answers to the test split."""
    assert run.best is not None
    lines = run.folder.epochs()
    reached = Result(
        run_dir=run.folder.path,
        best_epoch=run.best["epoch"],
        epochs=run.epochs,
        val=lines[run.best["epoch"]]["val_ema" if run.recipe.ema_evaluate else "val"],
        test=None if outcome is None else {**outcome.summary(), **_details(outcome)},
        seconds=sum(line["seconds"] for line in lines),
        images_per_second=statistics.median(line["images_per_second"] for line in lines),
        parameters=sum(parameter.numel() for parameter in run.task.evaluated(run.model).parameters()),
        left_out={part: len(faults) for part, faults in run.splits.left_out.items()},
    )
    if outcome is not None:
        assert run.splits.test is not None
        outcome.write(run.folder.path, run.splits.test)
    publish(run)
    run.folder.write_json(RESULT, {key: value for key, value in asdict(reached).items() if key != "run_dir"})
    return reached


def publish(run: Run) -> None:
    """The best weights, which the model holds now, as a folder for timm's `local-dir:`."""
    folder, data = run.folder.path / MODEL, run.recipe.data
    model = run.task.published(run.task.evaluated(run.model))
    if model is None:
        return
    shutil.rmtree(folder, ignore_errors=True)
    about = {
        "input_size": (run.splits.in_chans, data.image_size, data.image_size),
        "mean": tuple(run.splits.mean),
        "std": tuple(run.splits.std),
        "crop_pct": data.crop_pct,
        "interpolation": data.interpolation,
    }
    try:
        save_weights(model, folder, data=about)
    except UsageError as error:  # the run itself is whole
        _log.warning("no folder for timm's local-dir: is left: %s", error)


def _details(outcome: Outcome) -> dict[str, Any]:
    """What the result says beside the summary."""
    told = outcome.to_dict()
    return {name: told[name] for name in ("interval", "per_class") if told.get(name) is not None}


def summary(run: Run, line: dict[str, Any]) -> str:
    """The epoch for people: losses, the metric that chooses, the rate."""
    val = line["val_ema" if run.recipe.ema_evaluate else "val"]
    loss = f"  val loss {val['loss']:.3f}" if "loss" in val else ""
    metric = run.recipe.metric
    if metric == "last":
        chosen = ""
    else:
        value = val[metric]
        chosen = f"  val {metric} {'n/a' if value is None else format(value, '.4f')}"
    mark = "  best" if run.best is not None and run.best["epoch"] == line["epoch"] and metric != "last" else ""
    return f"loss {line['train_loss']:.3f}{loss}{chosen}{mark}  lr {line['lr']:.1e}  {line['images_per_second']:,.0f} images/s"
