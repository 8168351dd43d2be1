"""What a block is, measured: x + s1 * attention(norm(x)), and behind it a last layer whose output
enters the block's output channel by channel.

No list of classes is kept. A block is tried on two images, and what it computes has to be what is
said here. A block that computes something else is left alone, with the reason.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from softless.errors import UsageError
from softless.layers.plain import weights_of

NEAR = 1e-4  # relative, in float32: what a block computes and what it is taken to compute
OTHER = -1  # tokens of a branch that is no part of its stream


class Reached(BaseException):
    """A pass has come to where it was to end; no except clause of a model takes it."""


@dataclass(frozen=True)
class BlockCall:
    """A block at work: its stream is the first argument, (B, …, C)."""

    stream: Tensor
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def on(self, block: nn.Module, stream: Tensor) -> Tensor:
        """The block on another stream (B, N, C)."""
        output: Tensor = block(stream, *self.args, **self.kwargs)
        return output


@dataclass(frozen=True)
class LayerPlace:
    """A linear layer whose output enters a stream: stream = rest + scale * layer(input)."""

    path: str  # of the layer, within the block
    scale: Tensor | None  # (C), None is 1
    tokens: int | None = None  # the first so many alone, as in class attention; None is all

    def layer(self, block: nn.Module) -> nn.Linear:
        """The layer in a block."""
        layer = block.get_submodule(self.path)
        assert isinstance(layer, nn.Linear)
        return layer

    def of(self, stream: Tensor) -> Tensor:
        """The part of a stream (B, …, C) that the layer's output enters."""
        return stream if self.tokens is None else stream[:, : self.tokens]


@dataclass(frozen=True)
class Structure:
    """What can be fitted in a block."""

    attention: LayerPlace | None  # enters the stream that `behind` is given
    behind: str  # the module of the block whose input is the stream behind its attention
    attention_path: str  # of the attention, within the block
    mlp: LayerPlace | None  # enters the block's output
    why_not: str = ""  # why the attention's projection is left alone
    why_not_mlp: str = ""


def structure(block: nn.Module, attention_path: str, call: BlockCall) -> Structure:
    """What can be fitted in a block, measured on its stream.

    Args:
        block: the block, in evaluation mode.
        attention_path: of its attention, within it.
        call: what the block is given on some images, at least one.
    """
    if not attention_path:
        mlp, why_mlp = _last_layer(block, attention_path, call)
        return Structure(None, "", "", mlp, "it has no attention", why_mlp)
    projection, why = _projection(block, attention_path)
    behind = ""
    port = None
    if not why:
        port, behind, why = _behind(block, attention_path, projection, call)
    mlp, why_mlp = _last_layer(block, attention_path, call)
    return Structure(port, behind, attention_path, mlp, why, why_mlp)


def _projection(block: nn.Module, attention_path: str) -> tuple[str, str]:
    attention = block.get_submodule(attention_path)
    inner = "inner.proj" if hasattr(attention, "inner") else "proj"
    path = f"{attention_path}.{inner}"
    layer = getattr(getattr(attention, "inner", attention), "proj", None)
    if not isinstance(layer, nn.Module) or weights_of(layer) is None:
        kind = type(layer).__name__
        return path, f"its projection is a {kind} whose weight is not read"
    return path, ""


def _behind(
    block: nn.Module, attention_path: str, projection: str, call: BlockCall
) -> tuple[LayerPlace | None, str, str]:
    """Where the output of the attention enters the stream: the first child of the block behind it
    whose input is the stream plus that output, scaled.
    """
    x = call.stream
    with observed(block, [attention_path, projection], inputs=_children(block)) as calls:
        call.on(block, x)
    if calls.counts[attention_path] != 1 or calls.counts[projection] != 1:
        return None, "", "its attention is not called once a pass"
    out, projected = calls.outputs[attention_path], calls.outputs[projection]
    if (
        not isinstance(out, Tensor)
        or not isinstance(projected, Tensor)
        or (tokens := _tokens(out, x)) == OTHER
        or projected.numel() != out.numel()
    ):
        return None, "", "its attention answers another shape than the stream's"
    if not _near(projected.reshape(out.shape), out, out):
        return None, "", "its attention changes what its projection gives"
    for path in calls.order[calls.order.index(attention_path) :]:
        entering = calls.inputs.get(path)
        if entering is None or entering.shape not in {x.shape, out.shape}:
            continue
        for scale in _scales(block, out.shape[-1]):
            port = LayerPlace(projection, scale, tokens)
            change = port.of(entering) - port.of(x)
            if _near(change, out if scale is None else out * scale, entering):
                return port, path, ""
    return None, "", "its attention is not added to the stream that it was computed from"


def _children(block: nn.Module) -> list[str]:
    """Modules right below a block, and in the lists right below it."""
    return [
        path
        for path, module in block.named_modules()
        if path and path.count(".") <= 1 and not isinstance(module, nn.Identity)
    ]


def _scales(block: nn.Module, width: int) -> Iterator[Tensor | None]:
    """What may stand ahead of a branch: nothing, or a vector of the block's own."""
    yield None
    for path, parameter in block.named_parameters():
        name = path.rpartition(".")[2]
        if parameter.shape == (width,) and name not in {"weight", "bias"}:
            yield parameter.detach()


def _last_layer(
    block: nn.Module, attention_path: str, call: BlockCall
) -> tuple[LayerPlace | None, str]:
    """The last linear layer of a block outside its attention, if the block's output follows it
    channel by channel.
    """
    linear = [
        path
        for path, module in block.named_modules()
        if not (attention_path and f"{path}.".startswith(f"{attention_path}."))
        and isinstance(module, nn.Linear)
        and weights_of(module) is not None
    ]
    with observed(block, linear) as calls:
        output = call.on(block, call.stream)
    called = [path for path in calls.order if path in calls.outputs]
    if not called:
        return None, "it has no linear layer behind its attention"
    last = called[-1]
    if calls.counts[last] != 1 or (tokens := _tokens(calls.outputs[last], output)) == OTHER:
        return None, f"its last linear layer, {last}, does not write its output"
    generator = torch.Generator(device="cpu").manual_seed(0)
    step = torch.randn(output.shape[-1], generator=generator).to(output) * _size(output)
    moved = block.get_submodule(last).register_forward_hook(lambda _, __, z: z + step)
    try:
        other = call.on(block, call.stream)
    finally:
        moved.remove()
    for scale in _scales(block, output.shape[-1]):
        port = LayerPlace(last, scale, tokens)
        change = port.of(other - output)
        expected = step if scale is None else step * scale
        if _near(change, expected.expand_as(change), output):
            return port, ""
    return None, f"its output does not follow that of {last} channel by channel"


def _tokens(branch: Tensor, stream: Tensor) -> int | None:
    """How many tokens of a stream (B, …, C) a branch covers: None is all, OTHER is neither."""
    if branch.shape == stream.shape:
        return None
    alike = (
        branch.ndim == stream.ndim == 3
        and branch.shape[0] == stream.shape[0]
        and branch.shape[2] == stream.shape[2]
        and branch.shape[1] < stream.shape[1]
    )
    return branch.shape[1] if alike else OTHER


def _size(x: Tensor) -> float:
    return float(x.float().square().mean().sqrt()) or 1.0


def _near(x: Tensor, y: Tensor, beside: Tensor) -> bool:
    """Whether two tensors are equal but for the rounding of a third, which they were taken from."""
    distance = float((x - y).double().norm())
    return distance <= NEAR * float(y.double().norm()) + 1e-6 * float(beside.double().norm())


class Seen:
    """What the modules of a block were given and answered, and in what order."""

    def __init__(self) -> None:
        self.outputs: dict[str, Any] = {}
        self.inputs: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.order: list[str] = []


@contextmanager
def observed(
    block: nn.Module, outputs: Sequence[str], inputs: Sequence[str] = ()
) -> Iterator[Seen]:
    """A block whose modules are looked at; what they answer is copied, since a layer scale may be
    multiplied in place.

    Args:
        block: the block.
        outputs: paths of modules whose output is kept.
        inputs: paths of modules whose first input is kept.
    """
    calls = Seen()

    def answered(path: str, _: nn.Module, __: Any, output: Any) -> None:
        calls.counts[path] = calls.counts.get(path, 0) + 1
        calls.outputs[path] = output.clone() if isinstance(output, Tensor) else output
        calls.order.append(path)

    def called(path: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            calls.inputs[path] = args[0].clone()
            calls.order.append(path)

    hooks = [
        block.get_submodule(path).register_forward_hook(partial(answered, path)) for path in outputs
    ]
    hooks += [
        block.get_submodule(path).register_forward_pre_hook(partial(called, path), prepend=True)
        for path in inputs
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def attention_input(block: nn.Module, path: str, call: BlockCall, stream: Tensor) -> Tensor:
    """What a module of a block is given on a stream (B, N, C); the pass ends there.

    Raises:
        UsageError: the module is not called.
    """
    kept: list[Tensor] = []

    def reach(_: nn.Module, args: tuple[Any, ...]) -> None:
        kept.append(args[0])
        raise Reached

    hook = block.get_submodule(path).register_forward_pre_hook(reach, prepend=True)
    try:
        call.on(block, stream)
    except Reached:
        return kept[0]
    finally:
        hook.remove()
    raise UsageError(f"{path} of a {type(block).__name__} is not called on these images")
