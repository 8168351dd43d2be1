"""What every host takes besides timm's own arguments: the operator, its options, the activation,
the number of heads.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from softless.attention.checks import check_options
from softless.attention.registry import OPERATORS, get
from softless.errors import UsageError, unknown
from softless.layers.companions import Filters, Gate

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
