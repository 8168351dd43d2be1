"""Bytes as the input of a graph: (x / 255 - mean) / std in the first convolution.

Where that convolution fills nothing up, both go into it. Where it does, or something before it
does, the scale goes into it and the mean stays one subtraction: zeros that fill up are the mean,
and a byte of 0 is not.
"""

# B images, C channels

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from softless.layers.plain import CONV, Weights, weights_of
from softless.modes import evaluating

WHITE = 255
APART = 1e-4  # of the largest answer: beyond it the convolution does not stand where it seemed to


class First(NamedTuple):
    """The convolution that reads the images."""

    conv: nn.Conv2d
    weights: Weights  # its own
    filled_up: bool  # whether it, or something before it, fills images up with zeros


class OfBytes(nn.Module):
    """Bytes (B, C, H, W) to what a module answers to them normalised.

    Args:
        module: normalised images (B, C, H, W) -> its answers; it is copied.
        mean: of each channel of pixels in 0..1.
        std: the same.
        images: normalised images (B, C, H, W), as the module takes them.
    """

    shift: Tensor | None
    scale: Tensor | None

    def __init__(
        self, module: nn.Module, mean: Sequence[float], std: Sequence[float], images: Tensor
    ) -> None:
        super().__init__()
        self.module = copy.deepcopy(module)
        centre, spread = (
            torch.tensor(list(values), dtype=torch.float64)[:, None, None] for values in (mean, std)
        )
        levels = WHITE * (images[:1].double() * spread + centre)
        pixels = levels.round().clamp(0, WHITE).to(torch.uint8)
        self._as(WHITE * centre, 1 / (WHITE * spread))
        first = first_convolution(self.module, images[:1])
        if first is None:
            return
        with evaluating(self), torch.no_grad():
            expected = _all(self(pixels))
            weight, bias = first.weights.W.detach().clone(), first.weights.b
            _fold(first, centre[:, 0, 0], spread[:, 0, 0])
            self._as(WHITE * centre if first.filled_up else None, None)
            if not _same(_all(self(pixels)), expected):  # something else reads the images too
                first.weights.W.copy_(weight)
                own = None if bias is None else nn.Parameter(bias, requires_grad=False)
                first.conv.register_parameter("bias", own)
                self._as(WHITE * centre, 1 / (WHITE * spread))

    def _as(self, shift: Tensor | None, scale: Tensor | None) -> None:
        """What is done to bytes before the module, (C, 1, 1) each."""
        for name, values in (("shift", shift), ("scale", scale)):
            self.register_buffer(name, None if values is None else values.float())

    def forward(self, images: Tensor) -> Any:
        """Bytes (B, C, H, W) -> the module's answers."""
        pixels = images.float()
        if self.shift is not None:
            pixels = pixels - self.shift
        if self.scale is not None:
            pixels = pixels * self.scale
        return self.module(pixels)


def first_convolution(module: nn.Module, images: Tensor) -> First | None:
    """The convolution that reads images, as they are or filled up with zeros at the right and
    below; None where another layer reads them first.
    """
    read: list[tuple[nn.Conv2d, Tensor]] = []

    def note(conv: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(conv, nn.Conv2d)
        read.append((conv, inputs[0]))

    hooks = [
        part.register_forward_pre_hook(note)
        for part in module.modules()
        if isinstance(part, nn.Conv2d)
    ]
    try:
        with evaluating(module), torch.no_grad():
            module(images)
    finally:
        for hook in hooks:
            hook.remove()
    if not read:
        return None
    conv, entered = read[0]
    weights = weights_of(conv, kinds=CONV)
    plain = conv.groups == 1 and conv.padding_mode == "zeros"
    if weights is None or not plain or sum(other is conv for other, _ in read) > 1:
        return None
    height, width = images.shape[-2:]
    same = entered.shape[:2] == images.shape[:2] and torch.equal(
        entered[..., :height, :width], images
    )
    if not same:
        return None
    grown = entered.shape != images.shape
    if grown and (entered[..., height:, :].any() or entered[..., width:].any()):
        return None
    padding = conv.padding if isinstance(conv.padding, str) else any(conv.padding)
    return First(conv, weights, grown or padding not in {False, "valid"})


def _fold(first: First, mean: Tensor, std: Tensor) -> None:
    """Scale, and where nothing is filled up the mean too, into the convolution, in float64."""
    weight = first.weights.W.double() / std[None, :, None, None]
    if not first.filled_up:
        shift = (weight * mean[None, :, None, None]).sum((1, 2, 3))
        bias = -shift if first.weights.b is None else first.weights.b.double() - shift
        first.conv.register_parameter("bias", nn.Parameter(bias.float(), requires_grad=False))
    with torch.no_grad():
        first.weights.W.copy_((weight / WHITE).float())


def _all(answers: Any) -> list[Tensor]:
    return [answers] if isinstance(answers, Tensor) else list(answers)


def _same(answers: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return all(
        float((one - other).abs().max()) <= APART * float(other.abs().max())
        for one, other in zip(answers, expected, strict=True)
    )
