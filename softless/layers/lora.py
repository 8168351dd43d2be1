"""Linear layers that move by products of low rank alone, merged into their weights.

    W = W_0 + up down,        down (r, in) drawn, up (out, r) zero at the start

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, with alpha = r.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from softless.errors import UsageError
from softless.layers.plain import weights_of, why_not


class LowRank(nn.Module):
    """A model that moves by low-rank updates of some linear layers; all else of it is frozen.

    The model keeps its own layers and the names of its weights. `merged` writes the moved weights
    into them, so what is stored or published of it knows nothing of low rank. It is called through
    `torch.func.functional_call`; its arguments and answers are the model's.

    Args:
        model: whose parameters are frozen; it is changed in place.
        paths: of its linear layers that move.
        rank: r of every update.
        seed: that `down` is drawn from.

    Raises:
        UsageError: a path that is no linear layer, a rank that does not lie below its widths, or a
            model that computes its activations twice, the second time without the updates.
    """

    def __init__(
        self, model: nn.Module, paths: Sequence[str], *, rank: int = 8, seed: int = 0
    ) -> None:
        super().__init__()
        if any(getattr(module, "grad_checkpointing", False) for module in model.modules()):
            raise UsageError(
                f"{type(model).__name__} computes its activations twice, and updates of low rank "
                "are there the first time alone: model.set_grad_checkpointing(False) first"
            )
        self.model, self.paths, self.stale = model, tuple(paths), False
        model.requires_grad_(requires_grad=False)
        generator = torch.Generator().manual_seed(seed)
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        for index, path in enumerate(self.paths):
            weight = _weight(model, path)
            outer, inner = weight.shape
            if not 1 <= rank < min(outer, inner):
                raise UsageError(
                    f"rank={rank}: the layer {path} is {outer} x {inner}, and an update of low "
                    f"rank has a rank from 1 to {min(outer, inner) - 1}"
                )
            drawn = torch.empty(rank, inner).uniform_(-1, 1, generator=generator) / inner**0.5
            self.down.append(nn.Parameter(drawn.to(weight)))
            self.up.append(nn.Parameter(weight.new_zeros(outer, rank)))
            self.register_buffer(f"base_{index}", weight.detach().clone())

    def weights(self) -> dict[str, Tensor]:
        """The moved weights (out, in) by their names in the model."""
        return {
            f"{path}.weight": getattr(self, f"base_{index}") + self.up[index] @ self.down[index]
            for index, path in enumerate(self.paths)
        }

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model answers with the moved weights."""
        return functional_call(self.model, self.weights(), args, kwargs)

    def moved(self) -> None:
        """The updates have changed since they were merged: an optimiser's step says so."""
        self.stale = True

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The model itself with the moved weights in it.

        Weights that somebody loaded into it afterwards stay until the next step.
        """
        if self.stale:
            for name, value in self.weights().items():
                _weight(self.model, name.removesuffix(".weight")).copy_(value)
            self.stale = False
        return self.model

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Model, bases and updates; the model's own weights are the moved ones, so a state that is
        loaded is merged already.
        """
        self.merged()
        return super().state_dict(*args, **kwargs)


def _weight(model: nn.Module, path: str) -> Tensor:
    """The weight (out, in) of a linear layer that is no more than that."""
    try:
        layer = model.get_submodule(path)
    except AttributeError:
        layer = None
    weights = weights_of(layer)
    if weights is None:
        why = "there is none" if layer is None else why_not(layer)
        raise UsageError(f"{path} of {type(model).__name__} is no plain linear layer: {why}")
    return weights.W
