"""Which parts of a model are its attention: what is trained where not all of it is."""

from torch import nn

from softless.convert.adapters import ADAPTERS
from softless.convert.foreign import looks_like_attention
from softless.layers.attention import Attention
from softless.layers.class_attention import ClassAttention


def attentions(model: nn.Module) -> dict[str, nn.Module]:
    """The outermost attention modules of a model by path: ours and foreign ones."""
    chosen: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        if any(path.startswith(f"{outer}.") for outer in chosen):
            continue
        own = isinstance(module, Attention | ClassAttention)
        if path and (own or type(module) in ADAPTERS or looks_like_attention(module)):
            chosen[path] = module
    return chosen


def projections(model: nn.Module) -> list[str]:
    """Paths of the linear layers in its attention: qkv, proj and their kin."""
    return [
        f"{path}.{name}"
        for path, module in attentions(model).items()
        for name, layer in module.named_modules()
        if type(layer) is nn.Linear
    ]
