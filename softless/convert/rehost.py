"""A model of `create_model` with another operator: built anew, with the weights that it has."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from softless.attention.registry import OPERATORS
from softless.errors import UsageError
from softless.models.construction import Construction
from softless.models.create import create_model
from softless.models.weights import as_here

TIED = re.compile(r"(.*\.)?qv\.(weight|bias)")


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
    state, new = _carried(model.state_dict(), twin.state_dict())
    twin.load_state_dict(state)
    first = next(model.parameters())
    twin.to(first.device, first.dtype).train(model.training)
    twin.pretrained_cfg = getattr(model, "pretrained_cfg", {})  # type: ignore[assignment]
    return twin, new


def _carried(
    old: Mapping[str, Tensor], new: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A state for the new model, and which of its tensors are its own."""
    state: dict[str, Tensor] = {}
    unseen = []
    laid_out, _ = as_here({**old}, None, new)
    for name, value in new.items():
        tied = TIED.fullmatch(name)
        if name in laid_out and laid_out[name].shape == value.shape:
            state[name] = laid_out[name]
        elif tied and (source := f"{tied[1] or ''}qkv.{tied[2]}") in old:
            q, k, v = old[source].chunk(3)
            state[name] = torch.cat([(q + k) / 2, v])
        elif ".learned." in f".{name}":
            state[name] = value
            unseen.append(name)
        else:
            raise UsageError(
                f"the weights of this model do not fit its host with another operator: {name} is "
                f"{tuple(value.shape)} there, and "
                f"{tuple(old[name].shape) if name in old else 'absent'} here"
            )
    return state, tuple(unseen)


def attends_with(model: nn.Module) -> str | None:
    """The operator that a model of `create_model` was built with; None of any other model."""
    built = getattr(model, "construction", None)
    return built.op if isinstance(built, Construction) else None
