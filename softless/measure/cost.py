"""What one forward pass costs, counted and not timed: parameters, multiply-adds, transcendental
evaluations, memory.

What is counted is the model as plain torch computes it, with fused softmax attention: the numbers
are those of the shapes alone, and do not hang on the device, the version of torch or whether the
native kernels are there.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from softless.attention.kernels import native
from softless.errors import UsageError, need_module
from softless.measure.exps import ATTENTION, TranscendentalCounter
from softless.measure.flops import FlopCounter
from softless.measure.memory import LiveBytes, distinct, packed_weights, weight_bytes
from softless.modes import in_evaluation, keeping_nothing, unwrapped

LONGEST = 2**20  # pixels of a side: beyond any slide, and numbers of bytes stay within 64 bits


@dataclass(frozen=True)
class Cost:
    """One forward pass of one image, or of one bag of tiles."""

    input_size: tuple[int, int, int]  # channels, height, width; of a bag 1, tiles, features
    parameters: int  # trained numbers; of an inference copy those that folding left
    macs: int  # multiply-adds of matrix products and convolutions
    flops: int  # 2 x macs
    exps: int  # exponentials of attention: exp and softmax
    # transcendental evaluations of everything else (GELU, sigmoid, position tables …)
    activation_exps: int
    transcendentals: Mapping[str, int]  # all of them, per kind
    # what autograd keeps for the backward pass, weights left out; None: no gradients
    activation_bytes: int | None
    weight_bytes: int = 0  # of parameters and buffers, in their dtypes
    # peak inference memory: weights, the image, and the most that lives at once beside them
    peak_bytes: int = 0
    # operators that ran, may hold products and have no formula: macs lacks theirs
    uncounted: tuple[str, ...] = ()
    note: str = ""  # what is left out on purpose
    # what attention modules add to their operators: it is counted with the rest
    companions: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"transcendentals": dict(self.transcendentals)}

    def __str__(self) -> str:
        channels, height, width = self.input_size
        kinds = (
            ", ".join(f"{kind} {number:,}" for kind, number in sorted(self.transcendentals.items()))
            or "none"
        )
        saved = "nothing: this copy has no gradients"
        if self.activation_bytes is not None:
            saved = f"{self.activation_bytes / 2**20:.1f} MiB"
        rows = {
            "input": f"{channels} x {height} x {width}",
            "parameters": f"{self.parameters:,}",
            "weights": f"{self.weight_bytes / 1e6:.1f} MB",
            "multiply-adds": f"{self.macs / 1e9:.3f} G",
            "FLOPs (2 x multiply-adds)": f"{self.flops / 1e9:.3f} G",
            "exponentials in attention": f"{self.exps:,}",
            "other transcendentals": f"{self.activation_exps:,}",
            "  by kind": kinds,
            "peak inference memory": f"{self.peak_bytes / 1e6:.1f} MB",
            "kept for backward": saved,
        }
        if self.companions:
            rows["companions of attention"] = ", ".join(self.companions)
        width_of_names = max(map(len, rows))
        lines = [f"{name:<{width_of_names}}  {value}" for name, value in rows.items()]
        lines += [f"not counted: {self.note}"] if self.note else []
        if self.uncounted:
            lines.append(
                f"warning: {', '.join(self.uncounted)} may multiply matrices and no formula is "
                "known: the true multiply-adds "
                "are more. Give one with torch.utils.flop_counter.register_flop_formula"
            )
        return "\n".join(lines)


def cost(model: nn.Module, input_size: int | tuple[int, ...] | None = None) -> Cost:
    """Counts one forward pass of one image, without computing it: any size at no expense.

    A model whose work depends on what is in the image (a detector) says by `counted` which part
    does not: parameters and weights are those of the whole, the rest is of that part, and the note
    says what it lacks.

    Peak inference memory, in bytes: the weights, the input image, and the largest sum of tensors
    that are alive at once in a pass without gradients, each from the operator that makes it until
    its last reader lets it go. Softmax attention counts as fused, without N x N weights. What an
    operator needs inside itself and what an allocator rounds up are left out.

    Args:
        model: The model, in any mode and dtype; it is left as it was.
        input_size: Side, (height, width) or (channels, height, width), in pixels; the model's own
            size by default. Of a model of bags the number of tiles.

    Returns:
        The counts for a batch of one in evaluation mode; `activation_bytes` for a forward pass with
        gradients.

    Raises:
        UsageError: a size that the model refuses.

    Examples:
        >>> model = softless.create_model("sima_deit_tiny_patch16_224", depth=2)
        >>> softless.cost(model, input_size=(320, 256)).exps
        0
        >>> softless.cost(model).parameters
        1268776
    """
    need_module(model, "cost")
    model = unwrapped(model)
    size = input_size_of(model, input_size)
    first = next(model.parameters(), torch.zeros(()))
    with (
        undisturbed(model),
        FakeTensorMode(allow_non_fake_inputs=True) as fake,
        native.without(),
        _Alike() as alike,
        refused(size),
    ):
        part = part_of(model)
        image = torch.empty(shape_of(model, size), dtype=first.dtype, device=first.device)
        # with gradients on: without them attention may merge its output projection, and what is
        # counted is the model as it is written
        with torch.enable_grad(), FlopCounter() as flops, TranscendentalCounter() as counter:
            part(image)
        with torch.no_grad(), LiveBytes([*map(fake.from_tensor, _stored(model)), image]) as live:
            part(image)
        saved: list[int] | None = None
        if trainable(model):
            with _saved_bytes(part, fake, alike) as saved, torch.enable_grad():
                part(image)
        of_image = image.untyped_storage().nbytes()
    kinds = dict(sorted(counter.kinds.items()))
    attention = sum(kinds.get(kind, 0) for kind in ATTENTION)
    weights = weight_bytes(model)
    numbers = [*model.parameters(), *packed_weights(model)]
    return Cost(
        input_size=size,
        parameters=sum(tensor.numel() for tensor in distinct(numbers)),
        macs=flops.total // 2,
        flops=flops.total,
        exps=attention,
        activation_exps=sum(kinds.values()) - attention,
        transcendentals=kinds,
        activation_bytes=saved[0] if saved is not None else None,
        weight_bytes=weights,
        peak_bytes=weights + of_image + live.peak,
        uncounted=tuple(sorted(flops.uncounted)),
        note=str(getattr(model, "not_counted", "")),
        companions=companions_of(model),
    )


def companions_of(model: nn.Module) -> tuple[str, ...]:
    """What the attention modules of a model add to their operators, each named once."""
    lists = (getattr(module, "companions", ()) for module in model.modules())
    return tuple(
        dict.fromkeys(name for names in lists if isinstance(names, tuple) for name in names)
    )


def part_of(model: nn.Module) -> nn.Module:
    """The part of a model whose work the image's size decides, in evaluation mode: the whole, but
    for detectors.
    """
    part: nn.Module = getattr(model, "counted", model)
    return part.eval()


def trainable(model: nn.Module) -> bool:
    """Whether a model has gradients: an inference copy has none."""
    return not hasattr(model, "optimized")


def _stored(model: nn.Module) -> list[Tensor]:
    return distinct([*model.parameters(), *model.buffers()])


class _Alike(TorchFunctionMode):
    """What torch does otherwise from machine to machine, alike on all.

    Softmax attention is one operator: which of its kernels torch would take depends on the device.
    BatchNorm in evaluation keeps statistics for the backward pass on some devices and none on
    others, which `aside` tells who counts bytes.

    Attributes:
        aside: whether BatchNorm runs just now.
    """

    aside = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _fused(*args, **(kwargs or {}))
        if func not in {F.batch_norm, torch.batch_norm}:
            return func(*args, **(kwargs or {}))
        self.aside = True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.aside = False


def _fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    # the fused operator knows no other
    if not (q.ndim == k.ndim == v.ndim == 4) or q.shape[-1] != v.shape[-1]:
        options = {"enable_gqa": True} if enable_gqa else {}
        attended: Tensor = torch.ops.aten._scaled_dot_product_attention_math(
            q, k, v, attn_mask, dropout_p, is_causal, scale=scale, **options
        )[0]
        return attended
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill(~attn_mask, -torch.inf)
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out: Tensor = fused(q, k, v, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return out


@contextlib.contextmanager
def refused(size: tuple[int, ...]) -> Iterator[None]:
    """An assertion of a model about its image, as timm's models have it, is the caller's to mend.

    Raises:
        UsageError: the model asserts that its input has another size.
    """
    try:
        yield
    except AssertionError as error:
        if "nput" not in str(error):
            raise
        raise UsageError(
            f"the model refuses an image of {' x '.join(map(str, size))} ({error}): build it for "
            "this size, for example "
            "softless.create_model(name, img_size=…) or dynamic_img_size=True"
        ) from error


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside, and the model as it was afterwards.

    (torch's module tracker fails on parameters that ask for gradients.)
    """
    grad_modes = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(requires_grad=False)
    try:
        with keeping_nothing(model), in_evaluation(model):
            yield
    finally:
        for parameter, grad_mode in zip(model.parameters(), grad_modes, strict=True):
            parameter.requires_grad_(grad_mode)


def input_size_of(model: nn.Module, size: int | tuple[int, ...] | None) -> tuple[int, int, int]:
    """Channels, height and width: those given, and the model's own for the others. Of a model of
    bags 1, tiles and features.

    Raises:
        UsageError: neither a side nor two or three sizes, or one that is not in 1..`LONGEST`.
    """
    if callable(bag_size := getattr(model, "bag_size", None)):
        of_bag: tuple[int, int, int] = bag_size(size)
        return of_bag
    own = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
    embed = getattr(model, "patch_embed", None)
    channels = getattr(model, "in_chans", None) or own[0]
    if size is None:
        height, width = getattr(embed, "img_size", None) or own[1:]
    elif isinstance(size, int):
        height = width = size
    elif len(size) == 2:
        height, width = size
    elif len(size) == 3:
        channels, height, width = size
    else:
        raise UsageError(
            f"input_size={size}: give a side, (height, width) or (channels, height, width), in "
            "pixels"
        )
    if not 1 <= min(channels, height, width) <= max(channels, height, width) <= LONGEST:
        raise UsageError(f"input_size={size}: every size lies in 1..{LONGEST:,}")
    return int(channels), int(height), int(width)


def shape_of(model: nn.Module, size: tuple[int, int, int]) -> tuple[int, ...]:
    """Of one input of a size: (1, channels, height, width), of a bag (1, tiles, features)."""
    return size if hasattr(model, "bag_size") else (1, *size)


@contextlib.contextmanager
def _saved_bytes(model: nn.Module, fake: FakeTensorMode, alike: _Alike) -> Iterator[list[int]]:
    """Bytes of distinct storages that autograd saves inside the block, those of parameters and
    buffers left out.

    BatchNorm's own statistics (C,) are left out too: they lie among its weights, and only some
    devices make them in evaluation.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    owned = [fake.from_tensor(tensor) for tensor in (*model.parameters(), *model.buffers())]
    storages = {tensor.untyped_storage()._cdata for tensor in owned}
    alive: list[Tensor] = []  # a freed storage's address may be given out again
    total = [0]

    def pack(tensor: Tensor) -> Tensor:
        storage = fake.from_tensor(tensor).untyped_storage()
        if storage._cdata not in storages and not (alike.aside and tensor.ndim == 1):
            storages.add(storage._cdata)
            alive.append(tensor)
            total[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total
