"""Which layers are no more than their weight: whoever reads a weight, or does without calling a
module, asks here.

A layer that somebody has changed is called as it is: an adapter or a quantized layer in its place,
hooks, a parametrization, a `forward` of its own, a weight that is sharded, quantized or lies
elsewhere. `tools/checks.py` finds weights that are read without asking.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks_of_all
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils.module_tracker import ModuleTracker

from softless.attention.recording import recording
from softless.errors import PrecisionError, UsageError

LINEAR = frozenset({nn.Linear})
CONV = frozenset({nn.Conv2d})
NORM = frozenset({nn.BatchNorm2d})
DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
TENSORS = frozenset({Tensor, nn.Parameter})
# of an output: by so much a layer in float16 may miss what a product and a sum would give
NOT_LINEAR = 2**-5
LESS = 32  # by so much less it is tried


class Weights(NamedTuple):
    """What a plain layer multiplies by and adds: y = x Wᵀ + b."""

    W: Tensor
    b: Tensor | None

    def to(self, dtype: torch.dtype) -> "Weights":
        """In another dtype."""
        return Weights(self.W.to(dtype), None if self.b is None else self.b.to(dtype))


def weights_of(
    layer: nn.Module | None, device: torch.device | None = None, kinds: Collection[type] = LINEAR
) -> Weights | None:
    """Weight and bias of a layer that is no more than its formula; None where it must be called.

    Args:
        layer: the layer.
        device: of the tensors that it meets; None is any device that holds numbers.
        kinds: the classes that the reader knows the formula of; a class derived from one is
            another.
    """
    return (
        None
        if layer is None or why_not(layer, device, kinds)
        else Weights(layer.weight, layer.bias)  # type: ignore[arg-type]
    )


@torch.no_grad()
def give(layer: nn.Module, weight: Tensor, bias: Tensor | None = None) -> None:
    """Write the weight, of the layer's own shape, and the bias (out,) of a layer that is new."""
    assert isinstance(layer.weight, Tensor)
    layer.weight.copy_(weight)
    if bias is not None:
        assert isinstance(layer.bias, Tensor)
        layer.bias.copy_(bias)


def why_not(
    layer: nn.Module, device: torch.device | None = None, kinds: Collection[type] = LINEAR
) -> str:
    """Why a layer is called and its weight not read, as the end of a sentence about it; empty where
    it is plain.
    """
    if type(layer) not in kinds:
        return f"it is a {type(layer).__name__}"
    if why := why_called(layer):
        return why
    for x in _tensors(layer):
        if why := _odd(x, device):
            return why
    return ""


def why_called(module: nn.Module) -> str:
    """Who would miss that a module is called, as the end of a sentence about it; empty where nobody
    would.
    """
    return why_changed(module) or ("hooks are set on all modules" if hooks_on_all() else "")


def why_changed(module: nn.Module) -> str:
    """What somebody did to a module itself, as the end of a sentence about it; empty where nothing
    was done.
    """
    if has_hooks(module):
        return "it has hooks"
    if "forward" in vars(module):
        return "its forward was replaced"
    return "its weight is computed at every use" if "parametrizations" in module._modules else ""


def is_nothing(module: nn.Module) -> bool:
    """Whether a module hands on what it is given, and nobody would miss its being called."""
    return type(module) is nn.Identity and not (why_changed(module) or hooks_on_all())


def watched(module: nn.Module) -> bool:
    """Whether anybody would miss a call of a module or of a part of it."""
    return any(why_called(part) for part in module.modules())


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks of its own, forward or backward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def computes_weight(hook: object) -> bool:
    """Whether a hook is one of torch's that makes a weight of others before each call, and looks at
    nothing else.
    """
    return isinstance(hook, WeightNorm | SpectralNorm | BasePruningMethod)


def hooks_on_all() -> bool:
    """Whether a hook waits for every module; torch's own, which only notes where a FLOP is counted,
    does not count.
    """
    before, after = hooks_of_all._global_forward_pre_hooks, hooks_of_all._global_forward_hooks
    if hooks_of_all._global_backward_hooks or hooks_of_all._global_backward_pre_hooks:
        return True
    if not (before or after):
        return False
    hooks = [*before.values(), *after.values()]
    return not all(isinstance(getattr(hook, "__self__", None), ModuleTracker) for hook in hooks)


def _tensors(layer: Any) -> list[Tensor]:
    """What a plain layer computes with."""
    own = [layer.weight, layer.bias, *layer._buffers.values()]
    return [x for x in own if x is not None and x is not layer._buffers.get("num_batches_tracked")]


def _odd(x: Any, device: torch.device | None) -> str:
    """Why a tensor cannot be read as numbers that lie in rows."""
    if type(x) not in TENSORS or x.layout != torch.strided or x.is_nested:
        return f"its weight is a {type(x).__name__}, not an ordinary tensor"
    if x.dtype not in DTYPES:
        return f"its weight is {str(x.dtype).removeprefix('torch.')}"
    if x.device != device and (device is not None or x.device.type == "meta"):
        return f"its weight lies on {x.device}"
    return ""


# Layers that are called


def refuse_absent(x: Tensor, **layers: nn.Module | None) -> None:
    """Refuse layers without numbers that tokens x, of any shape, are about to meet: of some torch
    would make zeros, or what was in memory.

    Raises:
        UsageError: a weight on "meta", and nobody who would bring it; the layer is named.
    """
    for name, layer in layers.items():
        weight = None if layer is None else layer._parameters.get("weight")
        if weight is not None and weight.is_meta and not x.is_meta and not why_called(layer):  # type: ignore[arg-type]
            raise UsageError(
                f"the weight of '{name}' has no numbers: it lies on \"meta\", and nothing brings "
                "it here when it is called. Load the weights with "
                "load_state_dict(…, assign=True), or keep the hooks of what offloaded them"
            )


def absent(model: nn.Module) -> str:
    """The path of the first part of a model whose own tensors lie on "meta" with nobody to bring
    them; empty where all are there.
    """
    for path, module in model.named_modules():
        own = [*module._parameters.values(), *module._buffers.values()]
        if any(x is not None and x.device.type == "meta" for x in own) and not why_called(module):
            return path or type(model).__name__
    return ""


def sharded(model: nn.Module) -> str:
    """The path of the first layer of which this process holds a part only; empty where all are
    whole.
    """
    if not torch.distributed.is_available():
        return ""
    from torch.distributed.tensor import DTensor

    return next((path for path, x in model.named_parameters() if isinstance(x, DTensor)), "")


def place_of(*modules: nn.Module) -> Tensor:
    """An empty tensor of the dtype and on the device of what modules compute with; offloaded
    weights come to the processor. Its shape is (0,).
    """
    own = [x for module in modules for x in module.parameters() if x.is_floating_point()]
    dtype = own[0].dtype if own else torch.get_default_dtype()
    device = next((x.device for x in own if x.device.type != "meta"), None)
    if device is None:
        device = torch.device("cpu" if not own or any(map(watched, modules)) else "meta")
    return torch.empty(0, dtype=dtype, device=device)


def refuse_empty(model: nn.Module, action: str) -> None:
    """Refuse a model that is to be called and cannot.

    Raises:
        UsageError: a weight on "meta" with nobody to bring it; it is named.
    """
    if path := absent(model):
        raise UsageError(
            f'{action}: {path} has no numbers, its own tensors lie on "meta" and nothing brings '
            "them: load the weights first, with "
            "load_state_dict(…, assign=True)"
        )


def refuse_parts(model: nn.Module, action: str) -> None:
    """Refuse a model whose weights are not all here.

    Raises:
        UsageError: a weight on "meta" with nobody to bring it, or one of which this process holds a
            part; it is named.
    """
    refuse_empty(model, action)
    if path := sharded(model):
        raise UsageError(
            f"{action}: of {path} this process holds a part only: give a whole model the state "
            "that torch.distributed.checkpoint.state_dict.get_model_state_dict gathers with "
            "full_state_dict=True"
        )


def called(layer: nn.Module, o: Tensor, lift: float | Tensor) -> Tensor:
    """A layer of o / lift, where float16 can hold o and not o / lift: float32. Tokens o are
    (B,N,C).

        f(o / lift) = f(0) + (f(o) - f(0)) / lift

    holds for whatever is a product and a sum, as adapters, shards and quantized weights are. On the
    first token it is tried.

    Raises:
        PrecisionError: the layer is something else.
    """
    first = o[:, :1]
    zero = layer(torch.zeros_like(first)).float()
    less = (
        None
        if layer.training or torch.compiler.is_compiling() or recording()
        else layer(first / LESS).float()
    )
    y = layer(o).float() - zero  # last: who keeps what he sees last has all tokens
    if less is not None and (y[:, :1] - LESS * (less - zero)).norm() > _rounding(y[:, :1], zero):
        raise PrecisionError(
            "float16 cannot hold what the output projection is given here, and this one "
            f"({type(layer).__name__}) cannot be given more and scaled "
            "down, since it is no product and a sum: use bfloat16 or float32, or set "
            'token_scale="tokens"'
        )
    return zero + y / lift


def _rounding(y: Tensor, zero: Tensor) -> Tensor:
    """By so much float16 may part a product from one of less, which lies on the same bias."""
    return NOT_LINEAR * y.norm() + LESS * torch.finfo(torch.float16).eps * zero.norm()
