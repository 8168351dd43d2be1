"""A module recorded by `torch.export`: fixed names and shapes, and nothing of the machine in it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from softless.errors import UsageError
from softless.modes import in_evaluation

Dynamic = Literal["batch", "size", "both"]
IMAGE = "image"  # the name of the input
BATCHES = (1, 1024)  # images at once that a graph of any batch takes
CELLS = (2, 256)  # patches along a side of an image that a graph of any size takes
# what torch notes of a node and other tools would write into their files
OF_THE_MACHINE = ("stack_trace", "source_fn_stack", "torch_fn")


@dataclass(frozen=True)
class Graph:
    """What is written into a file: a module, the images it was recorded with, and its names."""

    module: nn.Module  # images (B, C, H, W) -> one tensor, or a tuple of them
    example: Tensor  # (B, C, H, W), prepared as the module takes them
    outputs: tuple[str, ...] = ("logits",)
    dynamic: Dynamic | None = None
    step: int = 1  # pixels: both sides of an image are multiples of it
    takes: str = IMAGE  # the name of the input

    @property
    def any_batch(self) -> bool:
        """Whether it takes any number of images."""
        return self.dynamic in {"batch", "both"}

    @property
    def any_size(self) -> bool:
        """Whether it takes images of any size on the grid of patches."""
        return self.dynamic in {"size", "both"}

    @property
    def shapes(self) -> dict[int, Any] | None:
        """What is free in the input, as `torch.export` takes it."""
        free: dict[int, Any] = {}
        if self.any_batch:
            free[0] = torch.export.Dim("batch", min=BATCHES[0], max=BATCHES[1])
        if self.any_size:
            low, high = CELLS
            for axis, name in ((2, "height"), (3, "width")):
                cells = torch.export.Dim(f"{name}_cells", min=low, max=high)
                free[axis] = cells if self.step == 1 else self.step * cells
        return free or None


def recorded(graph: Graph) -> torch.export.ExportedProgram:
    """The program of a module, without what torch notes of the machine.

    Raises:
        UsageError: torch cannot record it.
    """
    shapes = graph.shapes
    with in_evaluation(graph.module), torch.no_grad(), quiet():
        try:
            program = torch.export.export(
                graph.module,
                (graph.example,),
                dynamic_shapes=None if shapes is None else (shapes,),
                strict=False,
            )
        except Exception as error:
            raise UsageError(
                f"torch.export cannot record this {type(graph.module).__name__}: "
                f"{last_sentence(error)}"
            ) from error
    without_the_machine(program)
    return program


def without_the_machine(program: torch.export.ExportedProgram) -> None:
    """Take out of every node where on this machine its line of Python stands."""
    for part in program.graph_module.modules():
        if not isinstance(part, torch.fx.GraphModule):
            continue
        for node in part.graph.nodes:
            for name in OF_THE_MACHINE:
                node.meta.pop(name, None)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of torch's exporters, which speak of their own code."""
    with warnings.catch_warnings():
        for kind in (FutureWarning, DeprecationWarning, UserWarning):
            warnings.filterwarnings("ignore", category=kind, module=r"(torch|copyreg|onnx)\b.*")
        yield


def last_sentence(error: BaseException, longest: int = 300) -> str:
    """The line of a tool's error that says what it missed: its last one that holds words."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:longest] if lines else type(error).__name__
