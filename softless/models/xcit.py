"""XCiT as a host for any operator: timm's Xcit with our attention, class attention, LPI, stem and
positions in its places.

    x += DP(g1 Attention(LN1 x));   x += DP(g3 LPI(LN3 x));   x += DP(g2 MLP(LN2 x))

El-Nouby et al., arXiv:2106.09681; with SimA as in the official code of arXiv:2206.08898. Class
attention follows the operator where it has a form for it (the SimA family); otherwise it stays
XCiT's softmax. The rate of stochastic depth is the same in all blocks.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath, Mlp
from timm.models import build_model_with_cfg
from timm.models.xcit import LPI as TimmLPI
from timm.models.xcit import (
    XCA,
    ClassAttentionBlock,
    ClassAttn,
    PositionalEncodingFourier,
    XCABlock,
)
from timm.models.xcit import ConvPatchEmbed as TimmConvPatchEmbed
from timm.models.xcit import Xcit as TimmXcit
from torch import Tensor, nn

from softless.attention.recording import known
from softless.attention.registry import get
from softless.errors import UsageError
from softless.layers.attention import Attention, operator_class
from softless.layers.class_attention import ClassAttention
from softless.layers.leaf import tracer_of
from softless.layers.lpi import LPI
from softless.layers.patch_embed import ConvPatchEmbed
from softless.layers.position import FourierPosition
from softless.models.host import (
    BlockKind,
    Branch,
    ClassBlocks,
    Host,
    KnownClasses,
    Pass,
    WeightLayout,
)
from softless.models.options import host_arguments, take_companions, take_operator_options


class Block(nn.Module):
    """Attention, local patch interaction (unless lpi=False) and MLP, each with its norm, layer
    scale and drop path.
    """

    def __init__(
        self,
        dim: int,
        attention: nn.Module,
        *,
        lpi: bool,
        mlp_ratio: float,
        proj_drop: float,
        drop_path: float,
        act_layer: type[nn.Module],
        norm_layer: Callable[[int], nn.Module],
        eta: float,
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = attention
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm3 = norm_layer(dim) if lpi else None
        self.local_mp = LPI(dim, act_layer) if lpi else None
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=proj_drop)
        self.gamma1, self.gamma2 = _scale(dim, eta), _scale(dim, eta)
        self.gamma3 = _scale(dim, eta) if lpi else None

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Tokens (B, N, dim), N = height width -> (B, N, dim)."""
        x = x + self.drop_path(self.gamma1 * self.attn(self.norm1(x), grid=(0, height, width)))
        if self.local_mp is not None and self.norm3 is not None:
            x = x + self.drop_path(self.gamma3 * self.local_mp(self.norm3(x), height, width))
        return x + self.drop_path(self.gamma2 * self.mlp(self.norm2(x)))


def _scale(dim: int, eta: float) -> nn.Parameter:
    return nn.Parameter(torch.full((dim,), eta))


class Xcit(TimmXcit):
    """timm's Xcit with `op` in its blocks; forward, heads, features and checkpointing are timm's.

    Args:
        op: Name of the operator.
        op_options: The operator's options, and companions of the attention (v_conv).
        lpi: Whether the blocks have local patch interaction.
        **kwargs: timm's arguments of Xcit.

    Raises:
        UsageError: unknown operator, or sizes that do not fit (see `ConvPatchEmbed`).
    """

    def __init__(
        self,
        *,
        op: str = "sima",
        op_options: dict[str, Any] | None = None,
        lpi: bool = True,
        depth: int = 12,
        cls_attn_layers: int = 2,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        act_layer: type[nn.Module] | None = None,
        norm_layer: Callable[[int], nn.Module] | None = None,
        use_pos_embed: bool = True,
        eta: float = 1.0,
        tokens_norm: bool = False,
        **kwargs: Any,
    ) -> None:
        act_layer = act_layer or nn.GELU
        norm_layer = norm_layer or partial(nn.LayerNorm, eps=1e-6)
        # first: its errors are the ones a caller can use
        embed = ConvPatchEmbed(img_size, patch_size, in_chans, embed_dim, act_layer)
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            embed_dim=embed_dim,
            num_heads=num_heads,
            act_layer=act_layer,
            norm_layer=norm_layer,  # type: ignore[arg-type]
            depth=0,
            cls_attn_layers=0,
            use_pos_embed=False,
            **kwargs,
        )
        self.patch_embed = embed  # type: ignore[assignment]
        self.pos_embed = FourierPosition(embed_dim) if use_pos_embed else None  # type: ignore[assignment]
        attention = partial(
            operator_class(op),
            embed_dim,
            num_heads,
            qkv_bias=qkv_bias,
            attn_drop=attn_drop_rate,
            proj_drop=proj_drop_rate,
        )
        self.blocks = nn.ModuleList([
            Block(
                embed_dim,
                attention(**(op_options or {})),
                lpi=lpi,
                mlp_ratio=mlp_ratio,
                proj_drop=proj_drop_rate,
                drop_path=drop_path_rate,
                act_layer=act_layer,
                norm_layer=norm_layer,
                eta=eta,
            )
            for _ in range(depth)
        ])
        self.feature_info = [
            {"num_chs": embed_dim, "reduction": patch_size, "module": f"blocks.{i}"}
            for i in range(depth)
        ]
        self.cls_attn_blocks = nn.ModuleList([
            ClassAttentionBlock(
                embed_dim,
                num_heads,
                mlp_ratio,
                qkv_bias,
                proj_drop_rate,
                attn_drop_rate,
                act_layer=act_layer,
                norm_layer=norm_layer,  # type: ignore[arg-type]
                eta=eta,
                tokens_norm=tokens_norm,
            )
            for _ in range(cls_attn_layers)
        ])
        if get(op).class_row is not None:
            for block in self.cls_attn_blocks:
                block.attn = ClassAttention(
                    embed_dim,
                    num_heads,
                    op,
                    qkv_bias=qkv_bias,
                    attn_drop=attn_drop_rate,
                    proj_drop=proj_drop_rate,
                    token_scale=(op_options or {}).get("token_scale"),
                    **get(op).of_row(op_options or {}),
                )
        self.apply(self._init_weights)
        for module in self.modules():
            if isinstance(module, Attention):
                module.set_tokens(self.stem.num_patches)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, 1 + N, C); no images make no tokens, outside training, whose
        BatchNorm has no mean of none.
        """
        if self.training or tracer_of(x) is not None or not known(x.shape[0]) or x.shape[0]:
            return super().forward_features(x)
        # timm's reshapes by what is left over
        return super().forward_features(x.new_zeros(1, *x.shape[1:]))[:0]

    @property
    def stem(self) -> ConvPatchEmbed:
        """The patch embedding, under the type that it has here."""
        return self.patch_embed  # type: ignore[return-value]

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | None = None
    ) -> None:
        """The size the model reports. Nothing is resized: positions are computed for every grid.

        Raises:
            UsageError: a size that is not a whole number of patches, or another patch size (the
                stem is built for one).
        """
        if patch_size not in {None, self.stem.patch_size}:
            raise UsageError(
                f"patch_size={patch_size}: this stem has patches of {self.stem.patch_size}; "
                "choose a model of the other patch size"
            )
        if img_size is not None:
            self.stem.set_input_size(
                (img_size, img_size) if isinstance(img_size, int) else img_size
            )


def build(variant: str, op: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A registered XCiT: timm's builder gives features_only, weights by tag, local-dir and hub."""
    return build_model_with_cfg(
        Xcit,
        variant,
        pretrained,
        feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
        op=op,
        op_options=take_operator_options(op, kwargs) | take_companions(kwargs),
        **host_arguments(kwargs),
    )


def _patch_of(state: Mapping[str, Tensor]) -> int:
    """Each convolution of the stem halves the image."""
    return 2 ** sum(bool(re.fullmatch(HOST.tensor, name)) for name in state)


HOST = Host(
    name="xcit",
    build=build,
    first_conv="patch_embed.proj.0.0",
    models=(TimmXcit, Xcit),
    blocks=(
        BlockKind(
            KnownClasses("XCiT's blocks", (Block, XCABlock)),
            "sides",
            attention=Branch("norm1", "attn", "gamma1", (Attention, XCA)),
            local=Branch("norm3", "local_mp", "gamma3", (LPI, TimmLPI)),
            mlp=Branch("norm2", "mlp", "gamma2"),
            drops=("drop_path",),
        ),
    ),
    tensor=r"patch_embed\.proj\.\d+\.0\.weight",
    smallest={"depth": 2, "embed_dim": 48, "num_heads": 4, "cls_attn_layers": 1, "eta": 1.0},
    passes=(
        Pass(
            classes=(TimmXcit, Xcit),
            methods=("forward", "forward_features", "forward_head"),
            prefix=(),
            positions="sines",
            norms=("norm",),
            pools=("token", "avg"),
            margin=1,  # a patch of the stem sees 15 pixels beyond its own, above and to the left
        ),
    ),
    embedding=KnownClasses("XCiT's ConvPatchEmbed", (ConvPatchEmbed, TimmConvPatchEmbed)),
    positions=KnownClasses(
        "XCiT's Fourier positions", (FourierPosition, PositionalEncodingFourier)
    ),
    class_blocks=ClassBlocks(
        "cls_attn_blocks",
        KnownClasses("XCiT's class attention", (ClassAttentionBlock,)),
        attentions=(ClassAttention, ClassAttn),
        token_wise=("norm1", "norm2", "mlp"),
    ),
    options=("lpi",),
    layouts=(
        WeightLayout(
            "XCiT's code and SimA's",
            r"pos_embeder\.token_projection\.weight",
            (
                (r"^pos_embeder\.", "pos_embed."),
                (r"\.attn\.temperature$", ".attn.learned.temperature"),
            ),
        ),
        WeightLayout(
            "timm's XCiT",
            r"blocks\.0\.attn\.temperature",
            ((r"\.attn\.temperature$", ".attn.learned.temperature"),),
        ),
    ),
    patch_of=_patch_of,
)
