"""What a run keeps: a line per epoch, the last state, the best weights, and at the end its
result.
"""

import logging
import statistics
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from softless.errors import DivergedError, StorageError, UsageError
from softless.experiment.candidates import KEYS, best_of, better, finite, gain, still_rising
from softless.experiment.epochs import COUNTED, START, of_epoch
from softless.experiment.folder import MODEL, RESULT
from softless.experiment.groups import LISTED
from softless.experiment.measures import describe
from softless.models.durable import delete_folder
from softless.models.publish import save_weights
from softless.tasks.task import Outcome
from softless.training import checkpoint
from softless.training.batch_norm import alone
from softless.training.best import take_best
from softless.training.epoch_state import EpochState
from softless.training.result import Result
from softless.training.run import Run
from softless.words import rate

# of an outcome: what follows from the answers beside it and from the recipe
LEFT_OUT = {
    "confusion",
    "classes",
    "detections",
    "collapsed",
}
_log = logging.getLogger("softless.training")


def epoch(run: Run, line: dict[str, Any]) -> None:
    """Log the epoch, keep its weights if they are the best, then the whole state with the next
    epoch's start.

    The state comes last: a crash before it repeats the end of the epoch, which writes the same line
    and the same weights again.

    Raises:
        UsageError: the recipe's measure has no value on this validation split.
        DivergedError: weights that are not finite.
    """
    run.check_finite()
    candidate = best_of(line, run.recipe.metric)
    if np.isfinite(candidate["loss"]) and not finite(candidate):
        raise UsageError(
            f"{run.recipe.metric} cannot be computed on this validation split of "
            f"{line['val']['seen']} {run.recipe.unit}, so no epoch "
            f"can be chosen by it: set {_usable_measures(run, line['val'])}"
        )
    line["kept"] = better(candidate, run.best)
    run.folder.log(line)
    if line["kept"]:
        run.best = candidate
        take_best(run)
    if run.on_epoch is not None and not line.get(START):
        _call(run, line)
    checkpoint.save(run)


def _call(run: Run, line: Mapping[str, Any]) -> None:
    assert run.on_epoch is not None
    state = EpochState(run.epoch, run.epochs, dict(line), run.best, run.model, run.folder.path)
    run.on_epoch(state)
    if state.stopped:
        run.ended_by = "on_epoch"


def ended_early(run: Run) -> bool:
    """Whether the run ends here, as all ranks agree: `on_epoch` asked for it, or
    `schedule.patience` is over.
    """
    if run.recipe.schedule.patience is None and not run.world.first(
        lambda: run.on_epoch is not None or run.ended_by
    ):
        return False
    run.ended_by = run.world.first(
        lambda: run.ended_by or ("schedule.patience" if _patience_over(run) else "")
    )
    return bool(run.ended_by)


def _patience_over(run: Run) -> bool:
    """Whether so many epochs have passed since the best one, or since the warm-up where that ended
    later.
    """
    spec = run.recipe.schedule
    best = 0 if run.best is None else run.best["epoch"]
    return spec.patience is not None and run.epoch - max(best, spec.warmup_epochs) >= spec.patience


def _usable_measures(run: Run, scores: Mapping[str, Any]) -> str:
    """The task's measures that this validation split has a value of, or that need none."""
    values = {
        name: scores.get(name, 0.0) for name in run.task.measures if name != run.recipe.metric
    }
    return " or ".join(
        f"metric={name}"
        for name, value in values.items()
        if value is not None and np.isfinite(value)
    )


def best_weights(run: Run) -> dict[str, Tensor]:
    """The weights of the best epoch by name, on the processor.

    Raises:
        DivergedError: no epoch had a finite validation loss.
    """
    if run.best is None or run.best_weights is None:
        raise DivergedError(
            f"no epoch of {run.folder.path} has a finite validation loss: nothing can be chosen. "
            "Try a lower optim.lr or amp=none"
        )
    return run.best_weights


def result(run: Run, outcome: Outcome | None) -> Result:
    """Write result.json and the answers to the test split."""
    assert run.best is not None
    lines = run.folder.epochs()
    validated = of_epoch(lines, run.best["epoch"])[KEYS[run.best["weights"]]]
    outcome = None if outcome is None else run.task.decided(outcome, validated)
    reached = Result(
        run_dir=run.folder.path,
        best_epoch=run.best["epoch"],
        epochs=run.epoch,
        planned=None if run.epoch == run.epochs else run.epochs,
        ended_by="" if run.epoch == run.epochs else run.ended_by,
        weights=run.best["weights"],
        val=validated,
        test=None if outcome is None else _all_of(outcome),
        seconds=sum(line["seconds"] for line in lines),
        images_per_second=statistics.median(
            line["images_per_second"] for line in lines if not line.get(START)
        ),
        parameters=sum(
            parameter.numel() for parameter in run.task.evaluated(run.model).parameters()
        ),
        gained=None if run.recipe.metric == "last" else gain(lines, run.recipe.metric),
        rising=run.recipe.metric != "last" and still_rising(lines, run.recipe.metric),
        metric=run.recipe.metric,
        extended_from=run.extended_from,
        left_out={part: len(faults) for part, faults in run.splits.left_out.items()},
    )
    if outcome is not None:
        assert run.splits.test is not None
        outcome.write(run.folder.path, run.splits.test)
    publish(run, _trained(run, reached))
    run.folder.write_json(
        RESULT,
        {**{key: value for key, value in asdict(reached).items() if key != "run_dir"}, **COUNTED},
    )
    return reached


def _trained(run: Run, reached: Result) -> dict[str, str]:
    """What the model card says of the training; no path of this machine."""
    recipe, splits = run.requested, run.splits
    parts = {"training": splits.train, "validation": splits.val, "test": splits.test}
    counts = [f"{len(part):,} {name}" for name, part in parts.items() if part is not None]
    scores = reached.val if reached.test is None else reached.test
    low, high = scores.get("interval") or (None, None)
    interval = "" if low is None else f", 95 % interval {low:.3f} to {high:.3f}"
    return {
        "recipe": f"`{recipe.name}`, {recipe.summary}",
        "data": Path(run.task.data_location).name,
        run.task.counted: ", ".join(counts),
        "epochs": f"{reached.epochs}, of which {reached.best_epoch} is the best on validation",
        "seed": str(recipe.seed),
        "test" if reached.test is not None else "validation": f"{describe(scores)}{interval}",
    }


def publish(run: Run, card: Mapping[str, str]) -> None:
    """The best weights, which the model holds now, as a folder for timm's `local-dir:`."""
    folder = run.folder.path / MODEL
    model = run.task.published(run.task.evaluated(run.model))
    if model is None:
        return
    alone(model)
    delete_folder(folder)
    classes = run.splits.classes
    named = run.recipe.task in LISTED and len(classes) == getattr(model, "num_classes", None)
    try:
        save_weights(
            model,
            folder,
            data=run.task.preparation(),
            classes=classes if named else None,
            card=card,
        )
    except StorageError:
        raise
    except UsageError as error:  # the run itself is whole
        _log.warning("no folder for timm's local-dir: is left: %s", error)


def _all_of(outcome: Outcome) -> dict[str, Any]:
    """What the result says of the test images: all but what grows with the square of the classes,
    and what other files say.
    """
    content = outcome.to_dict()
    return {name: value for name, value in content.items() if name not in LEFT_OUT}


def summary(run: Run, line: dict[str, Any]) -> str:
    """The epoch for people: losses, the metric that chooses, the rate."""
    metric = run.recipe.metric
    candidate = best_of(line, metric)
    val = line[KEYS[candidate["weights"]]]
    loss = f"  val loss {val['loss']:.3f}" if "loss" in val else ""
    whose = f" ({candidate['weights']})" if run.recipe.ema_evaluate else ""
    if metric == "last":
        chosen = ""
    else:
        value = val[metric]
        chosen = f"  val {metric} {'n/a' if value is None else format(value, '.4f')}{whose}"
    mark = "  best" if line.get("kept") and metric != "last" else ""
    if line.get(START):
        return f"the start{loss}{chosen}"
    return (
        f"loss {line['train_loss']:.3f}{loss}{chosen}{mark}  lr {line['lr']:.1e}  "
        f"{rate(line['images_per_second'])} {run.recipe.unit}/s"
    )
