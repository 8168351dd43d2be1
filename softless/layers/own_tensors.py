"""An operator's own tensors in a module: parameters where they are trained, buffers where they are
only drawn.
"""

import struct
import zlib
from typing import Any

import torch
from torch import Tensor, nn

from softless.attention.learned import drawn, starting
from softless.attention.options import Learned, Options, Sizes
from softless.attention.record import Operator

SEEDING = 64  # numbers of a drawn tensor that the next draw hangs on


class OwnTensors(nn.Module):
    """The tensors of one module under their names, at their start, random ones from torch's
    generator.

    A pass reads them and changes nothing: what is drawn is drawn at construction and stored. One
    whose claim names a `redraw_every` option is drawn anew between steps of training, by `stepped`;
    the count is kept with the module's state.
    """

    def __init__(
        self,
        record: Operator,
        heads: int,
        head_dim: int,
        options: Options,
        tokens: int | None,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.sizes = Sizes(heads, head_dim, record.filled(options), tokens)
        self.record = record
        self.steps = 0  # of training so far; `age` is its copy in the state dict
        if any(claim.redraw_every for claim in self.claims.values()):
            self.register_buffer("age", torch.zeros((), dtype=torch.int64, device=device))
        for name, start in starting(record, self.sizes).items():
            value = start.to(device=device, dtype=dtype or torch.get_default_dtype())
            if self.claims[name].trained:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    @property
    def claims(self) -> dict[str, Learned]:
        """The claims under the tensors' names; read from the record, which a pickled module refers
        to by name.
        """
        return self.record.own_tensors(self.sizes.options)

    def forward(self) -> dict[str, Tensor]:
        """Name to tensor.

        Called like any module, so that what brings weights to a module when it is called brings
        these.

        Their shapes are those that the operator's record claims.
        """
        return {name: getattr(self, name) for name in self.claims}

    @torch.no_grad()
    def redraw(self) -> None:
        """Draw the random tensors anew, each from a seed that the last draw makes: ranks that hold
        the same draw the same.
        """
        for name, claim in self.claims.items():
            if not claim.trained:
                tensor: Tensor = getattr(self, name)
                tensor.copy_(drawn(claim, self.sizes, _generator(tensor)).to(tensor))

    def count(self) -> None:
        """A step of training was taken: the random tensors that are due are drawn anew."""
        every = [
            self.sizes.options[claim.redraw_every]
            for claim in self.claims.values()
            if claim.redraw_every
        ]
        if not every or not every[0]:
            return
        self.steps += 1
        self.get_buffer("age").fill_(self.steps)
        if self.steps % every[0] == 0:
            self.redraw()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if hasattr(self, "age"):
            self.steps = int(self.get_buffer("age"))


def stepped(model: nn.Module) -> None:
    """A step of training was taken: random features that are due (option `redraw_every`) are drawn
    anew, the same on all ranks.

    `softless train` calls it after every step; a loop of one's own does so between
    `optimizer.step()` and the next pass, or keeps the features that it began with.
    """
    for module in model.modules():
        if isinstance(module, OwnTensors) and module.training:  # a frozen backbone rests
            module.count()


def _generator(tensor: Tensor) -> torch.Generator:
    """Seeded by the numbers of a tensor."""
    numbers = tensor.detach().flatten()[:SEEDING].double().tolist()
    return torch.Generator().manual_seed(zlib.crc32(struct.pack(f"{len(numbers)}d", *numbers)))
