"""Where the tokens of the pass at hand stand: the embedding of a host knows it, the attention
modules behind timm's blocks need it.
"""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from softless.attention.record import Grid
from softless.attention.recording import recording
from softless.attention.transforms import transformed
from softless.errors import UsageError

# nodes of a recomputed block that are looked at for where its first pass stood: more than any block
# has
FAR = 4096


def _unseen() -> bool:
    """Whether the pass at hand makes a graph, in which sizes are symbols."""
    return torch.compiler.is_compiling() or recording()


class SharedGrid(threading.local):
    """One value that a host's embedding writes at each pass and its attention modules read; each
    thread has its own.

    timm's blocks hand on tokens alone, and a number of tokens does not tell their grid: 224 x 896
    and 448 x 448 pixels both make 784. Copies and pickles start as this one did.

    Args:
        value: Where all passes of all threads stand until a thread is told otherwise; None for
            nowhere.
    """

    def __init__(self, value: Grid | None = None) -> None:
        self.start = self.value = value
        self.backward = -1  # the backward pass in which it was told, -1 for none

    def __reduce__(self) -> tuple[type["SharedGrid"], tuple[Grid | None]]:
        return SharedGrid, (self.start,)

    def __deepcopy__(self, memo: dict[int, Any]) -> "SharedGrid":
        return memo.setdefault(id(self), SharedGrid(self.start))

    def tell(self, grid: Grid) -> None:
        """Where the tokens of this thread's pass stand."""
        self.value = grid
        if not _unseen():
            self.backward = torch._C._current_graph_task_id()

    def of(self, x: Tensor) -> Grid | None:
        """Where the tokens x (B,N,dim), which come to an attention module, stand.

        In a backward pass a block is computed again, and what this thread was told last may be
        another image's: the grid is then that of the first pass, which is found beside the node of
        the graph that the block came from.

        Raises:
            UsageError: a block is computed again that no gradient enters, so that no graph tells
                whose it was.
        """
        if self.start is not None or _unseen():
            return self.value
        if torch._C._current_graph_task_id() >= 0:
            return self._of_first_pass(x)
        if self.value is not None and x.grad_fn is not None:
            for node in (x.grad_fn, *_before(x.grad_fn)):
                _noted(node)[id(self)] = self.value
        return self.value

    def _of_first_pass(self, x: Tensor) -> Grid | None:
        """The grid that was noted where a recomputed block was entered, the nearest first."""
        nodes = [] if x.grad_fn is None else [x.grad_fn]
        visited = set(nodes)
        for node in nodes:
            if grid := _noted(node).get(id(self)):
                return grid
            unvisited = [earlier for earlier in _before(node) if earlier not in visited]
            visited.update(unvisited)
            nodes += unvisited[: FAR - len(nodes)]
        # the embedding was computed again too
        if self.backward == torch._C._current_graph_task_id():
            return self.value
        raise UsageError(
            "a block that looks at the grid is computed again in the backward pass, and nothing "
            "in the graph tells which image it was given, since no "
            "gradient enters it: leave gradient checkpointing off, or tell one grid for all "
            "images with set_grid((prefix_tokens, height, width))"
        )


def _noted(node: Any) -> dict[int, Grid]:
    """What lies beside a node of the graph: the grid by the host's `SharedGrid`."""
    grids: dict[int, Grid] = node.metadata
    return grids


def _before(node: Any) -> list[Any]:
    """The nodes that a node's gradient goes on to, but for those of parameters, which all passes
    share.
    """
    return [
        following
        for following, _ in node.next_functions
        if following is not None and not hasattr(following, "variable")
    ]


class Kept:
    """Tensors that a module makes once for each key (size, dtype, device) and keeps, safe under
    threads.

    They are ordinary tensors without gradient, in whichever mode they are first asked for: one made
    under `torch.inference_mode()` would stay one of inference, which no later training could save
    for its backward pass. Nothing is kept of a pass that is traced, counted or transformed.
    """

    def __init__(self, limit: int = 4) -> None:
        self.most = limit
        # replaced as a whole and never written to: another thread may be reading
        self.held: dict[Any, Tensor] = {}

    def get(self, key: Any, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of any shape that is kept under a key, made now where it is not."""
        if _unseen() or is_in_torch_dispatch_mode() or transformed():
            return make()
        tensors = self.held
        if key in tensors:
            return tensors[key]
        with torch.inference_mode(mode=False), torch.no_grad():
            tensor = make()
        last = list(tensors.items())[-(self.most - 1) :] if self.most > 1 else []
        self.held = {**dict(last), key: tensor}
        return tensor

    def __getstate__(self) -> dict[str, Any]:
        return {"most": self.most, "held": {}}
