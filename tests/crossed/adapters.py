"""What people do to a layer that is not in its weight: each with the plain weight that says the
same, and with nothing left of it.

`put` changes layers of a model in place, `merge` gives them the weight that must give the same
answers. Without either a model is the control.
"""

import copy
import importlib.util
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize

Model = Any
Paths = Sequence[str]


@dataclass(frozen=True)
class Adapter:
    """One row of the crossed table."""

    put: Callable[[Model, Paths], None]
    merge: Callable[[Model, Paths], None]
    around: Callable[[], Any] = nullcontext  # what must hold while the model is used
    needs: str = ""  # a package
    nearness: float = 1e-4  # relative error of a right answer
    answers: bool = True  # False: no right answer is there, and one sentence is asked for


def change(layer: Any, path: str) -> Tensor:
    """A change of a layer's weight, of rank two where it is a matrix, as large as the weight."""
    weight = layer.weight.detach()
    first, second = factors(layer, path) if weight.ndim == 2 else (None, None)
    if first is None or second is None:
        made = torch.randn(weight.shape, generator=_generator(path))
        return (made * weight.float().norm() / made.norm()).to(weight.dtype)
    return (second @ first).to(weight.dtype)


def factors(layer: Any, path: str) -> tuple[Tensor, Tensor]:
    """The two factors of a change: (2, in) and (out, 2)."""
    weight, generator = layer.weight.detach().float(), _generator(path)
    first = torch.randn(2, weight.shape[1], generator=generator)
    second = torch.randn(weight.shape[0], 2, generator=generator)
    return first, second * weight.norm() / (second @ first).norm()


def _generator(path: str) -> torch.Generator:
    return torch.Generator().manual_seed(sum(map(ord, path)))


def layers(model: Model, paths: Paths) -> Iterator[tuple[Any, str]]:
    for path in paths:
        yield model.get_submodule(path), path


def times(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    """What a layer would add with another weight."""
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    return F.linear(x, weight.to(x.dtype))


@torch.no_grad()
def merge_change(model: Model, paths: Paths) -> None:
    for layer, path in layers(model, paths):
        layer.weight.add_(change(layer, path))


# The rows


def lora(model: Model, paths: Paths) -> None:
    import peft

    dtype = next(model.parameters()).dtype
    told = {path: factors(layer, path) for layer, path in layers(model, paths)}
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=list(paths), init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.inject_adapter_in_model(config, model)
    for path, (first, second) in told.items():
        layer = model.get_submodule(path)
        layer.lora_A["default"].weight.data.copy_(first)
        layer.lora_B["default"].weight.data.copy_(second)
    model.to(dtype)


def weight_norm(model: Model, paths: Paths) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for layer, path in layers(model, paths):
            nn.utils.weight_norm(layer)
            layer.weight_g.data.mul_(gains(layer.weight_g, path))


def gains(like: Tensor, path: str) -> Tensor:
    return (0.5 + 1.5 * torch.rand(like.shape, generator=_generator(path))).to(like.dtype)


@torch.no_grad()
def merge_gains(model: Model, paths: Paths) -> None:
    for layer, path in layers(model, paths):
        rows = layer.weight.flatten(1)[:, :1].unflatten(1, (1,) * (layer.weight.ndim - 1))
        layer.weight.mul_(gains(rows, path))


class Plus(nn.Module):
    """A parametrization that adds."""

    def __init__(self, what: Tensor) -> None:
        super().__init__()
        self.register_buffer("what", what)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.what  # type: ignore[operator]


def parametrized(model: Model, paths: Paths) -> None:
    for layer, path in layers(model, paths):
        parametrize.register_parametrization(layer, "weight", Plus(change(layer, path)))


def forward_hook(model: Model, paths: Paths) -> None:
    for layer, path in layers(model, paths):
        what = change(layer, path)
        layer.register_forward_hook(lambda m, given, out, what=what: out + times(m, given[0], what))


def pre_hook(model: Model, paths: Paths) -> None:
    for layer, _ in layers(model, paths):
        layer.register_forward_pre_hook(lambda _, given: (1.5 * given[0],))


@torch.no_grad()
def merge_half_more(model: Model, paths: Paths) -> None:
    for layer, _ in layers(model, paths):
        layer.weight.mul_(1.5)


def backward_hook(model: Model, paths: Paths) -> None:
    """The gradient of a layer's input counts threefold; what a model answers is in its weight."""
    merge_change(model, paths)
    for layer, _ in layers(model, paths):
        layer.register_full_backward_hook(lambda _, grads, __: (grads[0] * 3,))


class _Thrice(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        return 3 * grad


class Closed(nn.Module):
    """A layer that nobody looks into."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        if isinstance(layer, nn.Module) and not isinstance(layer, nn.Conv2d):
            self.in_features, self.out_features, self.bias = (
                layer.in_features,
                layer.out_features,
                layer.bias,
            )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y


class Thrice(Closed):
    """A layer whose input's gradient counts threefold."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_Thrice.apply(x))


def merge_backward(model: Model, paths: Paths) -> None:
    """The same gradient by a layer of another class."""
    merge_change(model, paths)
    for layer, path in list(layers(model, paths)):
        model.set_submodule(path, Thrice(layer))


class Mark:
    """A note on a module for a hook on all of them."""

    def __init__(self, what: Tensor) -> None:
        self.what = what


def global_hook(model: Model, paths: Paths) -> None:
    for layer, path in layers(model, paths):
        layer.mark = Mark(change(layer, path))


@contextmanager
def marks_count() -> Iterator[None]:
    def hook(module: nn.Module, given: Any, out: Any) -> Any:
        mark = getattr(module, "mark", None)
        return None if mark is None else out + times(module, given[0], mark.what)

    held = register_module_forward_hook(hook)
    try:
        yield
    finally:
        held.remove()


def own_forward(model: Model, paths: Paths) -> None:
    for layer, path in layers(model, paths):
        what = change(layer, path)

        def forward(self: Any, x: Tensor, what: Tensor = what) -> Tensor:
            return type(self).forward(self, x) + times(self, x, what)

        layer.forward = types.MethodType(forward, layer)


def dynamic(model: Model, paths: Paths) -> None:
    if not all(isinstance(layer, nn.Linear) for layer, _ in layers(model, paths)):
        raise TypeError("torch has no dynamic convolution")
    merge_change(model, paths)
    kinds: Any = dict.fromkeys(paths, torch.ao.quantization.default_dynamic_qconfig)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.ao.quantization.quantize_dynamic(model, kinds, dtype=torch.qint8, inplace=True)


def merge_dynamic(model: Model, paths: Paths) -> None:
    """Its input is rounded to eight bits as well: the same layer, out of sight."""
    dynamic(model, paths)
    for layer, path in list(layers(model, paths)):
        model.set_submodule(path, Closed(layer))


def int8(model: Model, paths: Paths) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    merge_change(model, paths)
    chosen = {id(layer) for layer, _ in layers(model, paths)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_(model, Int8WeightOnlyConfig(), filter_fn=lambda module, _: id(module) in chosen)


@torch.no_grad()
def merge_int8(model: Model, paths: Paths) -> None:
    quantized = copy.deepcopy(model)
    int8(quantized, paths)
    for layer, path in layers(model, paths):
        layer.weight.copy_(quantized.get_submodule(path).weight.dequantize())


def offloaded(model: Model, paths: Paths) -> None:
    import accelerate

    merge_change(model, paths)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def on_meta(model: Model, paths: Paths) -> None:
    for layer, _ in layers(model, paths):
        layer.to("meta")


def sharded(model: Model, paths: Paths) -> None:
    from torch.distributed.fsdp import fully_shard

    merge_change(model, paths)
    fully_shard(model.get_submodule(paths[0]))
    fully_shard(model)


ADAPTERS: dict[str, Adapter] = {
    "LoRA": Adapter(lora, merge_change, needs="peft"),
    "weight_norm": Adapter(weight_norm, merge_gains),
    "parametrize": Adapter(parametrized, merge_change),
    "forward hook": Adapter(forward_hook, merge_change),
    "pre-hook": Adapter(pre_hook, merge_half_more),
    "full backward hook": Adapter(backward_hook, merge_backward),
    "global hook": Adapter(global_hook, merge_change, around=marks_count),
    "instance forward": Adapter(own_forward, merge_change),
    "dynamic int8": Adapter(dynamic, merge_dynamic, nearness=0.05),
    "torchao int8": Adapter(int8, merge_int8, needs="torchao", nearness=5e-3),
    "accelerate offload": Adapter(offloaded, merge_change, needs="accelerate"),
    "meta": Adapter(on_meta, merge_change, answers=False),
    "FSDP2": Adapter(sharded, merge_change),
}


def absent(adapter: Adapter) -> bool:
    """Whether the package that a row needs is not installed."""
    return bool(adapter.needs) and importlib.util.find_spec(adapter.needs) is None
