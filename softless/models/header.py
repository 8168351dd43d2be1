"""The header of a .safetensors file, checked before the library reads the tensors: safetensors
takes a name twice, and reads any number of them.
"""

import json
import math
import struct
from pathlib import Path
from typing import Any

from softless.errors import DataError

HEADER = 8 << 20  # bytes; 10,000 tensors take 1.2 MB
BRACKETS = 150_000  # in it: a tensor opens three
WIDTHS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a file, of which nothing else is read.

    Raises:
        DataError: the header is not one that can be trusted.
    """
    try:
        return check_header(path)
    except (OSError, ValueError, RecursionError, struct.error) as error:
        raise DataError(
            f"{path} is not a readable safetensors file: "
            f"{(str(error).splitlines() or [''])[0][:200]}; copy it again"
        ) from error


def check_header(path: Path) -> dict[str, tuple[int, ...]]:
    """The tensors that the header names fill the file: one after the other, each as long as its
    shape.

    Returns:
        Their shapes.

    Raises:
        ValueError: otherwise.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > size - 8:
            raise ValueError(f"its header claims {length} bytes of a file of {size}")
        if length > HEADER:
            raise ValueError(f"its header has {length} bytes, and at most {HEADER} are read")
        text = file.read(length)
    brackets = text.count(b"{") + text.count(b"[")
    if brackets > BRACKETS:
        raise ValueError(
            f"its header opens {brackets} brackets, and at most {BRACKETS} (50,000 tensors) are "
            "read"
        )
    header = json.loads(text, object_pairs_hook=_unique)
    if type(header) is not dict:
        raise ValueError("its header is not a table of tensors")
    header.pop("__metadata__", None)
    end = 0
    for start, stop, name in sorted(_extent(name, entry) for name, entry in header.items()):
        if start != end:
            raise ValueError(
                f"{name} begins at byte {start} of the data, and the tensor before it ends at {end}"
            )
        end = stop
    if end != size - 8 - length:
        raise ValueError(f"its tensors take {end} bytes, and its data has {size - 8 - length}")
    return {name: tuple(entry["shape"]) for name, entry in header.items()}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"its header names {next(name for name in names if names.count(name) > 1)} twice"
        )
    return table


def _extent(name: str, entry: Any) -> tuple[int, int, str]:
    """First byte and end of a tensor in the data; they must be those of its shape."""
    if type(entry) is not dict or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name} is not described by dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not (_natural(shape) and _natural(offsets) and len(offsets) == 2):
        raise ValueError(f"{name} has a shape or offsets that are not whole numbers")
    if entry["dtype"] not in WIDTHS:
        raise ValueError(f"{name} has dtype {entry['dtype']}; known: {', '.join(WIDTHS)}")
    if math.prod(max(side, 1) for side in shape) >= 2**60:
        raise ValueError(f"{name} has shape {shape}, which no memory holds")
    claimed = math.prod(shape) * WIDTHS[entry["dtype"]]
    if offsets[1] - offsets[0] != claimed:
        raise ValueError(
            f"{name} claims {claimed} bytes by its shape {shape} and has {offsets[1] - offsets[0]}"
        )
    return offsets[0], offsets[1], name


def _natural(numbers: Any) -> bool:
    return type(numbers) is list and all(type(number) is int and number >= 0 for number in numbers)
