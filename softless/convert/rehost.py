"""A model of `create_model` with another operator: built anew, with the weights that it has. Of a
segmenter or a detector that is its host, and what stands on it is copied.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from softless.attention.registry import OPERATORS
from softless.convert.carry import carried
from softless.errors import UsageError
from softless.models.construction import Construction
from softless.models.create import create_model
from softless.models.features import Features, cut_behind


def rehosted(
    model: nn.Module, op: str, options: Mapping[str, Any]
) -> tuple[nn.Module, tuple[str, ...]]:
    """The model's host with another operator and the model's weights.

    Args:
        model: of `create_model(host, op=…)`, which tells how it was built; or what has such a host
            under its head.
        op: the operator that it gets.
        options: of that operator; those of the old one are left out.

    Returns:
        The new model, in the mode, dtype and on the device of the old; and the names of its tensors
        that no training has seen.

    Raises:
        UsageError: the model does not tell how it was built, was changed since, or its host has no
            place for the operator.
    """
    features = features_of(model)
    if features is None:
        return _rehosted(model, op, options)
    host, new = _rehosted(features.host, op, options, indices=features.indices)
    rest = copy.deepcopy(model)
    copied = features_of(rest)
    assert copied is not None
    copied.host = host
    return rest, new


def features_of(model: nn.Module) -> Features | None:
    """What makes the maps of a segmenter or a detector; None of any other model."""
    features = getattr(model, "features", None)
    return features if isinstance(features, Features) else None


def _rehosted(
    model: nn.Module, op: str, options: Mapping[str, Any], indices: list[int] | None = None
) -> tuple[nn.Module, tuple[str, ...]]:
    """A host anew; of a host of maps, cut behind the last of its layers."""
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
    if indices is not None:
        cut_behind(twin, indices)
    state, new = carried(model.state_dict(), twin.state_dict())
    twin.load_state_dict(state)
    first = next(model.parameters())
    twin.to(first.device, first.dtype).train(model.training)
    frozen = {path for path, weight in model.named_parameters() if not weight.requires_grad}
    for path, weight in twin.named_parameters():
        weight.requires_grad_(path not in frozen)
    for attribute in ("pretrained_cfg", "trained_at"):
        if hasattr(model, attribute):
            setattr(twin, attribute, getattr(model, attribute))
    return twin, new


def built_as(model: nn.Module) -> Construction | None:
    """How `create_model` built a model, or the host under its head; None of any other model."""
    features = features_of(model)
    built = getattr(model if features is None else features.host, "construction", None)
    return built if isinstance(built, Construction) else None


def attends_with(model: nn.Module) -> str | None:
    """The operator that a model or the host under its head was built with; None of any other."""
    built = built_as(model)
    return None if built is None else built.op
