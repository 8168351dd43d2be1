"""Convolutions of hosts in their edge form: stems, and XCiT's local patch interaction."""

# B batch, N tokens, C channels, h x w grid

from collections.abc import Sequence
from typing import Any

import torch
from timm.models.xcit import LPI as TimmLPI
from torch import Tensor, nn

from softless.exporting.forms.parts import (
    NoForm,
    batch_norm,
    conv,
    copied,
    scale_of,
    to_map,
    to_tokens,
    within,
)
from softless.layers.lpi import LPI
from softless.layers.plain import is_nothing, place_of, why_called

# of a channel's shift: a factor as small moves it by less than float32 sees
NEXT_TO_NOTHING = 1e-12


def stem_form(layers: nn.Module) -> nn.Sequential:
    """A sequence of convolutions and activations, each BatchNorm in the convolution before it:
    (B,C,H,W) -> (B,C',h,w).

    Raises:
        NoForm: a BatchNorm without a convolution before it, or a part that is not plain.
    """
    folded: list[nn.Module] = []
    listed = _listed(layers)
    for number, (path, layer) in enumerate(listed):
        follower = listed[number + 1][1] if number + 1 < len(listed) else None
        norm = follower if isinstance(follower, nn.BatchNorm2d) else None
        with within(path):
            if isinstance(layer, nn.Conv2d):
                folded.append(conv(layer, norm))
            elif isinstance(layer, nn.BatchNorm2d):
                if not number or not isinstance(listed[number - 1][1], nn.Conv2d):
                    raise NoForm("no convolution stands before it")
            elif not is_nothing(layer):
                folded.append(copied(layer))
    return nn.Sequential(*folded)


def _listed(layers: nn.Module, path: str = "") -> Sequence[tuple[str, nn.Module]]:
    """What a sequence of sequences calls, in order, each with its path."""
    if type(layers) is not nn.Sequential:
        return [(path, layers)]
    if why := why_called(layers):
        raise NoForm(why, path)
    return [
        entry
        for name, layer in layers.named_children()
        for entry in _listed(layer, f"{path}.{name}" if path else name)
    ]


class LocalForm(nn.Module):
    """The branch of XCiT's local patch interaction, its norm included: (B,N,C) -> (B,N,C).

        conv2(s a + t) = conv2'(a + t / s),    conv2' = s conv2        a = act(conv1(norm(x)))

    Both convolutions pad with zeros, so what their inputs are shifted by can go into neither.
    """

    shift: Tensor

    def __init__(
        self,
        norm: nn.Module,
        conv1: nn.Module,
        act: nn.Module,
        shift: Tensor,
        conv2: nn.Module,
        grid: tuple[int, int],
    ) -> None:
        super().__init__()
        self.norm, self.conv1, self.act, self.conv2 = norm, conv1, act, conv2
        self.register_buffer("shift", shift)
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B,N,C) -> (B,N,C), the residual not added."""
        image = self.conv1(to_map(self.norm(x), *self.grid))
        return to_tokens(self.conv2(self.act(image) + self.shift))


def local_form(
    lpi: Any, norm: nn.Module, scale: nn.Module | Tensor | None, grid: tuple[int, int]
) -> LocalForm:
    """Local patch interaction of ours or timm's on a grid, with its norm and its layer scale (C,).

    Raises:
        NoForm: a part of it is not plain.
    """
    if type(lpi) not in {LPI, TimmLPI} or why_called(lpi):
        raise NoForm(why_called(lpi) or f"it is a {type(lpi).__name__}")
    with within("bn"):
        factor, shift = batch_norm(lpi.bn)
    assert isinstance(factor, Tensor)
    assert isinstance(shift, Tensor)
    with within("act"):
        act = copied(lpi.act)
    # what a channel hands on that is switched off, or next to it, is its shift, whatever comes
    on = factor.abs() > NEXT_TO_NOTHING * shift.abs()
    # the affine stays in the norm: a padded convolution could take its factor and not its shift
    with within("conv1"):
        first = conv(lpi.conv1, after=on.double())
    like = place_of(lpi)
    with torch.no_grad():
        silent = act(like.new_zeros(1, len(on), 1, 1)).flatten().double()
    factor, shift = torch.where(on, factor, 1.0), torch.where(on, shift, shift - silent)
    with within("conv2"):
        second = conv(lpi.conv2, after=scale_of(scale), before=factor)
    ahead = (shift / factor).to(like.dtype)[:, None, None]
    return LocalForm(copied(norm), first, act, ahead, second, grid)
