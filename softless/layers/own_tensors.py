"""An operator's own tensors in a module: parameters where they are trained, buffers where they are only drawn."""

from typing import Any

import torch
from torch import Tensor, nn

from softless.attention import Operator
from softless.attention.learned import drawn, starting
from softless.attention.spec import Learned, Options, Sizes


class OwnTensors(nn.Module):
    """The tensors of one module under their names, at their start, random ones from torch's generator.

    A drawn tensor whose claim names a `redraw_every` option is drawn anew after so many training passes. The count is kept with the
    module's state; inside a compiled graph nothing is counted: call `redraw` between steps there.
    """

    def __init__(self, record: Operator, heads: int, head_dim: int, options: Options, tokens: int | None, *, device: Any = None, dtype: torch.dtype | None = None) -> None:  # fmt: skip
        super().__init__()
        self.sizes = Sizes(heads, head_dim, record.filled(options), tokens)
        self.record = record
        self.passes = 0  # training passes so far; `age` is its copy in the state dict
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
        """The claims under the tensors' names; read from the record, which a pickled module refers to by name."""
        return self.record.own_tensors(self.sizes.options)

    def forward(self, *, counts: bool = False) -> dict[str, Tensor]:
        """Name to tensor; `counts` says that this is a training pass.

        Called like any module, so that what brings weights to a module when it is called brings these.
        """
        if counts and not torch.compiler.is_compiling():
            self._count()
        return {name: getattr(self, name) for name in self.claims}

    def redraw(self) -> None:
        """Draw the random tensors anew, from torch's generator."""
        for name, claim in self.claims.items():
            if not claim.trained:
                held = getattr(self, name)
                held.copy_(drawn(claim, self.sizes).to(held))

    def _count(self) -> None:
        every = [self.sizes.options[claim.redraw_every] for claim in self.claims.values() if claim.redraw_every]
        if not every or not every[0]:
            return
        self.passes += 1
        self.get_buffer("age").fill_(self.passes)
        if self.passes % every[0] == 0:
            self.redraw()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if hasattr(self, "age"):
            self.passes = int(self.get_buffer("age"))
