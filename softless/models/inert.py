"""What training scripts keep beside their weights, read as nothing: options, paths, dates, numpy's
scalars.

A checkpoint of everyday tools holds more than tensors (the `args` of a script, the state of a
schedule). The names below belong to objects without weights. Where a pickle calls one, an `Inert`
takes its place, which runs nothing and keeps nothing; no code of the library that is named is
imported.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

NUMPY_TYPES = (
    "bool",
    "bool_",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
    "str_",
)
PATHS = ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath")
OBJECTS = frozenset({
    "argparse.Namespace",
    "types.SimpleNamespace",
    "typing.Any",
    "datetime.date",
    "datetime.datetime",
    "datetime.time",
    "datetime.timedelta",
    "datetime.timezone",
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in PATHS),
    *(
        f"builtins.{name}"
        for name in ("bool", "bytes", "dict", "float", "frozenset", "int", "list", "str", "tuple")
    ),
    "numpy.dtype",
    "numpy.ndarray",
    *(
        f"{module}.multiarray.{name}"
        for module in ("numpy.core", "numpy._core")
        for name in ("scalar", "_reconstruct")
    ),
    *(f"numpy.{name}" for name in NUMPY_TYPES),
    *(
        f"numpy.dtypes.{name}DType"
        for name in ("Bool", "Int32", "Int64", "UInt8", "Float32", "Float64", "Str")
    ),
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    *(f"omegaconf.nodes.{name}Node" for name in ("Any", "Boolean", "Float", "Integer", "String")),
    "mmengine.logging.history_buffer.HistoryBuffer",
})
TABLES = frozenset({
    "collections.defaultdict",
    *(
        f"{module}.AttributeDict"
        for module in (
            "pytorch_lightning.utilities.parsing",
            "lightning.pytorch.utilities.parsing",
            "lightning.fabric.utilities.data",
            "lightning_fabric.utilities.data",
        )
    ),
})
# torch's own reader makes them itself
OWN = frozenset({"_codecs.encode", "builtins.complex", "builtins.set"})
NAMES = OBJECTS | TABLES | OWN

_ONE = threading.Lock()  # torch keeps one list of names for all threads


class Inert:
    """Stands where a pickle held an object without weights; takes anything, keeps nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class InertTable(dict[Any, Any]):
    """Stands for a kind of dict: what is put into it is kept, how it was made is not."""

    def __new__(cls, *_: Any) -> dict[Any, Any]:  # type: ignore[misc]
        return {}  # a plain one, into which torch's reader puts items


@contextmanager
def read_as_nothing() -> Iterator[None]:
    """Let torch's reader of plain tensors pass over these objects, in this block."""
    stand_ins: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        *((Inert, name) for name in sorted(OBJECTS)),
        *((InertTable, name) for name in sorted(TABLES)),
    ]
    with _ONE, torch.serialization.safe_globals(stand_ins):
        yield
