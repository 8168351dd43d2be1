"""What `swap` did to a model, and how a stored model has it done again.

This room lies below `softless.convert`, which exchanges attention: its function enters here when
softless is imported.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from timm.models._features import FeatureDictNet, FeatureGetterNet
from torch import nn

from softless.errors import UsageError


@dataclass(frozen=True)
class Exchange:
    """One call of `swap`: what exchanges the same modules of a model of the same construction."""

    op: str
    options: Mapping[str, Any]
    layers: tuple[str, ...]  # paths of the modules that were exchanged
    force: tuple[str, ...] = ()  # those of them at which something was given up


Exchanging = Callable[[nn.Module, Exchange], None]
_exchanging: list[Exchanging] = []


def exchanges_by(function: Exchanging) -> Exchanging:
    """Let stored exchanges be made by this function, which notes each as `noted` does."""
    _exchanging[:] = [function]
    return function


def exchanges_of(model: nn.Module) -> tuple[Exchange, ...]:
    """What was exchanged in a model, in order."""
    return getattr(model, "exchanges", ())


def noted(model: nn.Module, exchange: Exchange) -> None:
    """Let a model know what was exchanged in it, behind what it knows already."""
    model.exchanges = (*exchanges_of(model), exchange)  # type: ignore[assignment]


def exchanged_again(model: nn.Module, exchange: Exchange) -> None:
    """Exchange attention in a newly built model as it was in the one that was stored.

    Of a model of maps, which leaves out layers behind the last of them, what is there.

    Raises:
        UsageError: the model has other modules at these paths, or does not take the operator.
    """
    if isinstance(model, FeatureGetterNet):
        there = {path for path, _ in model.model.named_modules()}
        layers, force = (
            tuple(path for path in paths if path in there)
            for paths in (exchange.layers, exchange.force)
        )
        if layers:
            _exchanging[0](model.model, replace(exchange, layers=layers, force=force))
        return
    if isinstance(model, FeatureDictNet):
        raise UsageError(
            "features_only cuts this model up, and the paths of its exchanged attention are none "
            "any more: open it whole, and take the maps of its forward_intermediates"
        )
    _exchanging[0](model, exchange)
