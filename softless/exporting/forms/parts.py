"""Parts of an edge form: layers with what stands before and after them folded in, in float64.

Everything here copies; the model that is read is left as it is. A part that has no form raises
`NoForm`, whose path grows on the way out of `within`.
"""

# B batch, N tokens, C channels, h x w grid

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from timm.layers import DropPath, LayerScale, Mlp
from timm.layers import LayerNorm as TimmLayerNorm
from torch import Tensor, nn

from softless.attention.record import Grid
from softless.errors import UsageError
from softless.inference.layers import factors
from softless.layers.plain import (
    CONV,
    LINEAR,
    NORM,
    give,
    is_nothing,
    watched,
    weights_of,
    why_called,
    why_not,
)

WIDE = (torch.float32, torch.float64)  # what weights are folded in
LAYER_NORMS = frozenset({nn.LayerNorm, TimmLayerNorm})
LEFT_OUT = frozenset({nn.Identity, nn.Dropout, DropPath})  # nothing in evaluation


class NoForm(UsageError):
    """A part of a model has no edge form: where it stands, and why, as the end of a sentence."""

    def __init__(self, why: str, path: str = "") -> None:
        super().__init__(f"{path}: {why}" if path else why)
        self.why, self.path = why, path


@contextmanager
def within(path: str) -> Iterator[None]:
    """What is refused inside is refused under this path."""
    try:
        yield
    except NoForm as error:
        raise NoForm(error.why, f"{path}.{error.path}" if error.path else path) from None


@dataclass(frozen=True)
class Setting:
    """What an edge form is made for.

    Args:
        size: Height and width of the images, in pixels.
        batch: 1 for products of three dimensions and one image at a time; None for any number.
        steps: Newton's steps of SOFT's inverse; None for as many as any matrix may need.
    """

    size: tuple[int, int]
    batch: int | None = None
    steps: int | None = None


class Affine(NamedTuple):
    """What a norm multiplies its channels by and adds, (C,) each, float64."""

    weight: Tensor | float
    bias: Tensor | float


NOTHING = Affine(1.0, 0.0)


# Norms


def split(norm: nn.Module | None) -> tuple[nn.Module, Affine]:
    """A norm of single tokens (…,C) as its normalisation, and the affine for the layer behind it.

    Of another module than LayerNorm a copy, which keeps what it multiplies by.

    Raises:
        NoForm: somebody waits for its call.
    """
    if norm is None or is_nothing(norm):
        return nn.Identity(), NOTHING
    if type(norm) not in LAYER_NORMS or len(norm.normalized_shape) != 1:  # type: ignore[arg-type]
        return copied(norm), NOTHING
    weight, bias = _plain(norm, LAYER_NORMS)
    shape: Any = norm.normalized_shape
    bare = nn.LayerNorm(shape, eps=float(norm.eps), elementwise_affine=False)  # type: ignore[arg-type]
    return bare, Affine(1.0 if weight is None else weight, 0.0 if bias is None else bias)


def _plain(layer: nn.Module | None, kinds: Collection[type]) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias of a plain layer, float64; None for what it has not.

    Raises:
        NoForm: somebody changed it, or its weight is none to fold.
    """
    weights = weights_of(layer, kinds=kinds)
    if weights is None:
        raise NoForm("there is no layer" if layer is None else why_not(layer, kinds=kinds))
    if weights.W is not None and weights.W.dtype not in WIDE:
        kind = str(weights.W.dtype).removeprefix("torch.")
        raise NoForm(f"its weight is {kind}; take the model in float32")
    weight, bias = (None if x is None else x.detach().double() for x in weights)
    return weight, bias


def copied(module: nn.Module) -> nn.Module:
    """A copy of a part that is called as it is.

    Raises:
        NoForm: somebody waits for its call, or for that of a part of it.
    """
    if watched(module):
        raise NoForm("it has hooks, or a forward or a weight that was replaced")
    return copy.deepcopy(module)


# Linear layers and convolutions


def linear(
    layer: nn.Module | None,
    before: Affine = NOTHING,
    after: Tensor | float | None = None,
    rows: slice | None = None,
    biased: bool = True,
) -> nn.Linear:
    """A linear layer y = after (W (factor x + shift) + b), its bias always there.

    Args:
        layer: the layer (out, in).
        before: factor and shift of its inputs, which the norm before it left out.
        after: a factor of its outputs, a number or (out,): a layer scale.
        rows: the outputs that are wanted; all by default.
        biased: whether anybody reads the bias.

    Raises:
        NoForm: the layer is not plain.
    """
    weight, bias = _plain(layer, LINEAR)
    assert layer is not None
    assert weight is not None
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    if rows is not None:
        weight, bias = weight[rows], bias[rows]
    weight, bias = composed(weight, bias, before, after)
    return written(weight, bias if biased else None, like=next(layer.parameters()))


def composed(
    weight: Tensor, bias: Tensor, before: Affine = NOTHING, after: Tensor | float | None = None
) -> tuple[Tensor, Tensor]:
    """Weight (out,in) and bias (out,) with the affine before them and the factor (out,) after them,
    float64.
    """
    factor, shift = before
    shift = shift if isinstance(shift, Tensor) else weight.new_full((weight.shape[1],), shift)
    bias = bias + weight @ shift
    weight = weight * factor
    if after is not None:
        after = after.detach().double() if isinstance(after, Tensor) else after
        bias = bias * after
        weight = weight * (after[:, None] if isinstance(after, Tensor) else after)
    return weight, bias


def written(weight: Tensor, bias: Tensor | None, like: Tensor) -> nn.Linear:
    """A linear layer of weight (out,in) and bias (out,), in the dtype and place of another."""
    rows, columns = weight.shape
    biased = bias is not None
    layer = nn.Linear(columns, rows, bias=biased, device=like.device, dtype=like.dtype)
    give(layer, weight, bias)
    return layer


def conv(
    layer: nn.Module,
    norm: nn.Module | None = None,
    after: Tensor | None = None,
    before: Tensor | None = None,
) -> nn.Conv2d:
    """A convolution with the BatchNorm (in evaluation) and the factor (out,) behind it folded in.

    Args:
        layer: the convolution.
        norm: the BatchNorm behind it; None for nothing.
        after: a factor of its outputs, (out,).
        before: a factor of its inputs, (in,), of a depthwise one alone.

    Raises:
        NoForm: one of both is not plain, or the BatchNorm counts each batch anew; a factor of
            inputs, and the convolution is not depthwise.
    """
    weight, bias = _plain(layer, CONV)
    assert isinstance(layer, nn.Conv2d)
    assert weight is not None
    factor, shift = NOTHING if norm is None or is_nothing(norm) else batch_norm(norm)
    extra = 1.0 if after is None else after.detach().double()
    total = ((0.0 if bias is None else bias) * factor + shift) * extra
    scale = torch.as_tensor(factor * extra, dtype=torch.float64, device=weight.device)
    if before is not None:
        if weight.shape[1] != 1 or len(weight) != len(before):
            raise NoForm("it is not depthwise")
        scale = scale * before.detach().double()
    folded = copy.deepcopy(layer)
    if bias is None:
        zeros = torch.zeros(len(weight), device=weight.device, dtype=next(layer.parameters()).dtype)
        folded.register_parameter("bias", nn.Parameter(zeros))
    shifts = torch.as_tensor(total, dtype=torch.float64, device=weight.device).expand(len(weight))
    give(folded, weight * scale.expand(len(weight))[:, None, None, None], shifts)
    return folded


def batch_norm(norm: nn.Module) -> Affine:
    """What a BatchNorm in evaluation multiplies channels (C,) by and adds.

    Raises:
        NoForm: it is not plain, or has no running statistics.
    """
    if why := why_not(norm, kinds=NORM):
        raise NoForm(why)
    assert isinstance(norm, nn.BatchNorm2d)
    if norm.running_mean is None or norm.running_var is None:
        raise NoForm("it keeps no running statistics")
    return Affine(*(x.detach() for x in factors(norm)))


def scale_of(scale: nn.Module | Tensor | None) -> Tensor | None:
    """The factor (C,) of a layer scale, a module or a parameter; None where there is none.

    Raises:
        NoForm: it is something else, or somebody waits for its call.
    """
    if scale is None or isinstance(scale, Tensor):
        return scale
    if is_nothing(scale):
        return None
    if type(scale) is not LayerScale or why_called(scale):
        raise NoForm(why_called(scale) or f"it is a {type(scale).__name__}")
    return scale.gamma


def refuse_acting(module: nn.Module, *names: str) -> None:
    """Refuse a block of which a part that should do nothing in evaluation is something else.

    Raises:
        NoForm: it is; the part is named.
    """
    for name in names:
        part = getattr(module, name, None)
        if isinstance(part, nn.Module) and (type(part) not in LEFT_OUT or why_called(part)):
            raise NoForm(why_called(part) or f"it is a {type(part).__name__}", name)


# Branches


class MlpForm(nn.Module):
    """The branch of an MLP, its norm included: (B,N,C) -> (B,N,C), the residual not added."""

    def __init__(self, norm: nn.Module, fc1: nn.Module, act: nn.Module, fc2: nn.Module) -> None:
        super().__init__()
        self.norm, self.fc1, self.act, self.fc2 = norm, fc1, act, fc2

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B,N,C) -> (B,N,C)."""
        y: Tensor = self.fc2(self.act(self.fc1(self.norm(x))))
        return y


def mlp_form(mlp: nn.Module, norm: nn.Module | None, scale: Tensor | None = None) -> MlpForm:
    """timm's MLP with the affine of the norm before it in its first layer, the layer scale (C,) in
    its second.

    Raises:
        NoForm: it is another class, or a part of it is not plain.
    """
    if type(mlp) is not Mlp or why_called(mlp):
        raise NoForm(why_called(mlp) or f"it is a {type(mlp).__name__}")
    refuse_acting(mlp, "drop1", "drop2")
    bare, affine = split(norm)
    inner, inner_affine = split(mlp.norm)
    with within("fc1"):
        fc1 = linear(mlp.fc1, affine)
    with within("fc2"):
        fc2 = linear(mlp.fc2, inner_affine, scale)
    act = copied(mlp.act)
    return MlpForm(bare, fc1, act if is_nothing(mlp.norm) else nn.Sequential(act, inner), fc2)


# Tokens and maps


def to_map(x: Tensor, height: int, width: int) -> Tensor:
    """Tokens (B,N,C), N = height width, as a map (B,C,height,width)."""
    return x.transpose(1, 2).reshape(-1, x.shape[2], height, width)


def to_tokens(x: Tensor) -> Tensor:
    """A map (B,C,h,w) as tokens (B,N,C)."""
    return x.reshape(-1, x.shape[1], x.shape[2] * x.shape[3]).transpose(1, 2)


def tokens_of(grid: Grid) -> int:
    """How many tokens stand on a grid, those ahead of it included."""
    return grid[0] + grid[1] * grid[2]
