"""How a model was made, which it knows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from softless.models.kept import softmax_kept, told
from softless.models.options import COMPANIONS

# of weights, for timm
PLACES = frozenset({
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_model_args",
    "cache_dir",
})


@dataclass(frozen=True)
class Construction:
    """How a model was made, `create_model(name, op, **arguments)`; the model has it as
    `construction`. Prints as a line or two.
    """

    name: str
    op: str | None
    arguments: Mapping[str, Any]
    # path -> class of what keeps softmax beside another operator
    softmax: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        line = self.name if self.op is None else f"{self.name} with '{self.op}'"
        line += "".join(
            f", {key}={self.arguments[key]!r}" for key in COMPANIONS if self.arguments.get(key)
        )
        return f"{line}; softmax is kept in {told(self.softmax)}" if self.softmax else line


def constructed(
    model: nn.Module, name: str, op: str | None, kwargs: Mapping[str, Any]
) -> nn.Module:
    """The model, which knows from now on how it was made."""
    arguments = {key: value for key, value in kwargs.items() if key not in PLACES}
    model.construction = Construction(name, op, arguments, softmax_kept(model))  # type: ignore[assignment]
    return model
