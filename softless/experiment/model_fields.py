"""The fields of a recipe's model: `model.args.*` typed by the model's own signature, and what stays
when another model is named.
"""

import difflib
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from softless.attention.checks import check_options
from softless.attention.registry import OPERATORS, get
from softless.errors import UsageError
from softless.experiment.fields import FieldSetting, NumberRange, fits, literal, readings, typed
from softless.experiment.groups import ModelSpec, RunFields
from softless.models.arguments import Argument, arguments, takes
from softless.models.given import GIVEN, given_model
from softless.models.scale import OPTION, TRAINING
from softless.models.variants import own_operator

_log = logging.getLogger("softless.training")
R = TypeVar("R", bound=RunFields)
PREFIX = "model.args."
# arguments that other fields of a recipe decide
ELSEWHERE = {
    "op": "set model.op",
    "num_classes": "the data say how many classes there are",
    "in_chans": "set data.in_chans",
    "drop_path_rate": "set drop_path",
    "pretrained": "set model.pretrained",
    "checkpoint_path": "set model.weights",
}
UNSET = ("act", "num_heads", "lpi")  # arguments of create_model that none leaves to the model
FROM_ZERO = NumberRange.of("[0, inf)")


def judged(model: ModelSpec, args: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as the model's signature types them.

    Raises:
        UsageError: unknown model or operator, an argument that the model does not take (nearest
            offered), or a value of another type.
    """
    accepted = arguments(model.name, model.op)
    return {name: _judged(model, accepted, name, value) for name, value in args.items()}


def _judged(
    model: ModelSpec, accepted: Mapping[str, Argument] | None, name: str, value: Any
) -> Any:
    if name in ELSEWHERE:
        raise UsageError(f"{PREFIX}{name} is decided elsewhere: {ELSEWHERE[name]}")
    if accepted is None:
        return literal(value)
    if name == OPTION and value == TRAINING:
        return value  # a word of recipes: the task makes it the number of tokens (models.sizes)
    if name not in accepted:
        return _foreign(model, accepted, name, value)
    argument = accepted[name]
    if argument.option:
        return _option(model, name, value)
    hint = argument.hint
    if argument.default is None or name in UNSET:
        hint = hint | None if hint is not Any else Any
    elif not fits(argument.default, hint):  # the annotation is narrower than what the model has
        hint = hint | type(argument.default)
    negative = isinstance(argument.default, int | float) and argument.default < 0
    within = () if negative or name == "out_indices" else (FROM_ZERO,)
    return typed(
        value, hint, f"{PREFIX}{name}", FieldSetting(f"argument of '{model.name}'", within)
    )


def _option(model: ModelSpec, name: str, value: Any) -> Any:
    """An option of the operator, which its record judges."""
    operator = model.op or own_operator(model.name)
    assert operator is not None, "a control has no operator, and so no options of one"
    record = get(operator)
    candidates = readings(value, str | None)
    fitting = next(
        (candidate for candidate in candidates if record.options[name].takes(candidate)),
        candidates[0],
    )
    return check_options(record, {name: fitting})[name]


def _foreign(model: ModelSpec, accepted: Mapping[str, Argument], name: str, value: Any) -> Any:
    value = readings(value, str | None)[0]
    operator_options = {option for operator in OPERATORS.values() for option in operator.options}
    if value is None and (
        name in operator_options or name in UNSET
    ):  # a twin says that it is not set
        return None
    close = difflib.get_close_matches(name, accepted, n=1, cutoff=0.5)
    near = f"Did you mean '{PREFIX}{close[0]}'? " if close else ""
    listed = ", ".join(sorted(accepted)[:30]) + (", …" if len(accepted) > 30 else "")
    with_op = f" with op='{model.op}'" if model.op else ""
    raise UsageError(
        f"'{model.name}'{with_op} takes no argument '{PREFIX}{name}'. {near}It takes: {listed}"
    )


def check_model(recipe: RunFields) -> None:
    """The model is known and takes its arguments, and stochastic depth where it is set.

    Raises:
        UsageError: it does not.
    """
    spec = recipe.model
    if spec.name == GIVEN:
        given_model(spec.args, copied=False)
        return
    judged(spec, spec.args)
    if recipe.drop_path and not takes(spec.name, spec.op, "drop_path_rate"):
        raise UsageError(
            f"drop_path={recipe.drop_path:g}: '{spec.name}' has no stochastic depth; set "
            "drop_path=0"
        )


def chosen(own: ModelSpec, new: ModelSpec, user_fields: Mapping[str, Any]) -> ModelSpec:
    """The model after `user_fields` were set, whatever their order.

    Operator, arguments and weights of the recipe go with the recipe's own model: where another is
    named they are left out, unless they were set too, and that is said. `model.args` sets all
    arguments at once; `{}` leaves none.

    Raises:
        UsageError: as `judged`.
    """
    paths = {path: value for path, value in user_fields.items() if path.startswith(PREFIX)}
    another_model = new.name != own.name
    args: dict[str, Any] = {} if another_model else {**own.args}
    own_names = {path.removeprefix(PREFIX).partition(".")[0] for path in paths}
    if "model.args" in user_fields:
        all_args = literal(user_fields["model.args"])
        if not isinstance(all_args, Mapping):
            raise UsageError(
                f"model.args={user_fields['model.args']!r} is a group of fields: set one of "
                "them, for example "
                f"{PREFIX}{next(iter(own.args), 'depth')}=…, or all, as {{'depth': 4}}; {{}} "
                "clears it"
            )
        args, own_names = {**all_args}, own_names | set(all_args)
    for path in sorted(paths, key=lambda path: path.count(".")):
        *above, last = path.removeprefix(PREFIX).split(".")
        inner = args
        for word in above:
            inner[word] = {**inner[word]} if isinstance(inner.get(word), Mapping) else {}
            inner = inner[word]
        inner[last] = paths[path] if not above else literal(paths[path])
    dropped = _dropped(own, user_fields, own_names) if another_model else {}
    foreign = {} if another_model else _foreign_options(own, new, args.keys() - own_names)
    args = {name: value for name, value in args.items() if name not in foreign}
    new = replace(
        new,
        op=None if "model.op" in dropped else new.op,
        weights=None if "model.weights" in dropped else new.weights,
    )
    new = replace(
        new, args={**args, **judged(new, {name: args[name] for name in args if name in own_names})}
    )
    stays = {name: value for name, value in own.args.items() if name not in own_names}
    if dropped:
        _log.warning(
            "model.name=%s: left out, since it goes with the recipe's own model '%s': %s; set "
            "what is to stay",
            new.name,
            own.name,
            _listed(dropped),
        )
    elif foreign:
        listing = _listed({f"{PREFIX}{name}": value for name, value in foreign.items()})
        _log.warning(
            "model.op=%s: left out, since it is an option of '%s': %s", new.op, own.op, listing
        )
    elif (
        "model.name" in user_fields
        and "model.args" not in user_fields
        and not another_model
        and stays
    ):
        _log.warning(
            "model.name=%s is the recipe's own model, whose arguments stay: %s; model.args={} "
            "clears them",
            own.name,
            _listed(stays),
        )
    return new


def _foreign_options(own: ModelSpec, new: ModelSpec, inherited: set[str]) -> dict[str, Any]:
    """Options of the recipe's own operator that another one has not."""
    if new.op == own.op or new.op is None or own.op is None:
        return {}
    only = set(get(own.op).options) - set(get(new.op).options)
    return {name: value for name, value in own.args.items() if name in only & inherited}


def _dropped(own: ModelSpec, user_fields: Mapping[str, Any], own_names: set[str]) -> dict[str, Any]:
    """What goes with the recipe's own model and was not set anew."""
    dropped = {
        f"{PREFIX}{name}": value for name, value in own.args.items() if name not in own_names
    }
    rest = {"model.op": own.op, "model.weights": own.weights}
    return dropped | {
        name: value for name, value in rest.items() if value is not None and name not in user_fields
    }


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def with_depths(recipe: R, user_fields: Mapping[str, Any]) -> R:
    """Without stochastic depth where another model has no place for it; it is said."""
    model = recipe.model
    if (
        not recipe.drop_path
        or "drop_path" in user_fields
        or takes(model.name, model.op, "drop_path_rate")
    ):
        return recipe
    _log.warning(
        "'%s' has no stochastic depth: the recipe's drop_path=%g is left out",
        model.name,
        recipe.drop_path,
    )
    return replace(recipe, drop_path=0.0)
