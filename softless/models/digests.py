"""digests.json beside published files: the sha256 of each file, and of each tensor's bytes, so that
a damaged one is told from a sound one.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from softless.errors import DataError

DIGESTS = "digests.json"
LARGEST = 16 << 20  # bytes of such a file
SHOWN = 5


def of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def of_tensor(tensor: Tensor) -> str:
    """SHA-256 of the values of a tensor of any shape, in row-major order, as safetensors stores
    them.
    """
    return hashlib.sha256(
        tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    ).hexdigest()


def of_texts(content: Mapping[str, str]) -> str:
    """SHA-256 of a table of texts."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def describe(
    folder: Path, names: tuple[str, ...], tensors: Mapping[str, Tensor]
) -> dict[str, dict[str, str]]:
    """What digests.json says of these files and tensors."""
    return {
        "files": {name: of_file(folder / name) for name in names},
        "tensors": {name: of_tensor(tensor) for name, tensor in tensors.items()},
    }


def check(path: Path, read: Callable[[Path], Mapping[str, Tensor]] | None = None) -> None:
    """Compare a file with the digests.json beside it, if that is there and lists the file. `read`
    gives its tensors, to name those that differ.

    Raises:
        DataError: another digest, with the expected one, the one found, and the tensors that
            differ; or a digests.json that is damaged.
    """
    beside = path.parent / DIGESTS
    if not beside.is_file():
        return
    stated = _read(beside)
    expected = stated["files"].get(path.name)
    if expected is None:
        return
    digest = of_file(path)
    if digest != expected:
        differ = _which(path, read, stated["tensors"]) if read else ""
        raise DataError(
            f"{path} is not the file that was saved: {beside} expects the sha256 {expected}, "
            f"found is {digest}{differ}; copy the folder again"
        )


def _read(path: Path) -> dict[str, dict[str, str]]:
    try:
        stated = (
            json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= LARGEST else None
        )
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read {path} ({error}): copy the folder again") from error
    tables = (
        [stated.get(key) for key in ("files", "tensors")] if isinstance(stated, dict) else [None]
    )
    if not all(
        isinstance(table, dict) and all(isinstance(text, str) for text in table.values())
        for table in tables
    ):
        raise DataError(
            f"{path} is not a list of the digests of files and tensors: copy the folder again"
        )
    return cast("dict[str, dict[str, str]]", stated)


def _which(
    path: Path, read: Callable[[Path], Mapping[str, Tensor]], expected: Mapping[str, str]
) -> str:
    """The tensors that differ, where the file can still be read."""
    try:
        tensors = read(path)
    except DataError:
        return "; its header is damaged"
    names = [
        name
        for name in {**expected, **tensors}
        if name not in tensors or of_tensor(tensors[name]) != expected.get(name)
    ]
    remainder = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"; of its tensors differ: {', '.join(names[:SHOWN]) or 'none'}{remainder}"
