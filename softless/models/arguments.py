"""What keyword arguments a model takes, found without building it: names, types and defaults from
the signatures behind its name.

timm's entry points take `**kwargs` and hand them down to a class. The functions of the same module
that an entry point calls are followed to the classes they build; a class that takes `**kwargs`
hands them to its base. What is found is the union, so a name that is missing here is taken nowhere.
"""

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any

import timm
from timm.models import model_entrypoint
from torch import nn

from softless.attention.registry import get
from softless.models.bag import (
    ARGUMENTS,
    CONTROL_ARGUMENTS,
    OF_SETS,
    BagModel,
    PoolName,
    is_bag_name,
    operator_of,
)
from softless.models.options import ACTIVATIONS, COMPANIONS
from softless.models.variants import ENTRIES, HOSTS, VARIANTS, check_host

BUILDER = "build_model_with_cfg"  # timm's: who calls it names the class
PRIVATE = frozenset({"self", "variant", "name", "op", "op_options", "pretrained", "args", "kwargs"})


@dataclass(frozen=True)
class Argument:
    """A keyword argument of a model."""

    name: str
    hint: Any  # Any where nothing is known
    default: Any = None
    option: bool = False  # of the operator, whose record judges it


def arguments(name: str, op: str | None = None) -> Mapping[str, Argument] | None:
    """The keyword arguments of `create_model(name, op)` but `pretrained`; None where its signature
    cannot be followed.

    Raises:
        UsageError: unknown model or operator, or a host that cannot have it.
    """
    check_host(name, op)
    return _arguments(name, op)


@cache
def _arguments(name: str, op: str | None) -> Mapping[str, Argument] | None:
    if is_bag_name(name):
        return _of_bag_model(name)
    entry = ENTRIES.get(name)
    variant = (
        entry.variant if entry else next((row for row in VARIANTS if row.name == name and op), None)
    )
    exchanged = op or (entry.op if entry else None)
    if variant is not None and (exchanged or entry):
        start: Callable[..., Any] = HOSTS[variant.host].build
    else:
        start = model_entrypoint(name)
    functions = list(_followed(start))
    classes = [kind for function in functions for kind in _built(function)]
    if not classes:
        return None
    known_arguments: dict[str, Argument] = {}
    places: list[Callable[..., Any]] = [*functions, *classes, timm.create_model]
    for source in places:
        known_arguments = {**_of(source), **known_arguments}
    known_arguments |= {"act": Argument("act", typing.Literal[tuple(ACTIVATIONS)])}
    if exchanged is not None:
        options = get(exchanged).options
        known_arguments |= {
            key: Argument(key, Any, option.default, option=True) for key, option in options.items()
        }
        known_arguments |= {key: Argument(key, hint) for key, hint in COMPANIONS.items()}
    return {key: argument for key, argument in known_arguments.items() if key not in PRIVATE}


def _of_bag_model(name: str) -> dict[str, Argument]:
    """Those of a model of bags, and the options of its operator."""
    op = operator_of(name)
    accepted = {
        key: argument
        for key, argument in _of(BagModel).items()
        if key in (CONTROL_ARGUMENTS if op is None else ARGUMENTS)
    }
    if op is None:
        return accepted
    options = get(op).options
    accepted |= {"act": Argument("act", typing.Literal[tuple(ACTIVATIONS)], "gelu")}
    accepted["pool"] = Argument("pool", PoolName, "gated")
    return accepted | {
        key: Argument(key, Any, OF_SETS.get(key, option.default), option=True)
        for key, option in options.items()
    }


def takes(name: str, op: str | None, argument: str) -> bool:
    """Whether a model takes this keyword argument, as far as its signature tells."""
    accepted = arguments(name, op)
    return accepted is None or argument in accepted


def _followed(start: Callable[..., Any]) -> Iterator[FunctionType]:
    """The function and those of its module that it calls, itself or through others."""
    todo, followed = [inspect.unwrap(start)], set()
    while todo:
        function = todo.pop()
        if not isinstance(function, FunctionType) or function in followed:
            continue
        followed.add(function)
        yield function
        named = [function.__globals__.get(word) for word in function.__code__.co_names]
        todo += [
            function_called
            for function_called in named
            if isinstance(function_called, FunctionType)
            and function_called.__module__ == function.__module__
        ]


def _built(function: FunctionType) -> list[type[nn.Module]]:
    """The classes that a function hands to timm's builder."""
    words = function.__code__.co_names
    named = [function.__globals__.get(word) for word in words] if BUILDER in words else []
    return [
        candidate
        for candidate in named
        if isinstance(candidate, type) and issubclass(candidate, nn.Module)
    ]


def _of(source: Callable[..., Any]) -> dict[str, Argument]:
    """The named parameters of a function, or of a class and those of its bases that it hands
    `**kwargs` to.
    """
    parameters_by_name: dict[str, Argument] = {}
    kinds = [vars(kind) for kind in source.__mro__] if isinstance(source, type) else []
    chain = [kind["__init__"] for kind in kinds if "__init__" in kind] or [source]
    for function in chain:
        parameters = inspect.signature(function).parameters.values()
        hints = _hints(function)
        for parameter in parameters:
            if (
                parameter.kind in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}
                and parameter.name not in parameters_by_name
            ):
                default = None if parameter.default is parameter.empty else parameter.default
                parameters_by_name[parameter.name] = Argument(
                    parameter.name, hints.get(parameter.name, Any), default
                )
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return parameters_by_name


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):  # a name for type checkers only
        return {}
