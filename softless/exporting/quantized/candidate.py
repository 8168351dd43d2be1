"""What a recipe of quantisation is, and what it works on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor

from softless.errors import UsageError
from softless.exporting.graph import Graph

AT_ONCE = 16  # images of a graph that takes any number


@dataclass
class Material:
    """What a file in eight bits is made of.

    Args:
        graph: what a file in float32 would hold.
        images: (n, C, H, W) to calibrate with, prepared as the graph takes them; None where the
            recipe looks at none.
        write: writes a graph into a file of the format, in float32 where the graph is.
        scratch: a file of the format's ending that the recipe may write.
    """

    graph: Graph
    images: Tensor | None
    write: Callable[[Graph, Path], None]
    scratch: Path

    @cached_property
    def float_file(self) -> Path:
        """The file in float32, written when it is first asked for."""
        self.write(self.graph, self.scratch)
        return self.scratch

    @property
    def calibration(self) -> Tensor:
        """The images, (n, C, H, W).

        Raises:
            UsageError: there are none.
        """
        if self.images is None:
            raise UsageError("this recipe measures activations on images: give --calibrate FOLDER")
        return self.images

    def batches(self) -> Iterator[Tensor]:
        """The images, as many at once as the graph takes; what is left of a last part is not
        used.
        """
        once = AT_ONCE if self.graph.any_batch else len(self.graph.example)
        for start in range(0, len(self.calibration) - once + 1, once):
            yield self.calibration[start : start + once].contiguous()


@dataclass(frozen=True)
class Candidate:
    """A recipe: one way of making a file of a format in eight bits."""

    name: str
    says: str = field(compare=False)  # what is in eight bits, in a few words
    write: Callable[[Material, Path], None]
