"""A model of `create_model` with another operator: built anew, with the weights that it has."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from softless.attention.registry import OPERATORS
from softless.convert.carry import carried
from softless.errors import UsageError
from softless.models.construction import Construction
from softless.models.create import create_model


def rehosted(
    model: nn.Module, op: str, options: Mapping[str, Any]
) -> tuple[nn.Module, tuple[str, ...]]:
    """The model's host with another operator and the model's weights.

    Args:
        model: of `create_model(host, op=…)`, which tells how it was built.
        op: the operator that it gets.
        options: of that operator; those of the old one are left out.

    Returns:
        The new model, in the mode, dtype and on the device of the old; and the names of its tensors
        that no training has seen.

    Raises:
        UsageError: the model does not tell how it was built, was changed since, or its host has no
            place for the operator.
    """
    built = getattr(model, "construction", None)
    if not isinstance(built, Construction) or built.op is None:
        raise UsageError(
            f"this {type(model).__name__} does not tell how it was built: make it by "
            "softless.create_model(host, op=…) and load its weights there"
        )
    own = OPERATORS[built.op].options
    arguments = {name: value for name, value in built.arguments.items() if name not in own}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        twin = create_model(built.name, op, **{**arguments, **options})
    state, new = carried(model.state_dict(), twin.state_dict())
    twin.load_state_dict(state)
    first = next(model.parameters())
    twin.to(first.device, first.dtype).train(model.training)
    twin.pretrained_cfg = getattr(model, "pretrained_cfg", {})  # type: ignore[assignment]
    return twin, new


def attends_with(model: nn.Module) -> str | None:
    """The operator that a model of `create_model` was built with; None of any other model."""
    built = getattr(model, "construction", None)
    return built.op if isinstance(built, Construction) else None
