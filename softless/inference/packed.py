"""oneDNN's fused linear layer with packed weights: y = act(x Wᵀ + b) + onto in one call, and why it
may not be there.

torch has the operator for its compiler's frozen graphs (`torch.ops.mkldnn._linear_pointwise`);
eager code may call it too. Whoever counts a call (`softless.cost`, `softless.audit`) sees the plain
form, since no counter knows what is fused.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import GELU as TimmGELU
from timm.layers import GELUTanh
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from softless.attention.packed import BFLOAT16
from softless.attention.transforms import transformed
from softless.errors import UsageError
from softless.layers.plain import CONV, weights_of

DTYPES = (torch.bfloat16, torch.float32)
# (name, variant) of oneDNN, and the same by torch
Activation = tuple[str, str]
PLAIN: dict[Activation, Callable[[Tensor], Tensor]] = {
    ("gelu", "none"): F.gelu,
    ("gelu", "tanh"): lambda x: F.gelu(x, approximate="tanh"),
    ("relu", ""): F.relu,
    ("none", ""): lambda x: x,
}
NONE: Activation = ("none", "")
NOT_EXPORTED = (
    "an optimized model is not exported, since no graph holds its packed weights: take "
    "the model it was made of"
)
NO_GRADIENTS = "an optimized model has no gradients: take them of the model it was made of"


def activation_of(module: nn.Module) -> Activation | None:
    """How oneDNN calls an activation; None where it does not know it."""
    kind = type(module)
    if kind is nn.GELU:
        return "gelu", str(module.approximate)
    if kind is TimmGELU:
        return "gelu", "none"
    if kind is GELUTanh:
        return "gelu", "tanh"
    return {nn.ReLU: ("relu", ""), nn.Identity: NONE}.get(kind)


def why_not(dtype: torch.dtype, device: torch.device) -> str:
    """Why weights are not packed here; empty where they are."""
    if device.type != "cpu":
        return f"oneDNN packs on the processor, and the model is on {device}"
    if not torch.backends.mkldnn.is_available():
        return "this build of torch has no oneDNN"
    if dtype == torch.bfloat16 and not BFLOAT16:
        return (
            "this processor has no instructions that oneDNN could use for bfloat16: "
            "dtype=torch.float32 is the faster choice here"
        )
    return ""


def counted() -> bool:
    """Whether somebody looks at the operators that are called, and must see ones that they know."""
    return is_in_torch_dispatch_mode()


class PackedLinear(nn.Module):
    """A linear layer for inference: (…, in) -> (…, out), with an activation behind it or a tensor
    that the result is added to.

    Args:
        weight: (out, in), in any dtype: what was folded into it is rounded once.
        bias: (out) or None.
        dtype: of the computation, bfloat16 or float32.
        activation: what follows.
    """

    bias: Tensor | None

    def __init__(
        self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, activation: Activation = NONE
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.activation, self.dtype = activation, dtype
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype).contiguous())
        self._take(weight.detach().to(dtype).contiguous())

    @classmethod
    def of(
        cls,
        linear: nn.Linear,
        dtype: torch.dtype,
        scale: Tensor | None = None,
        activation: Activation = NONE,
    ) -> "PackedLinear":
        """A layer of torch (out, in), its outputs multiplied by scale (out,)."""
        weights = weights_of(linear)
        assert weights is not None, "who packs a layer has asked whether it may be read"
        weight, bias = weights.W.detach(), None if weights.b is None else weights.b.detach()
        if scale is not None:
            factor = scale.detach().double()
            weight = weight.double() * factor[:, None]
            bias = None if bias is None else bias.double() * factor
        return cls(weight, bias, dtype, activation)

    def _take(self, weight: Tensor) -> None:
        self.packs = not why_not(self.dtype, weight.device)
        # no buffer: a packed weight has no storage that torch could copy, move or save
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight) if self.packs else weight

    def weights_held(self) -> list[Tensor]:
        """The numbers that were trained, (out, in) and (out,), for whoever counts them: this layer has
        no parameters.
        """
        return [self.packed] if self.bias is None else [self.packed, self.bias]

    @property
    def weight(self) -> Tensor:
        """(out, in) as torch lays it out; a copy where it is packed."""
        return self.packed.to_dense() if self.packs else self.packed

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """act(x Wᵀ + b), plus `onto` (…, out): x (…, in) -> (…, out).

        Raises:
            UsageError: a gradient is asked for, or the layer is exported.
        """
        # torch.compile goes round it, and calls this layer as it is
        if torch.compiler.is_compiling():
            raise UsageError(NOT_EXPORTED)
        if x.dtype != self.dtype:
            x = x.to(self.dtype)
        if not self.packs or x.numel() == 0 or counted():
            return self._plainly(x, onto)
        if (x.requires_grad and torch.is_grad_enabled()) or transformed():
            raise UsageError(NO_GRADIENTS)
        y: Tensor = _linear(x, self.packed, self.bias, self.activation[0], [], self.activation[1])
        # oneDNN could add within the product; with few rows that is no faster, with many it is
        # slower
        return y if onto is None else y.add_(onto)

    def _plainly(self, x: Tensor, onto: Tensor | None) -> Tensor:
        y = PLAIN[self.activation](F.linear(x, self.weight, self.bias))
        return y if onto is None else y + onto

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "packed": self.weight}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._take(self.packed)

    def extra_repr(self) -> str:
        act = "" if self.activation == NONE else f", {self.activation[0]}"
        return (
            f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, "
            f"{self.dtype}{act}, packed={self.packs}"
        )


class FusedConv(nn.Module):
    """A convolution with an activation behind it, in one call where oneDNN is there: (B,C,h,w) ->
    (B,C',h',w').
    """

    def __init__(self, conv: nn.Conv2d, activation: Activation) -> None:
        super().__init__()
        self.conv, self.activation = conv, activation

    def forward(self, x: Tensor) -> Tensor:
        """Images (B,C,h,w) -> (B,C',h',w').

        Raises:
            UsageError: a transform of torch.func or forward-mode differentiation is active.
        """
        conv, weights = self.conv, weights_of(self.conv, x.device, CONV)
        if weights is None:  # somebody waits for it since it was fused
            return PLAIN[self.activation](conv(x))
        x = x.to(weights.W.dtype)
        if why_not(x.dtype, x.device) or x.numel() == 0 or counted():
            return PLAIN[self.activation](conv(x))
        if transformed():
            raise UsageError(NO_GRADIENTS)
        return _conv(
            x,
            weights.W,
            weights.b,
            conv.padding,
            conv.stride,
            conv.dilation,
            conv.groups,
            self.activation[0],
            [],
            self.activation[1],
        )


# by overload: torch looks for the right one at every call otherwise, and on few tokens that shows
_linear = torch.ops.mkldnn._linear_pointwise.default
_conv = torch.ops.mkldnn._convolution_pointwise.default
