"""PyTorch's own: a program of `torch.export`, with what it says of itself as an extra file."""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softless.errors import DataError
from softless.exporting.formats.archive import refuse_code
from softless.exporting.formats.format import Format, Runner, Shape
from softless.exporting.graph import Graph, quiet, recorded
from softless.exporting.metadata import KEY

EXTRA = f"{KEY}.json"


def write(graph: Graph, path: Path, _: int | None) -> None:
    """Record a module and save the program."""
    with quiet():
        torch.export.save(recorded(graph), path)


def label(path: Path, text: str) -> None:
    """Keep a text in the file, which is written anew."""
    program = read(path)
    with quiet():
        torch.export.save(program, path, extra_files={EXTRA: text})


def text_of(path: Path) -> str:
    """The text that was kept; "" where there is none."""
    extra: dict[str, Any] = {EXTRA: ""}
    read(path, extra)
    text = extra[EXTRA]
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)


def read(path: Path, extra: dict[str, Any] | None = None) -> torch.export.ExportedProgram:
    """The program in a file.

    Raises:
        DataError: it is no such file, damaged, or holds what loading would run.
    """
    refuse_code(path)
    try:
        with quiet():
            return torch.export.load(path, extra_files=extra)
    except Exception as error:
        raise DataError(
            f"{path} is no program of torch.export, or a damaged one "
            f"({(str(error).splitlines() or [''])[0][:120]}): export the model anew"
        ) from error


def run(path: Path) -> Runner:
    """What runs the file: images (B, C, H, W) -> its outputs."""
    module = read(path).module()

    def answer(images: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            outputs = module(images)
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)

    return answer


def shape(path: Path) -> Shape:
    """Operators by ATen's names, and the most axes of a tensor."""
    nodes: Counter[str] = Counter()
    rank = 0
    for node in read(path).graph.nodes:
        if node.op == "call_function":
            nodes[str(node.target).removeprefix("aten.")] += 1
            value = node.meta.get("val")
            rank = max(rank, value.ndim if isinstance(value, Tensor) else 0)
    return Shape(dict(nodes.most_common()), rank)


FORMAT = Format(
    name="pt2",
    ending=".pt2",
    summary="PyTorch: torch.export.load, AOTInductor, torch-tensorrt",
    writes_with=(),
    write=write,
    label=label,
    text_of=text_of,
    open=run,
    dynamic=("batch", "size", "both"),
    shape=shape,
    inverts=True,
)
