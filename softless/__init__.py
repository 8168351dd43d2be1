"""Vision transformers without softmax: attention that is a sum over tokens.

Importing registers the models with timm.
"""

import builtins
import importlib
from typing import Any

from softless.attention import OPERATORS, attend, use_backend
from softless.convert import swap
from softless.errors import (
    BackendRefused,
    CoordinateError,
    DataError,
    DivergedError,
    MissingExtra,
    PrecisionError,
    SoftlessError,
    UsageError,
)
from softless.layers import CLASSES, Attention
from softless.measure import audit, cost
from softless.models import create_model, load_weights
from softless.models.registration import register
from softless.models.registration import register_installed as _register_installed
from softless.moved import find_moved_modules as _find_moved_modules

__version__ = "0.1.0"

# Names whose modules are imported when first used; most are verbs of the command line, with the
# same name and arguments.
_VERBS = {
    "Bag": "softless.bags.bag",
    "train": "softless.cli.train",
    "eval": "softless.cli.eval",
    "predict": "softless.cli.predict",
    "list": "softless.cli.list",
    "explain": "softless.tasks.opened",
    "stream": "softless.slides",
    "slide": "softless.cli.slide",
    "tiles": "softless.cli.tiles",
    "heat": "softless.cli.heat",
    "recover": "softless.recovery.recover",
    "optimize": "softless.inference",
    "bench": "softless.cli.bench",
    "runs": "softless.cli.runs",
    "serve": "softless.cli.serve",
    "save_weights": "softless.models.publish",
    "push_to_hub": "softless.models.pushed",
    "export": "softless.exporting.export",
    "load_exported": "softless.exporting.loaded",
    "edge": "softless.exporting.edge",
    "completion": "softless.cli.completion",
}

# SimA, XCA, …: the module with the operator fixed, for timm's attn_layer=
globals().update(CLASSES)

__all__ = [
    "OPERATORS",
    "Attention",
    "BackendRefused",
    "CoordinateError",
    "DataError",
    "DivergedError",
    "MissingExtra",
    "PrecisionError",
    "SoftlessError",
    "UsageError",
    "attend",
    "audit",
    "cost",
    "create_model",
    "load_weights",
    "register",
    "swap",
    "use_backend",
]
# `from softless import *` leaves the builtins alone: softless.list and softless.eval are called by
# their whole names
__all__ += [name for name in (*CLASSES, *_VERBS) if not hasattr(builtins, name)]


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return getattr(importlib.import_module(_VERBS[name]), name)
    if name in CLASSES:  # registered later
        return CLASSES[name]
    if name == "testing":
        return importlib.import_module("softless.testing")
    raise AttributeError(f"module 'softless' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_VERBS, *CLASSES, "testing"})


_find_moved_modules()
_register_installed()
