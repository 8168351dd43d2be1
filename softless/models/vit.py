"""ViT and DeiT as hosts: timm's own VisionTransformer with our attention in its `attn_layer=`
place.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention as TimmAttention
from timm.layers import PatchEmbed as TimmPatchEmbed
from timm.layers import resample_abs_pos_embed, trunc_normal_
from timm.models import build_model_with_cfg
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from softless.attention.recording import known
from softless.layers.attention import Attention, operator_class
from softless.layers.grid import SharedGrid
from softless.layers.leaf import leaf, noted
from softless.layers.patch_embed import fitting, refuse_empty
from softless.layers.plain import refuse_absent
from softless.models.host import BlockKind, Branch, Host, KnownClasses, Pass
from softless.models.options import host_arguments, take_companions, take_operator_options


class PatchEmbed(TimmPatchEmbed):
    """timm's patch embedding, refusing an image that is not a whole number of patches in one
    sentence, and telling the grid.
    """

    shared_grid: SharedGrid | None = None
    prefix = 0
    # whether the host is `ViT`, which goes on with no images, and at any size in a graph
    in_ours = False

    @leaf
    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> patches (B, N, dim), or (B, h, w, dim) for images of any size.

        Raises:
            UsageError: no images to a host of timm's, or sides that are not whole numbers of patches.
        """
        if not self.in_ours:
            refuse_empty(x)
            x = held_size(x)
        refuse_absent(x, proj=self.proj)
        x = fitting(x, self.patch_size)
        if self.shared_grid is not None:
            height, width = self.dynamic_feat_size((x.shape[-2], x.shape[-1]))
            self.shared_grid.tell((self.prefix, height, width))
        return super().forward(x)


def held_size(x: Tensor) -> Tensor:
    """The images (B, C, H, W), of whose size `torch.jit.trace` holds what it saw: another one is an
    error of torch, where the host would answer wrongly.
    """
    return x.expand(-1, -1, int(x.shape[2]), int(x.shape[3])) if torch.jit.is_tracing() else x


def connect(model: VisionTransformer) -> VisionTransformer:
    """Tell the attention modules what timm's blocks do not: how many tokens there are, and at each
    pass their grid.
    """
    if type(model) is VisionTransformer:
        model.__class__ = ViT  # timm's entry points build their own class, of the same parts
    embed = model.patch_embed
    if isinstance(model, ViT) and isinstance(embed, PatchEmbed):
        embed.in_ours = True
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    for attention in attentions:
        attention.set_tokens(embed.num_patches + model.num_prefix_tokens)
    looking = [attention for attention in attentions if attention.looks_at_the_grid]
    if looking and isinstance(embed, PatchEmbed):
        embed.shared_grid, embed.prefix = SharedGrid(), model.num_prefix_tokens
        for attention in looking:
            attention.set_grid(embed.shared_grid)
    return model


def start_as_deit(model: VisionTransformer) -> None:
    """The class token from a normal of 0.02, as in DeiT's code; timm's starts at 1e-6."""
    if model.cls_token is not None:
        trunc_normal_(model.cls_token, std=0.02)


class ViT(VisionTransformer):
    """timm's VisionTransformer, connected to attention modules that look at the grid or at a fixed
    number of tokens.

    Args:
        as_deit: start the class token as DeiT's code does.
    """

    def __init__(self, *args: Any, as_deit: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if as_deit:
            start_as_deit(self)
        connect(self)

    def _pos_embed(self, x: Tensor) -> Tensor:
        if self.dynamic_img_size and not known(x.shape[0], x.shape[1], x.shape[2]):
            return self._recorded_pos_embed(x)
        if x.shape[0]:
            return super()._pos_embed(x)
        # timm's reshapes by what is left over
        return super()._pos_embed(x.new_zeros(1, *x.shape[1:]))[:0]

    def _recorded_pos_embed(self, x: Tensor) -> Tensor:
        """The same of tokens (B, h, w, C) whose sizes are symbols: timm's asks whether they are the
        table's, and a graph would hold the answer.
        """
        ahead = [
            token.expand(x.shape[0], -1, -1)
            for token in (self.cls_token, self.reg_token)
            if token is not None
        ]
        tokens = x.flatten(1, 2)
        if self.pos_embed is None:
            return torch.cat([*ahead, tokens], dim=1)
        prefix = 0 if self.no_embed_class else self.num_prefix_tokens
        table = on_grid(self.pos_embed, x, self.patch_embed.grid_size, prefix)
        if self.no_embed_class:
            return self.pos_drop(torch.cat([*ahead, tokens + table], dim=1))
        return self.pos_drop(torch.cat([*ahead, tokens], dim=1) + table)


@noted
def on_grid(table: Tensor, x: Tensor, old: tuple[int, int], prefix: int) -> Tensor:
    """A table of positions (1, prefix + old cells, C), resized to the grid of tokens x (B, h, w, C)
    as timm does: (1, prefix + h w, C).
    """
    new = (x.shape[1], x.shape[2])
    if not torch.jit.is_tracing():
        return resample_abs_pos_embed(table, new_size=new, old_size=old, num_prefix_tokens=prefix)
    cells = table[:, prefix:].float().unflatten(1, old).permute(0, 3, 1, 2)
    cells = F.interpolate(cells, size=new, mode="bicubic", antialias=True).permute(0, 2, 3, 1)
    return torch.cat([table[:, :prefix], cells.flatten(1, 2).to(table.dtype)], dim=1)


def arguments(op: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """timm's arguments of a VisionTransformer with this operator; images of any size that fits are
    taken.
    """
    attention = operator_class(op)
    options = take_operator_options(op, kwargs) | take_companions(kwargs)
    layers = {
        "attn_layer": attention.with_options(**options) if options else attention,
        "embed_layer": PatchEmbed,
        "dynamic_img_size": True,
    }
    return {**layers, **host_arguments(kwargs)}


def build(variant: str, op: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A registered ViT: timm's builder gives features_only, set_input_size, weights by tag,
    local-dir and hub.
    """
    return build_model_with_cfg(
        ViT,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
        as_deit="deit" in variant,
        **arguments(op, kwargs),
    )


def _patch_of(state: Mapping[str, Tensor]) -> int | None:
    kernel = state["patch_embed.proj.weight"]
    return None if kernel.ndim != 4 else kernel.shape[-1]


METHODS = ("forward", "forward_features", "pool", "_pos_embed", "forward_head")
NORMS = ("norm_pre", "norm", "fc_norm", "patch_embed.norm")
PLAIN = Pass(
    classes=(VisionTransformer, ViT),
    methods=METHODS,
    prefix=("cls_token", "reg_token"),
    positions="table",
    norms=NORMS,
    pools=("token", "avg"),
)
DISTILLED = Pass(
    classes=(VisionTransformerDistilled, VisionTransformer, ViT),
    methods=METHODS,
    prefix=("cls_token", "dist_token"),
    positions="table",
    norms=NORMS,
    pools=(),
)
HOST = Host(
    name="vit",
    build=build,
    first_conv="patch_embed.proj",
    models=(VisionTransformer, ViT),
    blocks=(
        BlockKind(
            KnownClasses("timm's Block (norm, attention, norm, MLP)", (TimmBlock,)),
            "mask",
            attention=Branch("norm1", "attn", "ls1", (Attention, TimmAttention)),
            mlp=Branch("norm2", "mlp", "ls2"),
            drops=("drop_path1", "drop_path2"),
        ),
    ),
    tensor=r"patch_embed\.proj\.weight",
    smallest={"depth": 2, "embed_dim": 48, "num_heads": 4},
    passes=(PLAIN, DISTILLED),
    embedding=KnownClasses("timm's PatchEmbed", (TimmPatchEmbed, PatchEmbed)),
    timm_modules=("vision_transformer", "deit"),
    patch_of=_patch_of,
)
