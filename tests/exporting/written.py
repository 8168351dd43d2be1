"""A model in a format, as `softless.export` writes and opens it, and how near its answers are."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import softless
from softless.errors import need
from softless.exporting.edge import Edge, edge
from softless.exporting.formats.format import Format, Shape
from softless.exporting.formats.table import FORMATS
from softless.exporting.forms.steps import inverts
from softless.exporting.graph import Dynamic, Graph
from softless.exporting.grid import free_step, grid_step
from softless.exporting.measured import parity
from softless.exporting.silence import muted
from softless.models.hosts import host_of
from tests.models.lively import lively

# set where every tool must be there: `make test-export`
EVERY_TOOL = "SOFTLESS_EXPORT_TOOLS"
Answer = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Written:
    """A file, and what it answers."""

    record: Format
    path: Path
    module: Edge
    answer: Answer | None  # images (B, C, H, W) -> outputs; None of a format that runs elsewhere

    @property
    def shape(self) -> Shape:
        return self.record.shape(self.path)

    @property
    def bytes(self) -> int:
        files = [
            inner for part in self.record.parts(self.path) for inner in (part, *part.rglob("*"))
        ]
        return sum(file.stat().st_size for file in files if file.is_file())

    def apart(self, reference: nn.Module, images: Tensor) -> float:
        """The largest difference of an answer, relative to the largest answer."""
        assert self.answer is not None
        return parity(self.answer, reference, images).difference


def tools(name: str) -> None:
    """Skip a test whose format cannot be written here, or fail where it must be."""
    record = FORMATS[name]
    try:
        need(*record.writes_with, *(record.runs_with or ()))
    except softless.MissingExtra as error:
        if EVERY_TOOL in os.environ:
            raise
        pytest.skip(f"{error}; `make test-export` has an environment with it")


def living(name: str, size: tuple[int, int], **arguments: Any) -> Any:
    """A registered model with weights on which every branch counts."""
    torch.manual_seed(0)
    model: Any = softless.create_model(name, **arguments).eval()
    return lively(model, torch.randn(2, model.pretrained_cfg["input_size"][0], *size))


def written(
    model: Any,
    name: str,
    folder: Path,
    size: tuple[int, int],
    *,
    form: str = "auto",
    dynamic: Dynamic | None = None,
    images: Tensor | None = None,
) -> Written:
    """A model as a file of a format. `images` say how many of Newton's steps are taken."""
    record, any_size = FORMATS[name], dynamic in {"size", "both"}
    form = "plain" if any_size else form
    module = edge(model, size, form, batch=record.batch, images=images)
    number = 2 if dynamic in {"batch", "both"} else 1
    channels = model.pretrained_cfg["input_size"][0]
    example = torch.randn(number, int(channels), *size)
    step = free_step(model) if any_size else grid_step(model)
    path = folder / f"model{record.ending}"
    with muted():
        record.write(Graph(module, example, ("logits",), dynamic, step), path, None)
    record.label(path, "{}")
    return Written(record, path, module, _answer(record, path, number if dynamic else 1, dynamic))


def _answer(record: Format, path: Path, number: int, dynamic: Dynamic | None) -> Answer | None:
    if record.open is None:
        return None
    run = record.open(path)
    if dynamic in {"batch", "both"}:
        return run

    def one_by_one(images: Tensor) -> tuple[Tensor, ...]:
        answers = [run(image[None]) for image in images]
        return tuple(torch.cat(outputs) for outputs in zip(*answers, strict=True))

    return one_by_one


def reference(model: nn.Module, size: tuple[int, int], images: Tensor) -> nn.Module:
    """What a file must answer as: the model, and SOFT with as many of Newton's steps."""
    return edge(model, size, "plain", images=images) if inverts(model) else model


def one_size(model: nn.Module) -> bool:
    """Whether a graph of it holds images of one size alone."""
    host = host_of(model)
    return host is not None and host.name == "pyramid"
