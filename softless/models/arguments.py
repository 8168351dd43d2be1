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

from softless.attention import get
from softless.models.create import check_host
from softless.models.options import ACTIVATIONS, COMPANIONS
from softless.models.variants import ENTRIES, HOSTS, VARIANTS

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
    entry = ENTRIES.get(name)
    variant = (
        entry.variant if entry else next((one for one in VARIANTS if one.name == name and op), None)
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
    found: dict[str, Argument] = {}
    places: list[Callable[..., Any]] = [*functions, *classes, timm.create_model]
    for place in places:
        found = {**_of(place), **found}
    found |= {"act": Argument("act", typing.Literal[tuple(ACTIVATIONS)])}
    if exchanged is not None:
        options = get(exchanged).options
        found |= {
            key: Argument(key, Any, option.default, option=True) for key, option in options.items()
        }
        found |= {key: Argument(key, hint) for key, hint in COMPANIONS.items()}
    return {key: one for key, one in found.items() if key not in PRIVATE}


def takes(name: str, op: str | None, argument: str) -> bool:
    """Whether a model takes this keyword argument, as far as its signature tells."""
    known = arguments(name, op)
    return known is None or argument in known


def _followed(start: Callable[..., Any]) -> Iterator[FunctionType]:
    """The function and those of its module that it calls, itself or through others."""
    todo, seen = [inspect.unwrap(start)], set()
    while todo:
        function = todo.pop()
        if not isinstance(function, FunctionType) or function in seen:
            continue
        seen.add(function)
        yield function
        named = [function.__globals__.get(word) for word in function.__code__.co_names]
        todo += [
            one
            for one in named
            if isinstance(one, FunctionType) and one.__module__ == function.__module__
        ]


def _built(function: FunctionType) -> list[type[nn.Module]]:
    """The classes that a function hands to timm's builder."""
    words = function.__code__.co_names
    named = [function.__globals__.get(word) for word in words] if BUILDER in words else []
    return [one for one in named if isinstance(one, type) and issubclass(one, nn.Module)]


def _of(place: Callable[..., Any]) -> dict[str, Argument]:
    """The named parameters of a function, or of a class and those of its bases that it hands
    `**kwargs` to.
    """
    found: dict[str, Argument] = {}
    kinds = [vars(kind) for kind in place.__mro__] if isinstance(place, type) else []
    chain = [kind["__init__"] for kind in kinds if "__init__" in kind] or [place]
    for function in chain:
        parameters = inspect.signature(function).parameters.values()
        hints = _hints(function)
        for one in parameters:
            if one.kind in {one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY} and one.name not in found:
                default = None if one.default is one.empty else one.default
                found[one.name] = Argument(one.name, hints.get(one.name, Any), default)
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            break
    return found


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):  # a name for type checkers only
        return {}
