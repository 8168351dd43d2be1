"""One model in each way that it can answer images here: as it is, optimized, and as a file in each
runtime.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softless.compare.timing import forward_pass
from softless.errors import UsageError, need, unknown
from softless.exporting.export import files_of
from softless.exporting.formats.format import Format
from softless.exporting.formats.standing import needs
from softless.exporting.formats.table import FORMATS
from softless.exporting.graph import Dynamic
from softless.exporting.loaded import ExportedModel, load_exported
from softless.exporting.source import Source
from softless.inference.optimize import optimize
from softless.inference.packed import why_not

EAGER, OPTIMIZED, BFLOAT16 = "eager", "optimized", "bfloat16"
OF_TORCH = (EAGER, OPTIMIZED, BFLOAT16)


@dataclass(frozen=True)
class Call:
    """A model that answers one batch, always the same, when it is called."""

    runtime: str
    call: Callable[[], Any]


def every_runtime() -> tuple[str, ...]:
    """Every name that is taken: three of torch, and each format that a machine of ours runs."""
    return (*OF_TORCH, *(name for name, record in FORMATS.items() if record.open is not None))


def checked(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once.

    Raises:
        UsageError: none of that name.
    """
    for name in names:
        if name not in every_runtime():
            raise unknown("runtime", name, every_runtime())
    return tuple(dict.fromkeys(names))


def of_torch(runtime: str, model: nn.Module, shape: tuple[int, ...], device: torch.device) -> Call:
    """A model by torch: as it is, or an optimized copy in float32 or bfloat16.

    Args:
        runtime: one of `OF_TORCH`.
        model: in evaluation, on the device.
        shape: (B, C, H, W) of the batch.
        device: where.

    Raises:
        UsageError: no such copy can be made, or it would be slower than float32 here.
    """
    if runtime == EAGER:
        return Call(runtime, forward_pass(model, shape, device))
    dtype = torch.bfloat16 if runtime == BFLOAT16 else torch.float32
    if device.type == "cpu" and dtype == torch.bfloat16 and (why := why_not(dtype, device)):
        raise UsageError(why)
    return Call(runtime, forward_pass(optimize(model, dtype), shape, device))


def exported(record: Format, source: Source, shape: tuple[int, ...], folder: Path) -> Call:
    """A model as a file that is written here, and that answers as the model does.

    Args:
        record: the format.
        source: the model.
        shape: (B, C, H, W) of the batch.
        folder: for the file, empty.

    Raises:
        UsageError: the format cannot hold the model, or answers otherwise.
        MissingExtra: what writes or runs it is not installed.
    """
    need(*needs(record))
    batch: Dynamic | None = "batch" if shape[0] > 1 and "batch" in record.dynamic else None
    report = files_of(
        source, (record,), folder, size=(shape[2], shape[3]), dynamic=batch, measuring=False
    )
    file = report.files[0]
    if not file.ok:
        raise UsageError(f"{record.name}: {' and '.join(file.faults)}")
    return of_file(load_exported(file.path), shape)


def of_file(model: ExportedModel, shape: tuple[int, ...]) -> Call:
    """A file as its runtime answers batches of `shape` (B, C, H, W).

    Raises:
        UsageError: it does not take such images.
    """
    images = images_of(model, shape)
    model.outputs(images)
    return Call(model.format, lambda: model.outputs(images))


def images_of(model: ExportedModel, shape: tuple[int, ...]) -> Tensor:
    """Noise (B, C, H, W) of this shape as the file takes it: normalised numbers, or bytes."""
    generator = torch.Generator().manual_seed(0)
    if model.metadata.pixels == "uint8":
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return torch.randn(shape, generator=generator)
