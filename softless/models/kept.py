"""Where a model with another operator keeps softmax: pools, last stages, class attention that has
no other form.
"""

from collections.abc import Iterable, Mapping

from torch import nn

from softless.layers.attention import Attention
from softless.layers.class_attention import ClassAttention

SOFTMAX = "softmax"


def softmax_kept(model: nn.Module) -> dict[str, str]:
    """Path and class of every attention that divides by a softmax, of a model in which others do
    not; empty where none does.

    Foreign modules are known by their class's name, as everywhere in timm: `Attention`,
    `AttentionPoolLatent`, `ClassAttn`.
    """
    operators = {module.op.name for module in model.modules() if isinstance(module, Attention)}
    if not operators - {SOFTMAX}:
        return {}
    return {
        path: type(module).__name__
        for path, module in model.named_modules()
        if _weighs_by_softmax(module)
    }


def operators_of(model: nn.Module) -> list[str]:
    """The attention operators in a model, by name; foreign attention counts as softmax.

    A convolutional network has none.
    """
    own = {module.op.name for module in model.modules() if isinstance(module, Attention)}
    return sorted(own | ({SOFTMAX} if any(map(_weighs_by_softmax, model.modules())) else set()))


def _weighs_by_softmax(module: nn.Module) -> bool:
    if isinstance(module, Attention):
        return module.op.name == SOFTMAX
    name = type(module).__name__
    foreign = ("Attention" in name or "Attn" in name) and not name.endswith((
        "Block",
        "Layer",
        "Stage",
    ))
    return foreign and not isinstance(module, ClassAttention)


def told(softmax: Mapping[str, str]) -> str:
    """The places in a line, those that differ in a number alone put together."""
    places: dict[tuple[str, str], int] = {}
    for path, kind in softmax.items():
        key = _general(path), kind
        places[key] = places.get(key, 0) + 1
    return ", ".join(
        f"{path} ({kind}{f', {number} times' if number > 1 else ''})"
        for (path, kind), number in places.items()
    )


def _general(path: str) -> str:
    parts: Iterable[str] = path.split(".")
    return ".".join("*" if part.isdigit() else part for part in parts)
