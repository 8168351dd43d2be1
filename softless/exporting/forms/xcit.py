"""XCiT in its edge form: positions as a constant, the stem's BatchNorm, norms and layer scales folded
in, the class token apart from the patches.
"""

# B batch, N patches, C channels, H heads, D features of a head

from collections.abc import Sequence
from typing import Any

import torch
from timm.models.cait import ClassAttn
from timm.models.xcit import XCA
from torch import Tensor, nn

from softless.attention.linear import gain
from softless.attention.norms import Norm
from softless.attention.record import Operator
from softless.attention.registry import OPERATORS
from softless.exporting.forms.attention import attention_form
from softless.exporting.forms.closing import Closing, closing, refuse_mixing
from softless.exporting.forms.convolutions import local_form, stem_form
from softless.exporting.forms.core import Heads, product
from softless.exporting.forms.parts import (
    Affine,
    NoForm,
    Setting,
    copied,
    linear,
    mlp_form,
    refuse_acting,
    scale_of,
    split,
    to_tokens,
    within,
)
from softless.layers.attention import Attention
from softless.layers.class_attention import EPS, ClassAttention
from softless.layers.patch_embed import check_size
from softless.layers.plain import watched, why_called
from softless.models.xcit import HOST

CHANGED = "it has hooks, or a forward or a weight that was replaced"
DROPS = ("drop_path", "drop_path1", "drop_path2", "drop_path3")
NORMS: dict[str, Norm] = {"sima": "l1", "sima_l2": "l2", "sima_none": "none"}


class BlockForm(nn.Module):
    """x += attention(x);  x += local(x) where there is one;  x += mlp(x): (B,N,C) -> (B,N,C)."""

    def __init__(self, attention: nn.Module, local: nn.Module | None, mlp: nn.Module) -> None:
        super().__init__()
        self.attention, self.local, self.mlp = attention, local, mlp

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B,N,C) -> (B,N,C)."""
        x = x + self.attention(x)
        if self.local is not None:
            x = x + self.local(x)
        y: Tensor = x + self.mlp(x)
        return y


class ClassRead(nn.Module):
    """What the class token takes from all tokens: (B,1,C) and (B,1+N,C), normalised, -> (B,1,C)."""

    after: float = 1.0  # of the output: for the projection

    def __init__(self, heads: Heads, tokens: int, project: dict[str, nn.Module]) -> None:
        super().__init__()
        self.heads, self.tokens = heads, tokens
        self.q, self.k, self.v = project["q"], project["k"], project["v"]
        self.proj: nn.Module = nn.Identity()

    def _out(self, row: Tensor, v: Tensor) -> Tensor:
        """Past the projection: weights (…,1,M) of values (…,M,D) -> (B,1,C)."""
        y: Tensor = self.proj(self.heads.joined(product(row, v)))
        return y


class NormedRead(ClassRead):
    """q^_0 k^^T v, the family of SimA; its norm of q is over all tokens.

    q is divided by the mean of its absolute values, which keeps it of the order of one.
    """

    def __init__(self, *parts: Any, norm: Norm, token_scale: str | float | None) -> None:
        super().__init__(*parts)
        self.norm = norm
        self.after = float(gain(self.tokens - 1, token_scale))
        if norm == "l1":
            self.after /= self.tokens

    def forward(self, token: Tensor, every: Tensor) -> Tensor:  # noqa: ARG002
        """The class token (B,1,C) and every token (B,1+N,C) -> (B,1,C)."""
        q, k, v = self.q(every), self.k(every), self.v(every)
        first = q[:, :1]
        if self.norm == "l1":
            first = first / q.abs().mean(-2, keepdim=True).clamp_min(EPS / self.tokens)
            k = k / k.abs().sum(-2, keepdim=True).clamp_min(EPS)
        elif self.norm == "l2":
            first = first / (q * q).sum(-2, keepdim=True).sqrt().clamp_min(EPS)
            k = k / (k * k).sum(-2, keepdim=True).sqrt().clamp_min(EPS)
        row = product(self.heads.apart(first, 1), self.heads.upright(k, self.tokens))
        return self._out(row, self.heads.apart(v, self.tokens))


class OperatorRead(ClassRead):
    """By the weights that any other operator gives the first query."""

    def __init__(self, *parts: Any, attention: ClassAttention) -> None:
        super().__init__(*parts)
        self.heads = Heads(self.heads.number)  # as its record is written
        self.row, self.options = attention.op.class_row, dict(attention.row_options)
        self.after = float(gain(self.tokens - 1, attention.options.get("token_scale")))

    def forward(self, token: Tensor, every: Tensor) -> Tensor:  # noqa: ARG002
        """The class token (B,1,C) and every token (B,1+N,C) -> (B,1,C)."""
        assert self.row is not None
        q, k, v = (
            self.heads.apart(project(every), self.tokens) for project in (self.q, self.k, self.v)
        )
        return self._out(self.row(q, k, eps=EPS, **self.options), v)


class SoftmaxRead(ClassRead):
    """XCiT's own class attention; the scale of q is in its projection."""

    def forward(self, token: Tensor, every: Tensor) -> Tensor:
        """The class token (B,1,C) and every token (B,1+N,C) -> (B,1,C)."""
        q, k = self.heads.apart(self.q(token), 1), self.heads.upright(self.k(every), self.tokens)
        v = self.heads.apart(self.v(every), self.tokens)
        return self._out(product(q, k).softmax(-1), v)


class ClassBlockForm(nn.Module):
    """A block of class attention, of the class token c and the patches p:

        c += g1 attention(LN1 c, LN1 p);   p += g1 LN1 p
        c = LN2 c;   p = LN2 p where `tokens_norm`
        c += g2 MLP(c);   p += p

    The patches' own part is theirs alone, as XCiT's code has it.
    """

    factor: Tensor
    shift: Tensor

    def __init__(
        self,
        norm1: nn.Module,
        read: nn.Module | None,
        norm2: nn.Module,
        mlp: nn.Module | None,
        of_patches: Affine,
        like: Tensor,
        *,
        gives_patches: bool,
        tokens_norm: bool,
    ) -> None:
        super().__init__()
        self.norm1, self.read, self.norm2, self.mlp = norm1, read, norm2, mlp
        self.gives_patches, self.tokens_norm = gives_patches, tokens_norm
        for name, value in zip(("factor", "shift"), of_patches, strict=True):
            full = torch.as_tensor(value, dtype=torch.float64, device=like.device)
            self.register_buffer(name, full.expand(len(like)).to(like.dtype).contiguous())

    def forward(self, token: Tensor | None, patches: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The class token (B,1,C), None where nobody reads it, and the patches (B,N,C) -> both."""
        normed = self.norm1(patches)
        if token is not None:
            assert self.read is not None
            assert self.mlp is not None
            own = self.norm1(token)
            token = self.norm2(token + self.read(own, torch.cat([own, normed], dim=1)))
            token = token + self.mlp(token)
        if not self.gives_patches:
            return token, None
        patches = patches + (normed * self.factor + self.shift)
        if self.tokens_norm:
            patches = self.norm2(patches)
        return token, patches + patches


class XcitForm(nn.Module):
    """Images (B,3,h,w) of one size -> what the model answers."""

    positions: Tensor | None
    token: Tensor | None

    def __init__(
        self,
        stem: nn.Module,
        positions: Tensor | None,
        blocks: list[nn.Module],
        token: Tensor | None,
        class_blocks: Sequence[nn.Module],
        end: Closing,
        batch: int | None,
    ) -> None:
        super().__init__()
        self.stem, self.blocks, self.end = stem, nn.ModuleList(blocks), end
        self.class_blocks, self.batch = nn.ModuleList(class_blocks), batch
        self.register_buffer("positions", positions)
        self.register_buffer("token", token)

    def forward(self, image: Tensor) -> Tensor:
        """Images (B,C,h,w) -> logits (B,classes), or what stands in their place."""
        patches: Tensor = to_tokens(self.stem(image))
        if self.positions is not None:
            patches = patches + self.positions
        for block in self.blocks:
            patches = block(patches)
        token, rest = self.token, patches
        if token is not None and self.batch != 1:
            token = token.expand(image.shape[0], -1, -1)
        for block in self.class_blocks:
            token, rest = block(token, rest)
        if self.end.pool == "token":  # without class blocks it is the first patch
            tokens = rest[:, :1] if token is None else token
        else:
            tokens = rest if token is None else torch.cat([token, rest], dim=1)
        y: Tensor = self.end(tokens)
        return y


def xcit_form(model: Any, setting: Setting) -> XcitForm:
    """An XCiT of ours or timm's for one size of image.

    Raises:
        NoForm: a part of it is not the host's own, or somebody waits for its call.
        UsageError: the size is not a whole number of patches.
    """
    if type(model) not in HOST.models:
        raise NoForm(f"{type(model).__name__} has a forward of its own")
    refuse_acting(model, "pos_drop")
    if model.num_prefix_tokens != int(model.cls_attn_blocks is not None):
        raise NoForm(f"it counts {model.num_prefix_tokens} tokens ahead of its patches")
    with within("patch_embed"):
        stem, grid = _stem(model.patch_embed, setting)
    with within("pos_embed"):
        positions = _positions(model.pos_embed, grid)
    blocks: list[nn.Module] = []
    for number, block in enumerate(model.blocks):
        with within(f"blocks.{number}"):
            blocks.append(_block(block, grid, setting))
    token, class_blocks = None, []
    reads = model.global_pool != "avg", model.global_pool != "token"  # the token, the patches
    if model.cls_attn_blocks is not None:
        token = model.cls_token.detach().clone() if reads[0] else None
        for number, block in enumerate(model.cls_attn_blocks):
            last = number == len(model.cls_attn_blocks) - 1
            with within(f"cls_attn_blocks.{number}"):
                class_blocks.append(
                    _class_block(
                        block,
                        grid,
                        setting,
                        model.cls_token[0, 0],
                        token=reads[0],
                        patches=reads[1] or not last,
                    )
                )
    end = closing(model, model.global_pool)
    return XcitForm(stem, positions, blocks, token, class_blocks, end, setting.batch)


def _stem(embed: Any, setting: Setting) -> tuple[nn.Module, tuple[int, int]]:
    """The stem, and rows and columns of the patches."""
    assert HOST.embedding is not None
    if type(embed) not in HOST.embedding.classes or why_called(embed):
        raise NoForm(why_called(embed) or f"it is a {type(embed).__name__}")
    patch = int(embed.patch_size)
    check_size(*setting.size, (patch, patch))
    with within("proj"):
        return stem_form(embed.proj), (setting.size[0] // patch, setting.size[1] // patch)


def _positions(positions: Any, grid: tuple[int, int]) -> Tensor | None:
    """The positions of a grid, (1,N,C)."""
    if positions is None:
        return None
    assert HOST.positions is not None
    if type(positions) not in HOST.positions.classes:
        raise NoForm(f"it is a {type(positions).__name__}")
    with torch.no_grad():
        return to_tokens(copied(positions)(1, *grid)).contiguous()


def _block(block: Any, grid: tuple[int, int], setting: Setting) -> BlockForm:
    if type(block) not in HOST.blocks[0].accepted.classes or why_called(block):
        raise NoForm(why_called(block) or f"it is a {type(block).__name__}")
    refuse_acting(block, *DROPS)
    with within("attn"):
        attention = attention_form(
            _known_attention(block.attn), block.norm1, scale_of(block.gamma1), (0, *grid), setting
        )
    local = None
    if block.local_mp is not None:
        with within("local_mp"):
            local = local_form(block.local_mp, block.norm3, block.gamma3, grid)
    with within("mlp"):
        mlp = mlp_form(block.mlp, block.norm2, scale_of(block.gamma2))
    return BlockForm(attention, local, mlp)


def _known_attention(attention: nn.Module) -> nn.Module:
    """timm's XCA as our attention; any other as it is."""
    if type(attention) is not XCA:
        return attention
    if watched(attention):
        raise NoForm(CHANGED)
    refuse_acting(attention, "attn_drop")
    replacement = Attention(attention.proj.in_features, attention.num_heads, "xca")
    replacement.qkv, replacement.proj = attention.qkv, attention.proj
    replacement.proj_drop = attention.proj_drop
    replacement.learned.temperature = attention.temperature
    return replacement


def _class_block(
    block: Any,
    grid: tuple[int, int],
    setting: Setting,
    like: Tensor,
    *,
    token: bool,
    patches: bool,
) -> ClassBlockForm:
    """A block of class attention of which the token or the patches are read, or both; `like` is a
    token (C,).
    """
    assert HOST.class_blocks is not None
    if type(block) not in HOST.class_blocks.accepted.classes or why_called(block):
        raise NoForm(why_called(block) or f"it is a {type(block).__name__}")
    refuse_acting(block, *DROPS)
    with within("norm1"):
        refuse_mixing(block.norm1)
        norm1, affine = split(block.norm1)
    with within("norm2"):
        refuse_mixing(block.norm2)
        norm2 = copied(block.norm2)
    read, mlp = None, None
    if token:
        tokens = 1 + grid[0] * grid[1]
        with within("attn"):
            read = _read(block.attn, affine, _tensor(block.gamma1), tokens, setting)
        with within("mlp"):
            mlp = mlp_form(block.mlp, None, _tensor(block.gamma2))
    (factor, shift), gamma = affine, _tensor(block.gamma1)
    scale = 1.0 if gamma is None else gamma.detach().double()
    return ClassBlockForm(
        norm1,
        read,
        norm2,
        mlp,
        Affine(factor * scale, shift * scale),
        like,
        gives_patches=patches,
        tokens_norm=block.tokens_norm,
    )


def _tensor(scale: Tensor | float) -> Tensor | None:
    """A layer scale (C,); None for timm's 1.0, which says that there is none."""
    if isinstance(scale, Tensor):
        return scale
    if scale != 1.0:
        raise NoForm(f"its layer scale is {scale}")
    return None


def _read(
    attention: Any, affine: Affine, scale: Tensor | None, tokens: int, setting: Setting
) -> ClassRead:
    """The class attention of ours or timm's, behind a norm without its affine."""
    if type(attention) not in {ClassAttention, ClassAttn} or watched(attention):
        raise NoForm(CHANGED if watched(attention) else f"it is a {type(attention).__name__}")
    refuse_acting(attention, "attn_drop", "proj_drop")
    heads = Heads(attention.num_heads, setting.batch)
    if type(attention) is ClassAttn:
        project: dict[str, nn.Module] = {}
        for name in "qkv":
            with within(name):
                factor = attention.scale if name == "q" else None
                project[name] = linear(getattr(attention, name), affine, factor)
        read: ClassRead = SoftmaxRead(heads, tokens, project)
    else:
        width = attention.qkv.out_features // 3
        with within("qkv"):
            project = {
                name: linear(attention.qkv, affine, rows=slice(i * width, (i + 1) * width))
                for i, name in enumerate("qkv")
            }
        record: Operator = attention.op
        if record.name in NORMS and record is OPERATORS.get(record.name):
            norm, token_scale = NORMS[record.name], attention.options.get("token_scale")
            read = NormedRead(heads, tokens, project, norm=norm, token_scale=token_scale)
        else:
            read = OperatorRead(heads, tokens, project, attention=attention)
    with within("proj"):
        read.proj = linear(attention.proj, Affine(read.after, 0.0), scale)
    return read
