"""Our modules in graphs of torch.fx, as `create_feature_extractor` of torchvision and timm makes
them.

What they do hangs on sizes, which a symbol does not have. So each is one call in the graph, and
asks when it runs.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from torch.fx import Proxy

Function = TypeVar("Function", bound=Callable[..., Any])


def leaf(forward: Function) -> Function:
    """A `forward` that a symbolic trace does not enter: the module is recorded as it was called."""

    @functools.wraps(forward)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        tracer = tracer_of(*args, *kwargs.values())
        if tracer is None:
            return forward(self, *args, **kwargs)
        return tracer.create_proxy("call_module", tracer.path_of_module(self), args, kwargs)

    return called  # type: ignore[return-value]


def noted(function: Function) -> Function:
    """The same for a function of a module's own: a node that calls it."""

    @functools.wraps(function)
    def called(*args: Any) -> Any:
        tracer = tracer_of(*args)
        return (
            function(*args)
            if tracer is None
            else tracer.create_proxy("call_function", called, args, {})
        )

    return called  # type: ignore[return-value]


def tracer_of(*arguments: Any) -> Any:
    """Who traces these arguments; None where they are no symbols."""
    for argument in arguments:
        if isinstance(argument, Proxy):
            return argument.tracer
    return None
