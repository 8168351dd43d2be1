"""Operators that are registered for one test and forgotten after it."""

from collections.abc import Iterator
from contextlib import contextmanager

from timm.models import _registry as timm_registry

import softless
from softless.attention import Operator, registry
from softless.layers import CLASSES
from softless.layers import attention as layer_module
from softless.models import arguments, variants


@contextmanager
def registered(record: Operator) -> Iterator[type[softless.Attention]]:
    """The class of a record that is in the list until the end of the block."""
    try:
        yield softless.register(record)
    finally:
        if registry.OPERATORS.get(record.name) is record:
            forget(record)


def forget(record: Operator) -> None:
    """Undo `softless.register`."""
    registry.remove(record.name)
    del CLASSES[record.title]
    delattr(layer_module, record.title)
    for name in variants.entries_of(record.name):
        del (
            variants._known[name],
            variants.default_cfgs[name],
            timm_registry._model_entrypoints[name],
        )
        timm_registry._module_to_models["variants"].discard(name)
        timm_registry._model_to_module.pop(name, None)
        timm_registry._model_default_cfgs.pop(name, None)
        delattr(variants, name)
    arguments._arguments.cache_clear()
