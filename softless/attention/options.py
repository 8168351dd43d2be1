"""What an operator takes besides tokens: options with their rules, and tensors of its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Option:
    """A keyword of an operator: its default, the values it takes, what it does."""

    default: Any
    says: str
    accepts: Callable[[Any], bool]
    values: str  # the accepted values in words, for errors and tables
    small: Any = None  # what a small test takes in place of the default

    def takes(self, value: Any) -> bool:
        """Whether the operator takes a value, of whatever type: a rule that cannot judge it does
        not.
        """
        try:
            return bool(self.accepts(value))
        # a list is in no set, a tensor in no range
        except (TypeError, ValueError, AttributeError, RuntimeError):
            return False


DROPOUT = Option(
    default=0.0,
    says="share of the attention weights dropped",
    accepts=lambda value: (
        isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
    ),
    values="a number in [0, 1)",
)


@dataclass(frozen=True)
class Sizes:
    """What the shapes of an operator's own tensors depend on; `tokens` is None until the host has
    told it.
    """

    heads: int
    head_dim: int
    options: Options
    tokens: int | None = None
    value_dim: int | None = None  # features of v per head, where they are not head_dim

    @property
    def values(self) -> int:
        """Features of v per head."""
        return self.head_dim if self.value_dim is None else self.value_dim


# (shape, generator) -> float64 on the CPU
Start = Callable[[tuple[int, ...], torch.Generator | None], Tensor]


def always(_: Options) -> bool:
    """Whatever the options."""
    return True


@dataclass(frozen=True)
class Learned:
    """A tensor of the operator's own: its shape, its value at the start, and whether it is trained
    or only drawn.
    """

    shape: Callable[[Sizes], tuple[int, ...]]
    start: float | Start
    weight_decay: bool = True
    when: Callable[[Options], bool] = always  # the options under which it exists
    trained: bool = True  # False: a buffer that is drawn at the start, such as random features
    redraw_every: str = ""  # the option that says after how many training steps it is drawn anew
