"""A model of bags that scales features itself: what reads raw features gets the answers of
training.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softless.errors import UsageError
from softless.models.create import create_model


class StandardisedLinear(nn.Linear):
    """A linear layer of features brought to mean 0 and deviation 1: W (x - m) / s + b.

    m and s are buffers (in,), 0 and 1 at the start, stored with the weights.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.register_buffer("mean", torch.zeros(in_features))
        self.register_buffer("deviation", torch.ones(in_features))

    def forward(self, features: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        scaled = (features - self.mean) / self.deviation
        return F.linear(scaled.to(self.weight.dtype), self.weight, self.bias)


def bag_model(
    architecture: str,
    model_args: Mapping[str, Any],
    *,
    standardise: bool = False,
    kind: str = "class",
) -> nn.Module:
    """A model of bags by its name.

    Args:
        architecture: as `softless.create_model` names it.
        model_args: its arguments, among them `in_dim` and `num_classes`.
        standardise: whether its first layer scales features.
        kind: what its logits say: "class", "several" labels, or "survival", the logarithm of a
            risk. It is noted as `model.kind`.

    Raises:
        UsageError: no model of bags, or arguments that do not fit.
    """
    model: Any = create_model(architecture, **model_args)
    embed = getattr(model, "embed", None)
    if not isinstance(embed, nn.Linear) or not hasattr(model, "in_dim"):
        raise UsageError(
            f"'{architecture}' takes images, and bags hold features of tiles: name a model of "
            "bags, for example model.name=seqnorm_bag_tiny"
        )
    if standardise:
        scaled = StandardisedLinear(embed.in_features, embed.out_features)
        scaled.load_state_dict(embed.state_dict(), strict=False)
        model.embed = scaled
    model.kind = kind
    return model


def folded(model: nn.Module, architecture: str, model_args: Mapping[str, Any]) -> nn.Module:
    """The same model as `create_model` builds it, the scale of its features in its first layer:
    W (x - m) / s + b = (W / s) x + (b - W m / s), in float64.

    Args:
        model: of `bag_model`.
        architecture: its name.
        model_args: its arguments.
    """
    plain: Any = create_model(architecture, **model_args)
    state = dict(model.state_dict())
    mean, deviation = (state.pop(f"embed.{name}", None) for name in ("mean", "deviation"))
    if mean is not None and deviation is not None:
        weight, bias = (state[f"embed.{name}"] for name in ("weight", "bias"))
        scaled = weight.double() / deviation.double()
        state["embed.weight"] = scaled.to(weight.dtype)
        state["embed.bias"] = (bias.double() - scaled @ mean.double()).to(bias.dtype)
    plain.load_state_dict(state)
    return plain.eval()


WITH_HEAD = bag_model
