"""Hosts whose stages halve the grid: what CvT and the SOFT pyramid have in common, and what timm's
users call.

A stage embeds a map in a coarser one, adds positions and a class token where it has them, and runs
its blocks over the tokens.
"""

# B images, N tokens of a grid, C channels

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, trunc_normal_
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from softless.attention.record import Grid
from softless.attention.recording import known
from softless.errors import UsageError
from softless.layers.attention import Attention
from softless.layers.patch_embed import check_size, fitting
from softless.models.host import BlockKind, Branch, KnownClasses

Norm = Callable[[int], nn.Module]


class PreNormBlock(nn.Module):
    """x += DP(Attention(LN1 x));  x += DP(MLP(LN2 x))."""

    def __init__(
        self,
        attention: nn.Module,
        dim: int,
        *,
        mlp_ratio: float,
        drop_path: float,
        act_layer: type[nn.Module],
        norm_layer: Norm,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1, self.attn = norm_layer(dim), attention
        self.norm2, self.mlp = (
            norm_layer(dim),
            Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=proj_drop),
        )
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Tokens (B, N, C) of a grid (prefix, height, width) -> (B, N, C)."""
        x = x + self.drop_path(self.attn(self.norm1(x), grid=grid))
        return x + self.drop_path(self.mlp(self.norm2(x)))


# of the last stage of SOFT and of all of CvT; a norm behind the residual cannot be rewritten
PRE_NORM = BlockKind(
    KnownClasses("pre-norm blocks of pyramids", (PreNormBlock,)),
    "grid",
    attention=Branch("norm1", "attn"),
    mlp=Branch("norm2", "mlp"),
    drops=("drop_path",),
)


class PostNormBlock(PreNormBlock):
    """x = LN1(x + DP(Attention(x)));  x = LN2(x + DP(MLP(x)))."""

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Tokens (B, N, C) of a grid (prefix, height, width) -> (B, N, C)."""
        x = self.norm1(x + self.drop_path(self.attn(x, grid=grid)))
        return self.norm2(x + self.drop_path(self.mlp(x)))


class Stage(nn.Module):
    """A map (B, C, h, w) to the tokens of a coarser one (B, [class token] + N, C').

    Args:
        embed: map to map.
        blocks: of tokens; each is called with the grid.
        dim: width of the tokens.
        cls_token: whether a class token joins the tokens.
        positions: grid of the learned positions, bilinearly resized to the grid at hand; None for
            none.
    """

    def __init__(
        self,
        embed: nn.Module,
        blocks: Sequence[nn.Module],
        dim: int,
        *,
        cls_token: bool = False,
        positions: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.patch_embed, self.blocks = embed, nn.ModuleList(blocks)
        self.cls_token = (
            nn.Parameter(trunc_normal_(torch.empty(1, 1, dim), std=0.02)) if cls_token else None
        )
        self.pos_grid = positions
        self.pos_embed = None
        if positions is not None:
            number = int(cls_token) + positions[0] * positions[1]
            self.pos_embed = nn.Parameter(trunc_normal_(torch.empty(1, number, dim), std=0.02))
        self.grad_checkpointing = False

    def attentions(self) -> list[Attention]:
        """The attention modules."""
        return [module for module in self.blocks.modules() if isinstance(module, Attention)]

    @property
    def prefix(self) -> int:
        """Tokens ahead of the grid."""
        return int(self.cls_token is not None)

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """A map (B, C, h, w) -> tokens (B, prefix + N, C'), and height and width of their grid."""
        image = self.patch_embed(image)
        height, width = image.shape[-2], image.shape[-1]
        x = image.flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        if self.pos_embed is not None:
            x = x + self.positions(height, width)
        grid = (self.prefix, height, width)
        for block in self.blocks:
            if self.grad_checkpointing and self.training and not torch.jit.is_scripting():
                x = checkpoint(block, x, grid, use_reentrant=False)
            else:
                x = block(x, grid)
        return x, (height, width)

    def positions(self, height: int, width: int) -> Tensor:
        """(1, prefix + height width, C) the learned positions on this grid."""
        assert self.pos_embed is not None
        assert self.pos_grid is not None
        if known(height, width) and (height, width) == self.pos_grid:
            return self.pos_embed
        first, rest = self.pos_embed[:, : self.prefix], self.pos_embed[:, self.prefix :]
        map_ = rest.transpose(1, 2).unflatten(2, self.pos_grid)
        resized = F.interpolate(map_, (height, width), mode="bilinear", align_corners=False)
        return torch.cat([first, resized.flatten(2).transpose(1, 2)], dim=1)

    def set_positions(self, height: int, width: int) -> None:
        """Resize the table once, in place of at every pass."""
        if self.pos_embed is not None:
            self.pos_embed = nn.Parameter(self.positions(height, width).detach().clone())
            self.pos_grid = (height, width)


class Pyramid(nn.Module):
    """Stages, a norm and a head on the class token of the last stage (or on the mean of its
    tokens).

    Args:
        stages: in order; they become the attributes stage0, stage1, …
        dims: width of each stage.
        reductions: pixels per token of each stage, along one side.
        norm: of the last stage's tokens.
        img_size: for which tables of positions and learned rows per token are made; images of other
            sizes are taken too.
        num_classes: outputs; 0 for none.
        global_pool: "token", "avg", or "" for the tokens.
        drop_rate: dropout before the head.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        dims: Sequence[int],
        reductions: Sequence[int],
        norm: nn.Module,
        img_size: int | tuple[int, int],
        num_classes: int,
        global_pool: str,
        drop_rate: float,
    ) -> None:
        super().__init__()
        if global_pool not in {"token", "avg", ""}:
            raise UsageError(f"global_pool={global_pool!r} is not 'token', 'avg' or ''")
        self.reductions = tuple(reductions)
        self.number_of_stages = len(stages)
        for number, stage in enumerate(stages):
            self.add_module(f"stage{number}", stage)
        self.norm = norm
        self.num_features = self.head_hidden_size = self.embed_dim = dims[-1]
        self.num_classes, self.global_pool = num_classes, global_pool
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(dims[-1], num_classes) if num_classes > 0 else nn.Identity()
        self.feature_info = [
            {"num_chs": dim, "reduction": reduction, "module": f"stage{number}"}
            for number, (dim, reduction) in enumerate(zip(dims, reductions, strict=True))
        ]
        self.apply(_start)
        self.img_size = _both(img_size)
        check_size(*self.img_size, (reductions[-1], reductions[-1]))
        for stage, reduction in zip(stages, reductions, strict=True):
            height, width = (side // reduction for side in self.img_size)
            for attention in stage.attentions():
                attention.set_tokens(attention.keys_of(stage.prefix, height, width))

    @property
    def stages(self) -> list[Stage]:
        """The stages, in order."""
        return [getattr(self, f"stage{number}") for number in range(self.number_of_stages)]

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, [class token] + N, C), normalised."""
        tokens, _ = self._run(x)[-1]
        return self.norm(tokens)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, [class token] + N, C) -> logits (B, num_classes), of every token where
        global_pool is ''; `pre_logits` gives what the head would read.
        """
        prefix = self.stages[-1].prefix
        if self.global_pool == "avg" or (self.global_pool == "token" and not prefix):
            x = x[:, prefix:].mean(dim=1)
        elif self.global_pool == "token":
            x = x[:, 0]
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, h, w) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def _run(self, x: Tensor, until: int | None = None) -> list[tuple[Tensor, tuple[int, int]]]:
        """Tokens and grid after each stage."""
        side = self.reductions[-1]
        x = fitting(x, (side, side))
        outputs = []
        for stage in self.stages[:until]:
            tokens, grid = stage(x)
            outputs.append((tokens, grid))
            x = _image(tokens, stage.prefix, grid)
        return outputs

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Maps (B, C, h, w) after the chosen stages, as timm's models have it.

        Args:
            x: images.
            indices: stages; an int takes the last so many, None all.
            norm: apply the final norm to the last stage's map.
            stop_early: run no further than the last stage asked for.
            output_fmt: "NCHW".
            intermediates_only: leave the final tokens out.

        Returns:
            The maps, after the final tokens (B, [class token] + N, C) unless those are left out.

        Raises:
            UsageError: another output_fmt.
        """
        if output_fmt != "NCHW":
            raise UsageError(f"output_fmt={output_fmt!r}: a pyramid gives maps, 'NCHW'")
        chosen, last = feature_take_indices(self.number_of_stages, indices)
        outputs = self._run(x, last + 1 if stop_early else None)
        maps = []
        for number, (tokens, grid) in enumerate(outputs):
            if number in chosen:
                final = norm and number == self.number_of_stages - 1
                maps.append(
                    _image(self.norm(tokens) if final else tokens, self.stages[number].prefix, grid)
                )
        if intermediates_only:
            return maps
        return self.norm(outputs[-1][0]) if len(outputs) == self.number_of_stages else outputs[-1][
            0
        ], maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages behind the last one asked for."""
        chosen, last = feature_take_indices(self.number_of_stages, indices)
        for number in range(last + 1, self.number_of_stages):
            delattr(self, f"stage{number}")
        self.number_of_stages = last + 1
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return chosen

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for so many classes; 0 for none."""
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        like = next(self.parameters())
        self.head = (
            nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            if num_classes > 0
            else nn.Identity()
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep no activations inside the blocks and compute them again in the backward pass."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """The size the model reports; tables of positions are resized to it.

        Raises:
            UsageError: a size that is not a whole number of the coarsest tokens.
        """
        size = _both(img_size)
        check_size(*size, (self.reductions[-1], self.reductions[-1]))
        self.img_size = size
        for stage, reduction in zip(self.stages, self.reductions, strict=False):
            stage.set_positions(size[0] // reduction, size[1] // reduction)

    def no_weight_decay(self) -> set[str]:
        """Class token and positions."""
        return {
            name
            for name, _ in self.named_parameters()
            if name.rsplit(".", 1)[-1] in {"cls_token", "pos_embed"}
        }

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for timm's layer-wise rates: a stage each, or a block each."""
        blocks = (
            r"^stage(\d+)"
            if coarse
            else [
                (r"^stage(\d+)\.blocks\.(\d+)", None),
                (r"^stage(\d+)", (0,)),
                (r"^norm", (99999,)),
            ]
        )
        return {"stem": r"^stage0\.(?:patch_embed|pos_embed)", "blocks": blocks}


def _both(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def ramp(rate: float, depth: int) -> list[float]:
    """Rates of stochastic depth from 0 to `rate` over so many blocks."""
    return [rate * number / max(1, depth - 1) for number in range(depth)]


def _image(tokens: Tensor, prefix: int, grid: tuple[int, int]) -> Tensor:
    """Tokens back as a map (B, C, h, w), without those ahead of the grid."""
    return tokens[:, prefix:].transpose(1, 2).unflatten(2, grid)


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def start_bias(head: nn.Module) -> None:
    """The bias as torch starts it, where a published code draws the weight of its head alone."""
    if isinstance(head, nn.Linear):
        bound = head.in_features**-0.5
        nn.init.uniform_(head.bias, -bound, bound)
