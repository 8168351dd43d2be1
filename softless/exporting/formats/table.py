"""The table of the formats: a line for each file of this folder."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from softless.errors import DataError, unknown
from softless.exporting.formats import coreml, executorch, onnx, openvino, pt2
from softless.exporting.formats.format import Format

FORMATS: Mapping[str, Format] = MappingProxyType({
    module.FORMAT.name: module.FORMAT for module in (pt2, onnx, openvino, executorch, coreml)
})


def format_named(name: str) -> Format:
    """The format of a name.

    Raises:
        UsageError: there is none; the nearest is named.
    """
    if name not in FORMATS:
        raise unknown("format", name, FORMATS)
    return FORMATS[name]


def format_of(path: Path) -> Format:
    """The format of a file, by its ending.

    Raises:
        DataError: no format has it.
    """
    for record in FORMATS.values():
        if path.name.endswith(record.ending):
            return record
    endings = ", ".join(record.ending for record in FORMATS.values())
    raise DataError(f"{path}: no format has the ending '{path.suffix}'; files end in {endings}")


def is_exported(path: Path) -> bool:
    """Whether a name is that of an exported file: it has such an ending, and is no run's folder."""
    return any(path.name.endswith(record.ending) for record in FORMATS.values())
