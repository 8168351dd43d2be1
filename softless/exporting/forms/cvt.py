"""CvT's own parts in their edge form: convolutional embeddings, and convolutional projections with
their BatchNorm folded in, on grids that are constants.
"""

# B batch, N tokens, M keys and values, C channels, h x w grid

from typing import Any

import torch
from torch import Tensor, nn

from softless.attention.record import Grid
from softless.exporting.forms.attention import CHANGED, AttentionForm, site_of
from softless.exporting.forms.closing import refuse_mixing
from softless.exporting.forms.operators import core_form
from softless.exporting.forms.parts import (
    NoForm,
    Setting,
    conv,
    copied,
    refuse_acting,
    to_map,
    to_tokens,
    within,
)
from softless.layers.conv_attention import ConvAttention, ConvProjection
from softless.layers.plain import watched, why_called
from softless.models.cvt import ConvEmbed


class ConvEmbedForm(nn.Module):
    """Convolution and LayerNorm over channels: a map (B,C,h,w) -> tokens (B,N,C')."""

    def __init__(self, proj: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.proj, self.norm = proj, norm

    def forward(self, image: Tensor) -> Tensor:
        """A map (B,C,h,w) -> tokens (B,N,C')."""
        y: Tensor = self.norm(to_tokens(self.proj(image)))
        return y


def embed_form(embed: Any) -> ConvEmbedForm:
    """CvT's embedding; its norm keeps its affine, since what it gives is the residual.

    Raises:
        NoForm: it is another class, or a part of it is not plain.
    """
    if type(embed) is not ConvEmbed or why_called(embed):
        raise NoForm(why_called(embed) or f"it is a {type(embed).__name__}")
    with within("proj"):
        proj = conv(embed.proj)
    with within("norm"):
        refuse_mixing(embed.norm)
        return ConvEmbedForm(proj, copied(embed.norm))


class ConvStreams(nn.Module):
    """What q, k and v are projected from: depthwise convolutions on the grid, which a class token
    goes past. (B,N,C) -> (B,N,C), (B,M,C) and (B,M,C).
    """

    def __init__(self, convs: dict[str, nn.Module], grid: Grid) -> None:
        super().__init__()
        self.convs = nn.ModuleDict(convs)
        self.prefix, self.height, self.width = grid

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Tokens (B,N,C) -> those of q, of k and of v."""
        patches = x[:, self.prefix :] if self.prefix else x
        image = to_map(patches, self.height, self.width)
        streams = [to_tokens(layer(image)) for layer in self.convs.values()]
        if self.prefix:
            ahead = x[:, : self.prefix]
            streams = [torch.cat([ahead, stream], dim=1) for stream in streams]
        return tuple(streams)


def conv_attention_form(
    attention: nn.Module,
    norm: nn.Module | None,
    scale: Tensor | None,
    grid: Grid,
    setting: Setting,
) -> AttentionForm:
    """The branch of CvT's attention, its norm included: (B,N,C) -> (B,N,C).

    The norm keeps its affine, since zeros are padded behind it.

    Raises:
        NoForm: it is another class, or a part of it is not plain.
    """
    if type(attention) is not ConvAttention or watched(attention):
        why = CHANGED if watched(attention) else f"it is a {type(attention).__name__}"
        raise NoForm(why)
    refuse_acting(attention, "proj_drop")
    convs: dict[str, nn.Module] = {}
    for part in attention.parts:
        name = f"conv_proj_{part}"
        with within(name):
            convs[part] = _projection(getattr(attention, name))
    core = core_form(site_of(attention, grid, attention.keys_of(*grid), setting))
    return AttentionForm(attention, core, norm, scale, grid, ConvStreams(convs, grid))


def _projection(projection: Any) -> nn.Conv2d:
    if type(projection) is not ConvProjection:
        raise NoForm(f"it is a {type(projection).__name__}")
    return conv(projection.conv, projection.bn)
