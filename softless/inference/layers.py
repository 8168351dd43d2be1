"""The parts of a block for inference: each takes the normalised tokens and the residual, and
returns the residual with its branch added.
"""

# B batch, H heads, N tokens, D features per head

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from softless.attention.attend import attend_packed, output_matrix
from softless.attention.packed import unpacked
from softless.attention.record import Grid
from softless.inference.packed import Activation, FusedConv, PackedLinear
from softless.layers.attention import Attention
from softless.layers.grid import Kept
from softless.layers.plain import CONV, NORM, give, is_nothing, watched, weights_of, why_called


class PackedAttention(Attention):
    """`softless.Attention` in inference: both projections packed, the layer scale in the second,
    the residual added to its output.

    Made of a module by `of`, never by its constructor.
    """

    qkv: PackedLinear  # type: ignore[assignment]
    proj: PackedLinear  # type: ignore[assignment]

    @classmethod
    def of(cls, source: Attention, dtype: torch.dtype, scale: Tensor | None) -> "PackedAttention":
        """A module that reads the buffer of its projection; its output is multiplied by scale
        (dim,).
        """
        packed = cls.__new__(cls)
        packed.__dict__.update(source.__dict__)
        packed._modules = dict(source._modules)
        packed.qkv = PackedLinear.of(source.qkv, dtype)
        packed.proj = PackedLinear.of(source.proj, dtype, scale)
        return packed

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        mask: Tensor | None = None,
        grid: Grid | None = None,
        onto: Tensor | None = None,
        **passed: Any,
    ) -> Tensor:
        """Attention over the tokens x (B,N,dim), plus `onto`; the rest as `Attention.forward`."""
        if attn_mask is not None or is_causal or mask is not None or passed or not self._untouched:
            y = super().forward(x, attn_mask, is_causal, mask, grid, **passed)
            return y if onto is None else onto + y
        # the projection stays apart: packed it is faster than a product with the operator's matrix
        # inside (the figure merging)
        return self.proj(
            attend_packed(self.qkv(x), self.num_heads, self.op, **self.extras(x.shape[1], grid)),
            onto,
        )

    @property
    def _untouched(self) -> bool:
        """Whether nobody waits for the places that are empty here."""
        return self.reads_the_buffer and is_nothing(self.norm) and not why_called(self.proj_drop)

    def first(self, x: Tensor, onto: Tensor) -> Tensor:
        """The first token's row of `forward`: (B,N,dim) and (B,1,dim) -> (B,1,dim)."""
        qkv, extras = self.qkv(x), self.extras(x.shape[1])
        matrix = output_matrix(qkv, self.num_heads, self.op, **extras)
        if matrix is None:
            o = attend_packed(qkv, self.num_heads, self.op, **extras)[:, :1]
        else:
            q, _, _ = unpacked(qkv[:, :1], self.num_heads)
            o = (q.to(matrix.dtype) @ matrix).transpose(1, 2).flatten(2).to(qkv.dtype)
        return self.proj(o, onto)


class PackedMlp(nn.Module):
    """act(x W1ᵀ + b1) W2ᵀ + b2 + onto, the layer scale in the second layer: (B,N,dim) ->
    (B,N,dim).
    """

    def __init__(self, fc1: PackedLinear, act: nn.Module, fc2: PackedLinear) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = fc1, act, fc2

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """Tokens (B,N,dim), and the residual (B,N,dim) that is added, -> (B,N,dim)."""
        return self.fc2(self.act(self.fc1(x)), onto)


class PackedLPI(nn.Module):
    """XCiT's local patch interaction: the scale of BatchNorm and the layer scale in the second
    convolution, its shift an addition before it.

        conv2(s a + t) = conv2'(a + t / s),    conv2' = s conv2        a = act(conv1(x))

    The shift cannot go into the second convolution's bias: at the border the image is padded with
    zeros after it.
    """

    def __init__(self, first: FusedConv, shift: Tensor, second: nn.Conv2d) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.register_buffer("shift", shift)

    @classmethod
    def of(cls, source: Any, activation: Activation, scale: Tensor | None) -> "PackedLPI":
        """Ours or timm's, its output multiplied by scale (dim,)."""
        norm, second, second_weights = source.bn, source.conv2, weights_of(source.conv2, kinds=CONV)
        assert second_weights is not None, "who packs a layer has asked whether it may be read"
        factor, shift = factors(norm)
        after = torch.ones_like(factor) if scale is None else scale.detach().double()
        first = nn.Conv2d(
            second.in_channels,
            second.out_channels,
            second.kernel_size,
            second.stride,
            second.padding,
            groups=second.groups,
            device=second_weights.W.device,
            dtype=second_weights.W.dtype,
        )
        with torch.no_grad():
            give(
                first,
                second_weights.W.double() * (factor * after)[:, None, None, None],
                (0 if second_weights.b is None else second_weights.b.double()) * after,
            )
        return cls(
            FusedConv(source.conv1, activation),
            (shift / factor)[:, None, None].to(second_weights.W.dtype),
            first,
        )

    def ahead(self, grid: Tensor) -> Tensor:
        """What the second convolution is given: (B,dim,h,w) -> (B,dim,h,w)."""
        return self.first(grid).add_(self.shift)

    def forward(self, x: Tensor, height: int, width: int, onto: Tensor | None = None) -> Tensor:
        """Tokens (B,N,dim), N = height width, and the residual of that shape -> (B,N,dim)."""
        grid = x.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        grid = self.second(self.ahead(grid))
        y = grid.permute(0, 2, 3, 1).flatten(1, 2)
        return y if onto is None else y.add_(onto)


def factors(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What BatchNorm multiplies by in evaluation, and adds: (C,) each, float64."""
    assert norm.running_var is not None
    assert norm.running_mean is not None
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    weight, bias = weights_of(norm, kinds=NORM) or (None, None)
    factor = factor if weight is None else factor * weight.detach().double()
    shift = -norm.running_mean.double() * factor
    return factor, shift if bias is None else shift + bias.detach().double()


class Added(nn.Module):
    """A branch as it is, multiplied by its layer scale and added to the residual."""

    scale: Tensor | None

    def __init__(self, branch: nn.Module, scale: Tensor | None) -> None:
        super().__init__()
        self.branch = branch
        self.register_buffer("scale", None if scale is None else scale.detach())

    def forward(self, x: Tensor, *args: Any, onto: Tensor, **kwargs: Any) -> Tensor:
        """Tokens (B,N,dim) and the residual `onto` (B,N,dim) -> (B,N,dim)."""
        y = self.branch(x, *args, **kwargs)
        return onto + (y if self.scale is None else y * self.scale)


def cast(value: Any, dtype: torch.dtype) -> Any:
    """The floating-point tensors of a value in another dtype, whatever lists, tuples and mappings
    they lie in.
    """
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return type(value)((name, cast(element, dtype)) for name, element in value.items())
    if isinstance(value, list | tuple):
        elements = [cast(element, dtype) for element in value]
        return type(value)(*elements) if hasattr(value, "_fields") else type(value)(elements)
    return value


class InDtype(nn.Module):
    """A part that computes in a dtype of its own: what it is given is cast to it, and its answers
    to the dtype around.
    """

    def __init__(self, part: nn.Module, inside: torch.dtype, outside: torch.dtype) -> None:
        super().__init__()
        self.part, self.inside, self.outside = part, inside, outside

    # it stays
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "InDtype":  # noqa: ARG002
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the part, of arguments and answers of any floating-point dtype."""
        return cast(self.part(*cast(args, self.inside), **cast(kwargs, self.inside)), self.outside)

    def extra_repr(self) -> str:
        return f"{self.inside} inside, {self.outside} outside"


class LookedInto(InDtype):
    """As `InDtype`, of a part whose attributes its neighbours read."""

    def __getattr__(self, name: str) -> Any:
        """What else is asked for is the part's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in {"part", "_modules", "_parameters", "_buffers"}:
                raise
            return getattr(self.part, name)


class PatchProjection(nn.Module):
    """A convolution whose stride is its side, as one product: (B,C,H,W) -> (B,C',H/side,W/side),
    channels last.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        weights = weights_of(conv, kinds=CONV)
        assert weights is not None, "who packs a layer has asked whether it may be read"
        self.in_channels = conv.in_channels
        self.kernel_size = self.stride = (conv.kernel_size[0], conv.kernel_size[1])
        # a patch's rows, its columns, its colours
        weight = weights.W.detach().permute(0, 2, 3, 1).flatten(1)
        self.linear = PackedLinear(weight, weights.b, dtype)

    def forward(self, image: Tensor) -> Tensor:
        """Images (B,C,H,W) -> (B,C',H/rows,W/columns), floored."""
        rows, columns = self.stride
        image = image[..., : image.shape[-2] // rows * rows, : image.shape[-1] // columns * columns]
        B, C, H, W = image.shape
        patches = (
            image
            .to(self.linear.dtype)
            .reshape(B, C, H // rows, rows, W // columns, columns)
            .permute(0, 2, 4, 3, 5, 1)
        )
        return self.linear(patches.flatten(3)).permute(0, 3, 1, 2)


class KeptPositions(nn.Module):
    """XCiT's positions, projected once for each grid and kept as tokens lie: (batch, height, width)
    -> (batch, dim, height, width).
    """

    def __init__(self, positions: nn.Module) -> None:
        super().__init__()
        self.positions = positions
        self.kept = Kept()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "KeptPositions":
        """Another device or dtype: what is kept belongs to the last one."""
        self.kept = Kept()
        super()._apply(fn, recurse)
        return self

    def forward(self, batch: int, height: int, width: int) -> Tensor:
        """-> (batch,dim,height,width), expanded over the batch."""
        if watched(self.positions):
            positions: Tensor = self.positions(batch, height, width)
            return positions
        weight = next(self.positions.parameters())
        cached = self.kept.get(
            (height, width, weight.dtype, weight.device), lambda: self._made(height, width)
        )
        return cached.expand(batch, -1, -1, -1)

    def _made(self, height: int, width: int) -> Tensor:
        positions: Tensor = self.positions(1, height, width)
        return positions.contiguous(memory_format=torch.channels_last)
