"""What a format is: the record that each file of this folder gives, `FORMAT`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from softless.exporting.graph import Dynamic, Graph
from softless.exporting.quantized.candidate import Candidate

# images (B, C, H, W) -> the outputs of the graph, in order
Runner = Callable[[Tensor], tuple[Tensor, ...]]
Int8 = Literal["none", "weights", "static"]


@dataclass(frozen=True)
class Shape:
    """What a file is made of, counted in itself."""

    nodes: Mapping[str, int] = field(default_factory=dict)  # operators by kind
    rank: int | None = None  # the most axes that one of its tensors has
    delegated: int | None = None  # parts that a delegate takes over
    outside: int | None = None  # operators between those parts


@dataclass(frozen=True)
class Format:
    """A format of files."""

    name: str
    ending: str  # of the file, with its dot
    summary: str  # what it is for, in a few words
    writes_with: tuple[str, ...]  # packages that write it
    write: Callable[[Graph, Path, int | None], None]  # the last is ONNX's opset
    label: Callable[[Path, str], None]  # keep a text of JSON in the file
    text_of: Callable[[Path], str]  # that text, "" where there is none
    # packages that run it; None where no machine of ours can
    runs_with: tuple[str, ...] | None = ()
    open: Callable[[Path], Runner] | None = None
    dynamic: Sequence[Dynamic] = ()
    batch: int | None = None  # images at once that its graphs hold; None for any number
    # recipes of eight bits, in the order in which they are tried
    int8: Mapping[str, Sequence[Candidate]] = field(default_factory=dict)
    quantises_with: tuple[str, ...] = ()  # packages that the recipes need as well
    shape: Callable[[Path], Shape] = lambda _: Shape()
    parts: Callable[[Path], list[Path]] = lambda path: [path]  # all its files, the first one named
    takes_opset: bool = False
    inverts: bool = False  # whether its graphs hold an inverse by Cholesky
    tolerance: float = 1e-5  # of the largest answer, in float32
    notes: tuple[str, ...] = ()
