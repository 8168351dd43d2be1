"""The state of a model's modules while somebody looks at it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode; each gets its own mode back, as a frozen norm in a model
    that trains has one.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """`evaluating`, and what was compiled runs as it is written: compiled kernels know no fake
    tensors, and no hooks.
    """
    with evaluating(model), torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def keeping_nothing(model: nn.Module) -> Iterator[None]:
    """What modules note of a pass is forgotten at the end: timm's keep tables of biases by device
    and of positions by size, and a table of fake tensors would end the passes that follow.
    """
    modules = [one for one in model.modules() if not isinstance(one, torch.jit.ScriptModule)]
    attributes = [dict(vars(module)) for module in modules]
    tables = [
        (table, dict(table))
        for module in modules
        for name, table in vars(module).items()
        if name == "_buffers" or (type(table) is dict and not name.startswith("_"))
    ]
    try:
        yield
    finally:
        for module, held in zip(modules, attributes, strict=True):
            for name in set(vars(module)) - set(held):
                delattr(module, name)
            vars(module).update(held)
        for table, held in tables:
            table.clear()
            table.update(held)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, where `torch.compile` has wrapped it."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model
