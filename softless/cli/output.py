"""Results on the command line: text for people, JSON for machines."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def as_text(result: Any) -> str:
    """A result for people: its own words if it has them; mappings and lists line by line."""
    if isinstance(result, Mapping):
        return "\n".join(_entry(key, value) for key, value in result.items())
    if isinstance(result, list | tuple | set):
        return "\n".join(as_text(item) for item in result)
    return str(result)


def _entry(key: Any, value: Any) -> str:
    if isinstance(value, Mapping | list | tuple) and value:
        return f"{key}:\n" + "\n".join(f"  {line}" for line in as_text(value).splitlines())
    return f"{key}: {value}" if value != "" else str(key)


def as_json(result: Any) -> str:
    """A result for machines; numbers that are not finite become null."""
    return json.dumps(plain(result), indent=1, allow_nan=False)


def plain(value: Any) -> Any:
    """What has `to_dict` is asked; dataclasses, paths, arrays and tensors become what JSON has."""
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, Sequence | set | frozenset):
        return [plain(entry) for entry in value]
    return str(value)
