"""A ViT in its edge form: the table of positions with the class token in it, blocks of folded
layers, the pooling, and the head.
"""

# B batch, N tokens, C channels, h x w grid

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import PatchDropout
from timm.layers import PatchEmbed as TimmPatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from softless.errors import UsageError
from softless.exporting.forms.attention import attention_form
from softless.exporting.forms.parts import (
    LAYER_NORMS,
    Affine,
    NoForm,
    Setting,
    conv,
    copied,
    linear,
    mlp_form,
    refuse_acting,
    scale_of,
    split,
    to_tokens,
    within,
    written,
)
from softless.layers.patch_embed import check_size
from softless.layers.plain import is_nothing, why_called
from softless.models.vit import HOST

POOLS = ("token", "avg", "max", "avgmax", "")


def vit_form(model: Any, setting: Setting) -> nn.Module:
    """The edge form of a ViT or DeiT, timm's or ours: images (B,C,H,W) -> what the model answers.

    Raises:
        NoForm: the model has a way of its own, or a part of it has no form.
        UsageError: a size that the model does not take.
    """
    if not any(way.taken_by(type(model)) for way in HOST.passes):
        raise NoForm(f"{type(model).__name__} has a forward of its own")
    if model.attn_pool is not None or model.global_pool not in POOLS:
        raise NoForm(f"its pooling is '{model.global_pool}'")
    if type(model.patch_drop) not in {nn.Identity, PatchDropout}:
        raise NoForm(f"it is a {type(model.patch_drop).__name__}", "patch_drop")
    if type(model.blocks) is not nn.Sequential or why_called(model.blocks):
        raise NoForm(f"it is a {type(model.blocks).__name__}", "blocks")
    refuse_acting(model, "pos_drop", "head_drop")
    with within("patch_embed"):
        patches = PatchForm(model.patch_embed, model, setting.size)
    height, width = patches.grid
    grid = (model.num_prefix_tokens, height, width)
    blocks = []
    for number, block in enumerate(model.blocks):
        with within(f"blocks.{number}"):
            blocks.append(block_form(block, grid, setting))
    with within("norm_pre"):
        before = copied(model.norm_pre)
    return ViTForm(patches, positions(model, height, width), before, blocks, head_form(model))


def positions(model: Any, height: int, width: int) -> Tensor:
    """What is added to the patches of a grid behind zeros for the tokens ahead of them: those
    tokens, and the model's positions. (1,N,C).
    """
    cells = (height, width) if model.dynamic_img_size else (height * width,)
    like = next(model.parameters())
    with torch.no_grad():
        # of no patches the model's own method leaves what is added to them
        table: Tensor = model._pos_embed(like.new_zeros(1, *cells, model.embed_dim))
    return table.detach().clone()


def block_form(block: Any, grid: tuple[int, int, int], setting: Setting) -> "BlockForm":
    """A pre-norm block, its affines and layer scales folded.

    Raises:
        NoForm: it is another class than timm's Block, or a part of it has no form.
    """
    if type(block) is not Block or why_called(block):
        raise NoForm(why_called(block) or f"it is a {type(block).__name__}")
    refuse_acting(block, "drop_path1", "drop_path2")
    scales = []
    for name in ("ls1", "ls2"):
        with within(name):
            scales.append(scale_of(getattr(block, name)))
    with within("attn"):
        attention = attention_form(block.attn, block.norm1, scales[0], grid, setting)
    with within("mlp"):
        mlp = mlp_form(block.mlp, block.norm2, scales[1])
    return BlockForm(attention, mlp)


class BlockForm(nn.Module):
    """x += attention(x); x += mlp(x), norms included: (B,N,C) -> (B,N,C)."""

    def __init__(self, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.attn, self.mlp = attention, mlp

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B,N,C) -> (B,N,C)."""
        x = x + self.attn(x)
        return x + self.mlp(x)


class PatchForm(nn.Module):
    """The embedding of patches for one size of image: (B,C,H,W) -> (B,h w,dim)."""

    def __init__(self, embed: Any, model: Any, size: tuple[int, int]) -> None:
        super().__init__()
        if type(embed) not in HOST.embedding.classes or why_called(embed):  # type: ignore[union-attr]
            raise NoForm(why_called(embed) or f"it is a {type(embed).__name__}")
        own = embed.img_size
        if embed.dynamic_img_pad and type(embed) is TimmPatchEmbed:  # ours refuses such an image
            self.padding = tuple(-side % p for side, p in zip(size, embed.patch_size, strict=True))
        else:
            check_size(*size, embed.patch_size)
            self.padding = (0, 0)
        if not model.dynamic_img_size and tuple(own) != size:
            raise UsageError(
                f"size={size}: this model takes images of {own[0]} x {own[1]} alone; build it "
                "with dynamic_img_size=True, or call its set_input_size"
            )
        self.grid = embed.dynamic_feat_size(size)
        with within("proj"):
            self.proj = conv(embed.proj)
        with within("norm"):
            self.norm = copied(embed.norm)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B,C,H,W) -> patches (B,N,dim)."""
        down, across = self.padding
        if down or across:
            images = F.pad(images, (0, across, 0, down))
        y: Tensor = self.norm(to_tokens(self.proj(images)))
        return y


class ViTForm(nn.Module):
    """Images (B,C,H,W) of one size -> logits (B,classes), or what the model's pooling leaves."""

    table: Tensor

    def __init__(
        self,
        patches: PatchForm,
        table: Tensor,
        norm_pre: nn.Module,
        blocks: list[BlockForm],
        head: nn.Module,
    ) -> None:
        super().__init__()
        self.patches, self.norm_pre, self.head = patches, norm_pre, head
        self.ahead = table.shape[1] - patches.grid[0] * patches.grid[1]
        self.register_buffer("table", table)
        self.blocks = nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B,C,H,W) -> (B,classes)."""
        x = self.patches(images)
        # the tokens ahead stand in the table: no token is repeated for each image
        x = F.pad(x, (0, 0, self.ahead, 0)) if self.ahead else x
        y: Tensor = self.head(self.blocks(self.norm_pre(x + self.table)))
        return y


# The head


class Head(nn.Module):
    """norm, pooling, norm and classifier: (B,N,C) -> (B,classes)."""

    def __init__(
        self, norm: nn.Module, pool: nn.Module, fc_norm: nn.Module, head: nn.Module
    ) -> None:
        super().__init__()
        self.norm, self.pool, self.fc_norm, self.head = norm, pool, fc_norm, head

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B,N,C) -> (B,classes)."""
        y: Tensor = self.head(self.fc_norm(self.pool(self.norm(x))))
        return y


class Pool(nn.Module):
    """timm's pooling of tokens by name: (B,N,C) -> (B,C), or all tokens where there is none."""

    def __init__(self, kind: str, first: int) -> None:
        super().__init__()
        self.kind, self.first = kind, first

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B,N,C) -> (B,C)."""
        if self.kind == "token":
            return x[:, 0]
        if not self.kind:
            return x
        x = x[:, self.first :] if self.first else x
        if self.kind == "avg":
            return x.mean(1)
        largest = x.amax(1)
        return largest if self.kind == "max" else 0.5 * (largest + x.mean(1))


def head_form(model: Any) -> nn.Module:
    """What stands behind the blocks, the last norm's affine in the classifier where the pooling lets
    it pass.

    Raises:
        NoForm: a part of it is not plain.
    """
    if isinstance(model, VisionTransformerDistilled):
        return two_heads(model)
    kind, first = model.global_pool, 0 if model.pool_include_prefix else model.num_prefix_tokens
    pool, norm, fc_norm = Pool(kind, first), model.norm, model.fc_norm
    if kind == "token" and type(norm) in LAYER_NORMS and is_nothing(fc_norm):
        # one token is normalised, and not all of them
        pool, norm, fc_norm = Pool(kind, first), nn.Identity(), norm
    classifies = not is_nothing(model.head)
    passes = kind in {"token", "avg", ""} and is_nothing(fc_norm) and classifies
    with within("norm"):
        outer, affine = split(norm) if passes else (copied(norm), Affine(1.0, 0.0))
    with within("fc_norm"):
        inner, inner_affine = split(fc_norm) if classifies else (copied(fc_norm), affine)
    with within("head"):
        before = affine if passes else inner_affine
        head = linear(model.head, before) if classifies else nn.Identity()
    return Head(outer, pool, inner, head)


def two_heads(model: Any) -> nn.Module:
    """The mean of DeiT's two heads, of the class and the distillation token, as one layer of both
    tokens side by side.

    Raises:
        NoForm: a head is not plain.
    """
    with within("norm"):
        norm, affine = split(model.norm)
    heads = []
    for name in ("head", "head_dist"):
        with within(name):
            layer = getattr(model, name)
            if is_nothing(layer):
                raise NoForm("it is no classifier")
            heads.append(linear(layer, affine, 0.5))
    (first, first_bias), (second, second_bias) = (head.parameters() for head in heads)
    both = written(torch.cat([first, second], 1), first_bias + second_bias, first)
    return Head(norm, FirstTwo(), nn.Identity(), both)


class FirstTwo(nn.Module):
    """The first two tokens side by side: (B,N,C) -> (B,2 C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B,N,C) -> (B,2 C)."""
        return x[:, :2].reshape(-1, 2 * x.shape[2])
