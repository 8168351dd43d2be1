"""Bytes: those of a model's weights, and the most that lives at once while an image passes."""

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def packed_weights(model: nn.Module) -> Iterator[Tensor]:
    """Weights of any shape that are no parameters: those that a module of an inference copy holds
    and lists in `weights_held()`.
    """
    for module in model.modules():
        if (weights := getattr(module, "weights_held", None)) is not None:
            yield from weights()


def distinct(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Each tensor once, whatever its shape."""
    return list({id(tensor): tensor for tensor in tensors}.values())


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters, buffers and packed weights in their dtypes; what oneDNN pads is left
    out.
    """
    tensors = distinct([*model.parameters(), *model.buffers(), *packed_weights(model)])
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class LiveBytes(TorchDispatchMode):
    """Follows the storages that operators make while it is active.

    Attributes:
        peak: the most bytes that lived at once; storages that were there before do not count.
    """

    def __init__(self, existing: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[int, Any] = {}
        # a fake twin of a weight that nobody holds is made anew, with another storage
        self._existing = list(existing)
        for tensor in self._existing:
            self._watch(tensor, 0)

    def _watch(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        self.now += size
        self.peak = max(self.peak, self.now)

        def freed() -> None:
            self.now -= size
            del self._seen[key]

        self._seen[key] = weakref.finalize(storage, freed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # BatchNorm in evaluation hands statistics out on some devices: nobody keeps them
        outputs = out[0] if "batch_norm" in func._schema.name else out
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, Tensor):
                self._watch(leaf, leaf.untyped_storage().nbytes())
        return out
