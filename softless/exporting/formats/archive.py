"""What a .pt2 archive may hold before torch opens it: `torch.export.load` unpickles some of its
entries, and a pickle runs what it holds.
"""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import torch

from softless.errors import DataError
from softless.exporting.graph import last_sentence

LARGEST = 1 << 28  # bytes of an entry of JSON or of example inputs
PLAIN = ("weight_", "tensor_")  # entries that are numbers and nothing else
CONFIGS = ("_weights_config.json", "_constants_config.json")
EXAMPLES = "data/sample_inputs/"
MODELS = "models/"
# by what follows the archive's own name; whatever else stands in it is refused
HARMLESS = ("archive_format", "archive_version", ".data/", "byteorder", "extra/", "version")


def refuse_code(path: Path) -> None:
    """Whether an archive of `torch.export.save` holds numbers and a graph alone.

    Raises:
        DataError: it is no such archive, or holds something that loading would run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = {_inner(name): name for name in archive.namelist()}
            if not any(name.startswith(MODELS) for name in names):
                raise DataError(
                    f"{path} holds no graph as torch 2.8 and later write it: export the model anew"
                )
            for inner, name in names.items():
                if why := _why_not(archive, inner, name):
                    raise DataError(
                        f"{path} is not opened: {why}, which may run code; export the model anew"
                    )
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no program of torch.export, or a damaged one ({last_sentence(error)}): "
            "export the model anew"
        ) from error


def _inner(name: str) -> str:
    """The name of an entry without the archive's own in front."""
    return name.partition("/")[2] or name


def _why_not(archive: zipfile.ZipFile, inner: str, name: str) -> str:
    """What is wrong with an entry, as the beginning of a sentence; empty where nothing is."""
    if inner.endswith(CONFIGS):
        config = json.loads(_content(archive, name))["config"]
        for entry, payload in config.items():
            if payload.get("use_pickle") or not str(payload["path_name"]).startswith(PLAIN):
                return f"its tensor {entry[:80]} is a pickle"
        return ""
    if inner.startswith(EXAMPLES):
        return _why_no_tensors(_content(archive, name))
    if inner.startswith(MODELS) and inner.endswith(".json"):
        return ""
    is_numbers = inner.startswith(("data/weights/", "data/constants/")) and Path(
        inner
    ).name.startswith(PLAIN)
    if is_numbers or inner.startswith(HARMLESS):
        return ""
    return f"it holds {inner[:80]}"


def _content(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > LARGEST:
        raise ValueError(f"its entry {name[:80]} has more than {LARGEST:,} bytes")
    return archive.read(name)


def _why_no_tensors(content: bytes) -> str:
    try:
        example: Any = torch.load(io.BytesIO(content), weights_only=True)
    except Exception:  # noqa: BLE001 - whatever a hostile pickle brings about
        return "its example inputs are more than tensors"
    del example
    return ""
