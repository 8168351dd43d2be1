"""A recipe that starts from weights.

It has the model that they are of, and the numbers by which its images were normalised. It has
another rate and length too, for it begins with something learnt.

Fields that the user sets are never changed; what is changed is said.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from softless.attention.registry import OPERATORS, get
from softless.data.notices import notice
from softless.errors import UsageError
from softless.experiment.groups import CLASSIFIES, DataSpec, ModelSpec
from softless.experiment.recipe import Recipe
from softless.models.create import of_channels
from softless.models.given import GIVEN
from softless.training.start import Start, exchanges, host_of, operator_of, start_of

# arguments of a model that the data or other fields decide
ELSEWHERE = frozenset({"img_size", "num_classes", "in_chans", "op"})
# arguments that are those of one operator, or of the size of the training
SCALE = "token_scale"
POOLED = "sampling"  # an option of operators whose bottleneck may be new, untrained layers
# by so much the rate of a model that was fitted is divided: its weights cancel each other, and at
# the usual rate a pretrained backbone lost what it knew within an epoch
GENTLE = 10
NAMED = ("model.weights", "model.pretrained")


def is_named(weights: str | Path | None, user_fields: Mapping[str, Any]) -> bool:
    """Whether the user names weights to start from."""
    return weights is not None or any(name in user_fields for name in NAMED)


def with_weights(
    recipe: Recipe,
    weights: str | Path | None,
    user_fields: Mapping[str, Any],
    *,
    model: nn.Module | None = None,
    begun: bool = False,
) -> Recipe:
    """The recipe with the weights that it starts from, and the model that they are of where they
    say it and nobody names another.

    Args:
        recipe: of any task, before `user_fields` are set.
        weights: a file, a run, or a folder of `save_weights`; None leaves them to the fields.
        user_fields: fields that the user sets.
        model: one that was built in Python.
        begun: whether the run is continued, whose model is known.

    Raises:
        UsageError: `weights` and a field or a model both say where they come from.
    """
    if weights is not None and model is not None:
        raise UsageError(
            "weights=… start a model by name, and model=… brings its own: leave one of them out"
        )
    if weights is not None:
        weights = str(weights)
        for name in NAMED:
            value = user_fields.get(name)
            if value not in {None, "none", False, "false", weights}:
                raise UsageError(
                    f"--weights {weights} and {name}={value} both say where the weights come "
                    "from: choose one"
                )
        recipe = replace(recipe, model=replace(recipe.model, weights=weights))
    named = weights or user_fields.get("model.weights")
    if (
        not named
        or named == "none"
        or begun
        or recipe.task not in CLASSIFIES
        or "model.name" in user_fields
        or recipe.model.name == GIVEN
    ):
        return recipe
    start = start_of(replace(recipe.model, weights=str(named), pretrained=False))
    if start is None or not start.host:
        return recipe
    return _of_start(recipe, start)


def _of_start(recipe: Recipe, start: Start) -> Recipe:
    """The recipe with the model that weights are of."""
    own = recipe.model
    scale = own.args.get(SCALE)
    args = {name: value for name, value in start.args.items() if name not in ELSEWHERE}
    args = {name: value for name, value in args.items() if not name.endswith("_rate")}
    host, op = host_of(own.name, own.op)
    own_args = {name: value for name, value in own.args.items() if name != SCALE}
    same = (host, operator_of(host, op)) == (start.host, start.operator)
    if same and own_args == {name: value for name, value in args.items() if name != SCALE}:
        return recipe
    if SCALE in args and scale is not None:  # the number of tokens is that of the images
        args[SCALE] = scale
    notice(f"the model is that of {start.title}: {start.host} with '{start.operator}'")
    return replace(recipe, model=replace(own, name=start.host, op=start.op, args=args))


def with_start(
    recipe: Recipe, user_fields: Mapping[str, Any], changes: Mapping[str, Any]
) -> Recipe:
    """The recipe for a run that starts from weights; of others it stays.

    Args:
        recipe: with the user's fields and data.
        user_fields: fields that the user sets, by whole names.
        changes: dotted field -> what the recipe has in place of its own for such a run.

    Raises:
        UsageError: there are no such weights.
        DataError: what describes them is damaged.
    """
    if recipe.task not in CLASSIFIES or recipe.model.name == GIVEN:
        return recipe
    if recipe.model.pretrained and recipe.model.weights is not None:
        return recipe  # its check says so
    start = start_of(recipe.model)
    if start is None:
        return recipe
    fitted = recipe.model.recover != "none" and exchanges(recipe.model, start)
    changed = _length_and_rate(recipe, user_fields, changes, fitted=fitted)
    new = replaced(recipe, changed)
    if changed:
        listing = ", ".join(f"{name}={value}" for name, value in changed.items())
        notice(f"the run starts from weights: {listing} in place of what the recipe has without")
    new = replace(new, data=_normalised(new.data, start, user_fields))
    return replace(new, model=_pooled(new.model, start))


def _length_and_rate(
    recipe: Recipe, user_fields: Mapping[str, Any], changes: Mapping[str, Any], *, fitted: bool
) -> dict[str, Any]:
    """What is changed of the recipe; a length that the user sets keeps the warm-up beside it.

    `fitted` says that the model is fitted to the weights' own first.
    """
    changed = {name: value for name, value in changes.items() if name not in user_fields}
    if {"schedule.epochs", "schedule.min_steps"} & user_fields.keys():
        changed = {
            name: value for name, value in changed.items() if not name.startswith("schedule.")
        }
    frozen = recipe.model.freeze == "backbone"
    if frozen or recipe.model.lora is not None:
        # few weights, which start at nothing: the recipe's own rate
        changed.pop("optim.lr", None)
    if fitted and not frozen and "optim.lr" not in user_fields:
        changed["optim.lr"] = changed.get("optim.lr", recipe.optim.lr) / GENTLE
    return changed


def replaced(recipe: Recipe, fields: Mapping[str, Any]) -> Recipe:
    """The recipe with dotted fields of its groups replaced, as they are."""
    for name, value in fields.items():
        group, _, leaf = name.rpartition(".")
        recipe = (
            replace(recipe, **{group: replace(getattr(recipe, group), **{leaf: value})})
            if group
            else replace(recipe, **{leaf: value})
        )
    return recipe


def _normalised(data: DataSpec, start: Start, user_fields: Mapping[str, Any]) -> DataSpec:
    """The data normalised as those that the weights learnt from, where they say how."""
    stated = {name: start.preparation.get(name) for name in ("mean", "std")}
    if (
        not all(stated.values())
        or data.mean is not None
        or data.std is not None
        or {"data.mean", "data.std"} & user_fields.keys()
    ):
        return data
    if start.preparation.get("range") != data.range:
        notice(
            f"{start.title} are for images of the range "
            f"{start.preparation.get('range') or '0..255'}, and these have another: mean and "
            "standard deviation are measured"
        )
        return data
    fitted = of_channels(stated, data.in_chans)
    mean, std = (tuple(map(float, fitted[name])) for name in ("mean", "std"))
    notice(
        f"mean {_digits(mean)} and standard deviation {_digits(std)} are those of the weights: "
        "data.mean and data.std set others"
    )
    return replace(data, mean=mean, std=std)


def _digits(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def _pooled(model: ModelSpec, start: Start) -> ModelSpec:
    """An operator whose bottleneck may come from new layers takes it from pools, which need no
    training.
    """
    own = operator_of(*host_of(model.name, model.op))
    if not (
        own in OPERATORS
        and POOLED in get(own).options
        and POOLED not in model.args
        and model.recover != "none"
        and exchanges(model, start)
    ):
        return model
    notice(
        f"model.args.{POOLED}=pool: the bottleneck of '{own}' is taken from pools of tokens, "
        "which need no weights; conv would begin with untrained ones"
    )
    return replace(model, args={**model.args, POOLED: "pool"})
