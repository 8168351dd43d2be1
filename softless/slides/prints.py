"""What tells one image from another, for the folder of a run: all files of a slide, not only the
one that was named.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from softless.errors import located

ENDS = 2**16  # bytes of either end of a file
DICOM_SIGN = slice(128, 132), b"DICM"


def tensor_print(values: Tensor | None) -> str:
    """A digest of the bits of a tensor of any shape; empty for None."""
    import torch

    return (
        ""
        if values is None
        else hashlib.sha256(
            values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        ).hexdigest()
    )


def image_print(image: Any) -> str:
    """A digest of pixels in memory; of a file, and of those that belong to it, name, size, date and
    ends, since a slide has gigabytes.
    """
    if isinstance(image, Tensor):
        return f"{tuple(image.shape)} {tensor_print(image)}"
    if isinstance(image, Image.Image):
        image = np.asarray(image)
    if isinstance(image, np.ndarray):
        return f"{image.shape} {hashlib.sha256(np.ascontiguousarray(image)).hexdigest()}"
    path = located(image)
    companions = [f"{file.name} {_file_print(file)}" for file in belonging(path)]
    return " ".join([
        _file_print(path),
        *([hashlib.sha256("\n".join(companions).encode()).hexdigest()] if companions else []),
    ])


def belonging(path: Path) -> list[Path]:
    """The other files of a slide: the folder of an MRXS, what a VMS or VMU names, the DICOM files
    beside one.
    """
    ending = path.suffix.lower()
    if ending == ".mrxs":
        return _files(path.with_suffix(""))
    if ending in {".vms", ".vmu"}:
        named = set(
            re.findall(
                r"=\s*(.+?)\s*$", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE
            )
        )
        return [file for file in _files(path.parent) if file.name in named and file != path]
    if _is_dicom(path):
        return [file for file in _files(path.parent) if file != path and _is_dicom(file)]
    return []


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []


def _is_dicom(path: Path) -> bool:
    span, sign = DICOM_SIGN
    with path.open("rb") as file:
        return file.read(span.stop)[span] == sign


def _file_print(path: Path) -> str:
    status = path.stat()
    with path.open("rb") as file:
        first = file.read(ENDS)
        file.seek(max(0, status.st_size - ENDS))
        return (
            f"{status.st_size} {status.st_mtime_ns} "
            f"{hashlib.sha256(first + file.read(ENDS)).hexdigest()}"
        )
