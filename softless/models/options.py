"""What every host takes besides timm's own arguments: the operator, its options, the activation,
the number of heads.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from softless.attention.checks import check_options
from softless.attention.registry import OPERATORS, get
from softless.errors import UsageError, unknown
from softless.layers.companions import Filters, Gate
from softless.models.kept import softmax_kept, told

ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "hard_swish": nn.Hardswish,
    "silu": nn.SiLU,
}


def activation(act: str | type[nn.Module]) -> type[nn.Module]:
    """The layer class of an activation's name; a class is returned as it is.

    Raises:
        UsageError: an unknown name.
    """
    if not isinstance(act, str):
        return act
    if act not in ACTIVATIONS:
        raise unknown("activation", act, ACTIVATIONS)
    return ACTIVATIONS[act]


def take_operator_options(op: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Removes the operator's options from kwargs and returns them.

    Raises:
        UsageError: an option that another operator has and this one does not (unless it is None),
            or a value outside its rule.
    """
    record = get(op)
    foreign = {name for operator in OPERATORS.values() for name in operator.options} - set(
        record.options
    )
    for name in [name for name in foreign if name in kwargs and kwargs[name] is None]:
        del kwargs[name]  # a recipe of another operator says that it is not set
    if wrong := foreign & set(kwargs):
        raise UsageError(
            f"operator '{op}' has no option {', '.join(sorted(wrong))}; it has: "
            f"{', '.join(record.options) or 'none'}"
        )
    return check_options(
        record, {name: kwargs.pop(name) for name in record.options if name in kwargs}
    )


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


# of weights, for timm
PLACES = frozenset({
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_model_args",
    "cache_dir",
})


def constructed(
    model: nn.Module, name: str, op: str | None, kwargs: Mapping[str, Any]
) -> nn.Module:
    """The model, which knows from now on how it was made."""
    arguments = {key: value for key, value in kwargs.items() if key not in PLACES}
    model.construction = Construction(name, op, arguments, softmax_kept(model))  # type: ignore[assignment]
    return model


# arguments of layers.Attention that every host hands on, with their types
COMPANIONS: Mapping[str, Any] = {
    "v_conv": int | None,
    "v_conv_filters": Filters,
    "gated": bool | Gate,
    "rotary": bool,
}


def take_companions(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Removes the companions of the attention from kwargs and returns those that are asked for."""
    companions = {name: kwargs.pop(name) for name in COMPANIONS if name in kwargs}
    return {name: value for name, value in companions.items() if value is not None}


def host_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """timm's arguments from ours: `act` becomes `act_layer`; absent ones stay absent."""
    if (act := kwargs.pop("act", None)) is not None:
        kwargs["act_layer"] = activation(act)
    if kwargs.get("num_heads", 0) is None:
        kwargs.pop("num_heads")
    return kwargs
