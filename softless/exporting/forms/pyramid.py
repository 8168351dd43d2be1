"""Hosts whose stages halve the grid, in their edge form: CvT and the SOFT pyramid; every grid and every
table of positions is a constant.
"""

# B batch, N tokens, C channels, h x w grid

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from softless.attention.record import Grid
from softless.exporting.forms.attention import attention_form
from softless.exporting.forms.closing import Closing, closing
from softless.exporting.forms.convolutions import stem_form
from softless.exporting.forms.cvt import conv_attention_form, embed_form
from softless.exporting.forms.parts import (
    NoForm,
    Setting,
    copied,
    mlp_form,
    refuse_acting,
    to_map,
    to_tokens,
    within,
)
from softless.layers.conv_attention import ConvAttention
from softless.layers.patch_embed import check_size
from softless.layers.plain import why_called
from softless.models.cvt import CvT
from softless.models.pyramid import PostNormBlock, PreNormBlock, Stage
from softless.models.soft import SoftPyramid

KINDS = (CvT, SoftPyramid)


class PreNormForm(nn.Module):
    """x += attention(x);  x += mlp(x), norms in the branches: (B,N,C) -> (B,N,C)."""

    def __init__(self, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.attention, self.mlp = attention, mlp

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B,N,C) -> (B,N,C)."""
        x = x + self.attention(x)
        y: Tensor = x + self.mlp(x)
        return y


class PostNormForm(PreNormForm):
    """x = LN1(x + attention(x));  x = LN2(x + mlp(x)). The norms keep their affine, since their
    output is the residual too.
    """

    def __init__(
        self, attention: nn.Module, norm1: nn.Module, mlp: nn.Module, norm2: nn.Module
    ) -> None:
        super().__init__(attention, mlp)
        self.norm1, self.norm2 = norm1, norm2

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B,N,C) -> (B,N,C)."""
        x = self.norm1(x + self.attention(x))
        y: Tensor = self.norm2(x + self.mlp(x))
        return y


class StemForm(nn.Module):
    """Convolutions with their BatchNorm folded in: a map (B,C,h,w) -> tokens (B,N,C')."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = stem_form(layers)

    def forward(self, image: Tensor) -> Tensor:
        """A map (B,C,h,w) -> tokens (B,N,C')."""
        return to_tokens(self.layers(image))


class StageForm(nn.Module):
    """A map (B,C,h,w) -> the tokens of a coarser one, (B,[class token] + N,C')."""

    token: Tensor | None
    positions: Tensor | None

    def __init__(
        self,
        embed: nn.Module,
        token: Tensor | None,
        positions: Tensor | None,
        blocks: list[nn.Module],
        grid: Grid,
        batch: int | None,
    ) -> None:
        super().__init__()
        self.embed, self.blocks = embed, nn.ModuleList(blocks)
        self.grid, self.batch = grid, batch
        self.register_buffer("token", token)
        self.register_buffer("positions", positions)

    def forward(self, image: Tensor) -> Tensor:
        """A map (B,C,h,w) -> tokens (B,[class token] + N,C')."""
        x: Tensor = self.embed(image)
        if self.positions is not None:
            x = x + self.positions
        if self.token is not None:
            token = self.token
            token = token if self.batch == 1 else token.expand(x.shape[0], -1, -1)
            x = torch.cat([token, x], dim=1)
        for block in self.blocks:
            x = block(x)
        return x


class PyramidForm(nn.Module):
    """Images (B,3,h,w) of one size -> what the model answers."""

    def __init__(self, stages: list[StageForm], end: Closing) -> None:
        super().__init__()
        self.stages, self.end = nn.ModuleList(stages), end
        self.grids = [stage.grid for stage in stages]

    def forward(self, image: Tensor) -> Tensor:
        """Images (B,C,h,w) -> logits (B,classes), or what stands in their place."""
        tokens: Tensor = self.stages[0](image)
        for stage, grid in zip(self.stages[1:], self.grids, strict=False):
            tokens = stage(_map(tokens, grid))
        prefix = self.grids[-1][0]
        if self.end.pool == "token":
            tokens = tokens[:, :1]
        elif self.end.pool == "avg" and prefix:
            tokens = tokens[:, prefix:]
        y: Tensor = self.end(tokens)
        return y


def _map(tokens: Tensor, grid: Grid) -> Tensor:
    """Tokens (B,[class token] + N,C) as the map (B,C,h,w) that the next stage takes."""
    return to_map(tokens[:, grid[0] :] if grid[0] else tokens, grid[1], grid[2])


def pyramid_form(model: Any, setting: Setting) -> PyramidForm:
    """A CvT or a SOFT pyramid for one size of image.

    Raises:
        NoForm: a part of it is not the host's own, or somebody waits for its call.
        UsageError: the size is not a whole number of the coarsest tokens.
    """
    if type(model) not in KINDS:
        raise NoForm(f"{type(model).__name__} has a forward of its own")
    side = model.reductions[-1]
    check_size(*setting.size, (side, side))
    stages = []
    for number, (stage, reduction) in enumerate(zip(model.stages, model.reductions, strict=False)):
        grid = (setting.size[0] // reduction, setting.size[1] // reduction)
        with within(f"stage{number}"):
            stages.append(_stage(stage, grid, setting))
    prefix = stages[-1].grid[0]
    pool = "avg" if model.global_pool == "token" and not prefix else model.global_pool
    return PyramidForm(stages, closing(model, pool))


def _stage(stage: Any, sides: tuple[int, int], setting: Setting) -> StageForm:
    if type(stage) is not Stage or why_called(stage):
        raise NoForm(why_called(stage) or f"it is a {type(stage).__name__}")
    grid = (stage.prefix, *sides)
    with within("patch_embed"):
        sequence = type(stage.patch_embed) is nn.Sequential
        embed = StemForm(stage.patch_embed) if sequence else embed_form(stage.patch_embed)
    token = None if stage.cls_token is None else stage.cls_token.detach().clone()
    positions = None
    if stage.pos_embed is not None:
        with torch.no_grad():
            table = stage.positions(*sides).detach()
        positions = table[:, stage.prefix :].clone()
        if token is not None:
            token = token + table[:, : stage.prefix]
    blocks: list[nn.Module] = []
    for number, block in enumerate(stage.blocks):
        with within(f"blocks.{number}"):
            blocks.append(_block(block, grid, setting))
    return StageForm(embed, token, positions, blocks, grid, setting.batch)


def _block(block: Any, grid: Grid, setting: Setting) -> nn.Module:
    if type(block) not in {PreNormBlock, PostNormBlock} or why_called(block):
        raise NoForm(why_called(block) or f"it is a {type(block).__name__}")
    refuse_acting(block, "drop_path")
    after = type(block) is PostNormBlock
    with within("attn"):
        form: Callable[..., nn.Module] = (
            conv_attention_form if isinstance(block.attn, ConvAttention) else attention_form
        )
        attention = form(block.attn, None if after else block.norm1, None, grid, setting)
    with within("mlp"):
        mlp = mlp_form(block.mlp, None if after else block.norm2)
    if not after:
        return PreNormForm(attention, mlp)
    with within("norm1"):
        norm1 = copied(block.norm1)
    with within("norm2"):
        return PostNormForm(attention, norm1, mlp, copied(block.norm2))
