"""What one forward pass costs, counted and not timed: parameters, multiply-adds, transcendental evaluations, memory for training."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from softless.errors import UsageError
from softless.measure.exps import ATTENTION, TranscendentalCounter


@dataclass(frozen=True)
class Cost:
    """One forward pass of one image."""

    input_size: tuple[int, int, int]  # channels, height, width
    parameters: int
    macs: int  # multiply-adds of matrix products and convolutions
    flops: int  # 2 x macs
    exps: int  # exponentials of attention: exp and softmax
    activation_exps: int  # transcendental evaluations of everything else (GELU, sigmoid, position tables …)
    transcendentals: Mapping[str, int]  # all of them, per kind
    activation_bytes: int  # what autograd keeps for the backward pass, parameters left out

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"transcendentals": dict(self.transcendentals)}

    def __str__(self) -> str:
        channels, height, width = self.input_size
        kinds = ", ".join(f"{kind} {number:,}" for kind, number in sorted(self.transcendentals.items())) or "none"
        rows = {
            "input": f"{channels} x {height} x {width}",
            "parameters": f"{self.parameters:,}",
            "multiply-adds": f"{self.macs / 1e9:.3f} G",
            "FLOPs (2 x multiply-adds)": f"{self.flops / 1e9:.3f} G",
            "exponentials in attention": f"{self.exps:,}",
            "other transcendentals": f"{self.activation_exps:,}",
            "  by kind": kinds,
            "kept for backward": f"{self.activation_bytes / 2**20:.1f} MiB",
        }
        width_of_names = max(map(len, rows))
        return "\n".join(f"{name:<{width_of_names}}  {value}" for name, value in rows.items())


def cost(model: nn.Module, input_size: int | tuple[int, ...] | None = None) -> Cost:
    """Counts one forward pass of one image, without computing it: any size at no expense.

    Args:
        model: The model, in any mode and dtype; it is left as it was.
        input_size: Side in pixels, (height, width) or (channels, height, width); the model's own size by default.

    Returns:
        The counts for a batch of one in evaluation mode; `activation_bytes` for a forward pass with gradients.

    Raises:
        UsageError: a size that the model refuses.
    """
    size = input_size_of(model, input_size)
    first = next(model.parameters(), torch.zeros(()))
    with undisturbed(model), FakeTensorMode(allow_non_fake_inputs=True) as fake:
        image = torch.empty(1, *size, dtype=first.dtype, device=first.device)
        # with gradients on: without them attention may merge its output projection, and what is counted is the model as it is written
        with torch.enable_grad(), FlopCounterMode(display=False) as flops, TranscendentalCounter() as counter:
            model(image)
        with _saved_bytes(model, fake) as kept, torch.enable_grad():
            model(image)
    kinds = dict(sorted(counter.kinds.items()))
    attention = sum(kinds.get(kind, 0) for kind in ATTENTION)
    total = flops.get_total_flops()
    return Cost(
        input_size=size,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        macs=total // 2,
        flops=total,
        exps=attention,
        activation_exps=sum(kinds.values()) - attention,
        transcendentals=kinds,
        activation_bytes=kept[0],
    )


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside, and the model as it was afterwards. (torch's module tracker fails on parameters that ask for gradients.)"""
    training, grad_modes = model.training, [parameter.requires_grad for parameter in model.parameters()]
    model.eval().requires_grad_(requires_grad=False)
    try:
        yield
    finally:
        model.train(training)
        for parameter, grad_mode in zip(model.parameters(), grad_modes, strict=True):
            parameter.requires_grad_(grad_mode)


def input_size_of(model: nn.Module, given: int | tuple[int, ...] | None) -> tuple[int, int, int]:
    """Channels, height and width: those given, and the model's own for the others."""
    own = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
    embed = getattr(model, "patch_embed", None)
    channels = getattr(model, "in_chans", None) or own[0]
    if given is None:
        height, width = getattr(embed, "img_size", None) or own[1:]
    elif isinstance(given, int):
        height = width = given
    elif len(given) == 2:
        height, width = given
    elif len(given) == 3:
        channels, height, width = given
    else:
        raise UsageError(f"input_size={given}: give a side, (height, width) or (channels, height, width), in pixels")
    if min(channels, height, width) < 1:
        raise UsageError(f"input_size={given}: every size must be positive")
    return int(channels), int(height), int(width)


@contextlib.contextmanager
def _saved_bytes(model: nn.Module, fake: FakeTensorMode) -> Iterator[list[int]]:
    """Bytes of distinct storages that autograd saves inside the block, those of parameters and buffers left out."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    owned = [fake.from_tensor(tensor) for tensor in (*model.parameters(), *model.buffers())]
    seen = {tensor.untyped_storage()._cdata for tensor in owned}
    alive: list[Tensor] = []  # a freed storage's address may be given out again
    total = [0]

    def pack(tensor: Tensor) -> Tensor:
        storage = fake.from_tensor(tensor).untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            alive.append(tensor)
            total[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total
