"""The state of a run between two steps: everything that the next step depends on, refused if it is
another run's.

No generator state is stored: each step seeds its own from (seed, epoch, step, rank), and data and
mixing derive from (seed, epoch, index) and (seed, epoch, step). So the next step is the same
whether the run was interrupted or not, and whatever the number of loader workers.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softless.data.datasets import PIXELS
from softless.errors import CheckpointError, DataError, ResumeMismatch
from softless.experiment.candidates import unsaid
from softless.experiment.epochs import from_one
from softless.experiment.measures import MEASURES
from softless.experiment.recipe import Recipe
from softless.models.records import ANY_NUMBER, TEXTS, Rule, check, one_of, or_none, whole
from softless.models.state import mismatches
from softless.origin import versions
from softless.training import optim
from softless.training.run import Run
from softless.words import few


def save(run: Run) -> None:
    """Write the state after `run.step` steps of epoch `run.epoch`."""
    position = (run.updates, run.epoch)
    run.check_finite()
    if run.saved != position:
        run.checkpoints.save(state(run), position, {"epoch_step": run.step, "versions": versions()})
    run.saved, run.saved_at = position, time.monotonic()


def state(run: Run) -> dict[str, Any]:
    """All that a continued run needs."""
    return {
        "model": run.model.state_dict(),
        "ema": None if run.ema is None else run.ema.module.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scheduler": run.scheduler.state_dict(),
        "scaler": run.scaler.state_dict(),
        "epochs": run.epochs,
        "extended_from": run.extended_from,
        "epoch": run.epoch,
        "step": run.step,
        "updates": run.updates,
        "partial": vars(run.partial),
        "left_out": sorted(run.left_out),
        "ended_by": run.ended_by,
        "best": run.best,
        "best_weights": run.best_weights,
        "classes": list(run.splits.classes),
        "fingerprint": run.splits.fingerprint,
    }


def restore(run: Run, stored: Mapping[str, Any]) -> None:
    """Put the run where the state was taken.

    Raises:
        ResumeMismatch: the state is of another model, optimiser, class list or data.
    """
    folder = run.checkpoints.folder
    _check_state(run, stored)
    if stored["classes"] != list(run.splits.classes):
        differing = set(stored["classes"]) ^ set(run.splits.classes)
        raise ResumeMismatch(
            f"cannot resume from {folder}: the data has other classes "
            f"({few(sorted(differing)) or 'another order'})"
        )
    _check_data(run, stored["fingerprint"])
    if (run.ema is None) != (stored["ema"] is None):
        raise ResumeMismatch(
            f"cannot resume from {folder}: one of the runs averages its weights and the other does "
            "not"
        )
    for name, model in (
        ("model", run.model),
        ("ema", run.model),
        ("best_weights", run.task.evaluated(run.model)),
    ):
        if stored[name] is not None and (wrong := mismatches(model, stored[name])):
            raise ResumeMismatch(
                f"cannot resume from {folder}: it is another model's ({few(wrong)})"
            )
    run.model.load_state_dict(stored["model"])
    if run.ema is not None:
        run.ema.module.load_state_dict(stored["ema"])
    _alike(_kinds(stored["scaler"]), _kinds(run.scaler.state_dict()), "the scaler", folder)
    groups = [dict(group) for group in run.optimizer.param_groups]
    try:
        run.optimizer.load_state_dict(stored["optimizer"])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise ResumeMismatch(
            f"cannot resume from {folder}: the optimiser is another one ({error})"
        ) from error
    _check_optimizer(run, groups)
    before = stored.get("epochs") or run.epochs
    run.extended_from = [
        *(stored.get("extended_from") or ()),
        *([before] if before != run.epochs else []),
    ]
    if before == run.epochs or run.recipe.schedule.name == "plateau":  # plateau knows no length
        own = run.scheduler.state_dict()
        _alike(
            _kinds(stored["scheduler"]),
            {**_kinds(own), **_open(stored["scheduler"], own)},
            "the schedule",
            folder,
        )
        run.scheduler.load_state_dict(stored["scheduler"])
    else:  # the longer schedule, from the step at which the run stands
        run.scheduler.step_update(optim.moment(run.recipe, stored["updates"], len(run.loader)))
    run.scaler.load_state_dict(stored["scaler"])
    run.epoch, run.step, run.updates = stored["epoch"], stored["step"], stored["updates"]
    vars(run.partial).update(stored["partial"])
    run.left_out = {tuple(entry) for entry in stored["left_out"]}
    run.ended_by = stored.get("ended_by") or ""  # older runs do not say
    run.best, run.best_weights = stored["best"], stored["best_weights"]
    if run.best is not None:
        run.best = {**from_one(run.best, "epoch"), "weights": run.best.get("weights", _alone(run))}
    run.saved = (run.updates, run.epoch)


def _check_state(run: Run, stored: Mapping[str, Any]) -> None:
    """Whether it is a state of a run at all: a digest that is right proves only that nothing was
    damaged since.

    Raises:
        CheckpointError: an entry is missing, of another type, or beyond its range; the entry is
            named.
    """
    steps, stored_epochs = len(run.loader), stored.get("epochs")
    epochs = stored_epochs if type(stored_epochs) is int and stored_epochs > 0 else run.epochs
    rules: dict[str, Rule] = {
        "model": TENSORS,
        "ema": or_none(TENSORS),
        "optimizer": (_is_optimizer, "the state of an optimiser"),
        "scheduler": PLAIN,
        "scaler": PLAIN,
        "epochs?": whole(1),
        "extended_from?": (
            lambda value: isinstance(value, list) and all(map(whole(1)[0], value)),
            "a list of epochs",
        ),
        "epoch": whole(0, epochs),
        "step": whole(0, steps),
        "updates": whole(0, 1 << 60),
        "partial": (
            lambda value: (
                isinstance(value, dict)
                and value.keys() <= vars(run.partial).keys()
                and all(map(ANY_NUMBER[0], value.values()))
            ),
            "the sums of an epoch",
        ),
        "left_out": (
            lambda value: (
                isinstance(value, list)
                and all(
                    isinstance(entry, tuple | list)
                    and len(entry) == 2
                    and all(map(whole(0, 1 << 60)[0], entry))
                    for entry in value
                )
            ),
            "a list of epochs and steps",
        ),
        "ended_by?": one_of("", "on_epoch", "schedule.patience"),
        "best": or_none((_is_best, "the place of the best epoch")),
        "best_weights": or_none(TENSORS),
        "classes": TEXTS,
        "fingerprint": PLAIN,
    }
    try:
        check(stored, rules, run.checkpoints.folder)
    except DataError as error:
        raise CheckpointError(
            f"the newest checkpoint in {run.checkpoints.folder} is no state of a run ({error}): "
            "move it and its .json away and give "
            "--resume again"
        ) from error


def _check_data(run: Run, recorded: Mapping[str, Any]) -> None:
    """Whether the run saw these images and targets.

    Raises:
        ResumeMismatch: it saw others; what changed is named.
    """
    now = run.splits.fingerprint
    # an older softless did not look at them
    unknown = {key for key in now.keys() - recorded.keys() if key.startswith(PIXELS)}
    changed = [
        key
        for key in sorted((recorded.keys() | now.keys()) - unknown)
        if recorded.get(key) != now.get(key)
    ]
    if changed:
        raise ResumeMismatch(
            f"cannot resume from {run.checkpoints.folder}: the data changed since "
            f"({few(changed)}); bring them back, or train "
            "anew in another folder"
        )


def _check_optimizer(run: Run, groups: Sequence[Mapping[str, Any]]) -> None:
    """Whether the optimiser holds what one of its kind makes of these parameters: it is asked in
    the middle of a step only.

    Args:
        run: whose optimiser was loaded.
        groups: its groups before that.

    Raises:
        ResumeMismatch: an entry is missing or of another kind; it is named.
    """
    folder, optimizer = run.checkpoints.folder, run.optimizer
    after: dict[tuple[torch.Size, torch.dtype], tuple[dict[str, Any], dict[str, Any]]] = {}
    for group, own in zip(optimizer.param_groups, groups, strict=True):
        group_kinds: dict[str, Any] = {}
        for parameter in group["params"]:
            key = parameter.shape, parameter.dtype
            group_kinds, state_kinds = after.get(key) or after.setdefault(
                key, _after_a_step(run.recipe, parameter)
            )
            if parameter in optimizer.state:  # one without gradients has none
                subject = f"a parameter {tuple(parameter.shape)} in the optimiser"
                _alike(_kinds(optimizer.state[parameter]), state_kinds, subject, folder)
        expected = {**group_kinds, **_kinds(own)}  # some note their steps in the group
        stored = {name: kind for name, kind in _kinds(group).items() if name in expected}
        _alike(
            stored,
            {name: kind for name, kind in expected.items() if name in own or name in stored},
            "a group of the optimiser",
            folder,
        )


def _after_a_step(recipe: Recipe, like: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
    """The kinds in a group of the recipe's optimiser and in what it keeps of one parameter, after a
    step without gradients.
    """
    twin = nn.Parameter(torch.zeros_like(like))
    twin.grad = torch.zeros_like(like)
    optimizer = optim.optimizer(
        recipe.with_fields(**{"optim.layer_decay": None}), nn.ParameterList([twin])
    )
    optimizer.step()
    return _kinds(optimizer.param_groups[0]), _kinds(optimizer.state[twin])


def _open(stored: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The kinds of entries that nothing is held against: those that are still empty at the start of
    a run.
    """
    return {name: _kind(stored.get(name)) for name, value in own.items() if value is None}


def _kinds(content: Any) -> dict[str, Any]:
    """What kind of value each entry of a table has; nothing where it is no table."""
    return (
        {name: _kind(value) for name, value in content.items() if name != "params"}
        if isinstance(content, dict)
        else {}
    )


def _kind(value: Any) -> Any:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "a number"
    return (
        [_kind(element) for element in value]
        if isinstance(value, list | tuple)
        else type(value).__name__
    )


def _alike(stored: Mapping[str, Any], expected: Mapping[str, Any], of: str, folder: Path) -> None:
    for name in sorted(stored.keys() | expected.keys()):
        if stored.get(name) != expected.get(name):
            raise ResumeMismatch(
                f"cannot resume from {folder}: it is another run's, or was changed ({name} of {of} "
                "is "
                f"{stored.get(name, 'missing')}, and should be {expected.get(name, 'missing')})"
            )


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return isinstance(value, dict)


PLAIN: Rule = (_is_plain, "a table of texts and numbers")  # tensors among them cannot be compared


def _is_optimizer(value: Any) -> bool:
    """Groups by name, and a table for each parameter; what they hold is compared once it is
    loaded.
    """
    return (
        isinstance(value, dict)
        and isinstance(value.get("state"), dict)
        and all(isinstance(entry, dict) for entry in value["state"].values())
        and isinstance(value.get("param_groups"), list)
        and all(
            isinstance(group, dict) and all(isinstance(name, str) for name in group)
            for group in value["param_groups"]
        )
    )


def _is_best(value: Any) -> bool:
    return (
        PLAIN[0](value)
        and whole(0)[0](value.get("epoch"))
        and isinstance(value.get("metric"), str)
        and value["metric"] in MEASURES
        and all(
            name in value and (value[name] is None or ANY_NUMBER[0](value[name]))
            for name in ("value", "loss")
        )
    )


TENSORS: Rule = (
    lambda value: (
        isinstance(value, dict)
        and all(
            isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
        )
    ),
    "tensors by name",
)


def _alone(run: Run) -> str:
    """The weights that an older softless chose from."""
    return unsaid(ema_evaluate=run.recipe.ema_evaluate)
