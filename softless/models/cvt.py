"""CvT as a host for any operator whose queries may be more than its keys: convolutional token
embeddings and projections, three stages.

Wu et al., "CvT: Introducing Convolutions to Vision Transformers", ICCV 2021, arXiv:2103.15808;
names of parameters are those of its code. No positions; a class token in the last stage; stochastic
depth ramps inside it and is 0 elsewhere.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.layers import QuickGELU
from timm.models import build_model_with_cfg
from torch import Tensor, nn

from softless.layers.conv_attention import ConvAttention
from softless.models.host import Host, WeightLayout
from softless.models.options import host_arguments, take_companions, take_operator_options
from softless.models.pyramid import PRE_NORM, PreNormBlock, Pyramid, Stage, ramp, start_bias

KERNELS, STRIDES = (7, 3, 3), (4, 2, 2)


class ConvEmbed(nn.Module):
    """Convolution and LayerNorm over channels: (B, C, h, w) -> (B, dim, h / stride, w / stride)."""

    def __init__(self, in_chans: int, dim: int, kernel: int, stride: int, norm_layer: Any) -> None:
        super().__init__()
        # the code pads 2 at 7 x 7, which loses no cell at multiples of 4
        self.proj = nn.Conv2d(
            in_chans, dim, kernel, stride, padding=2 if kernel == 7 else kernel // 2
        )
        self.norm = norm_layer(dim)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, dim, h / stride, w / stride), normalised over channels."""
        x: Tensor = self.norm(self.proj(image).permute(0, 2, 3, 1))
        return x.permute(0, 3, 1, 2)


class CvT(Pyramid):
    """CvT with `op` in its blocks.

    Args:
        op: name of the operator; softmax is scaled by the full width, as published.
        op_options: the operator's options.
        embed_dims: widths of the stages.
        depths: blocks of the stages.
        num_heads: heads of the stages, or one number for all.
        **kwargs: as in `Pyramid`, and in_chans, mlp_ratio, qkv_bias, drop rates, act_layer
            (QuickGELU as published), norm_layer.

    Raises:
        UsageError: an operator that has no place here, or sizes that do not fit.
    """

    def __init__(
        self,
        *,
        op: str = "sima",
        op_options: dict[str, Any] | None = None,
        embed_dims: Sequence[int] = (64, 192, 384),
        depths: Sequence[int] = (1, 2, 10),
        num_heads: int | Sequence[int] = (1, 3, 6),
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        act_layer: type[nn.Module] | None = None,
        norm_layer: Any = None,
    ) -> None:
        norm_layer = norm_layer or partial(nn.LayerNorm, eps=1e-5)
        heads = [num_heads] * len(embed_dims) if isinstance(num_heads, int) else list(num_heads)
        stages = []
        for number, (dim, depth) in enumerate(zip(embed_dims, depths, strict=True)):
            last = number == len(embed_dims) - 1
            rates = ramp(drop_path_rate, depth) if last else [0.0] * depth
            blocks = [
                PreNormBlock(
                    ConvAttention(
                        dim,
                        heads[number],
                        op,
                        qkv_bias=qkv_bias,
                        attn_drop=attn_drop_rate,
                        proj_drop=proj_drop_rate,
                        **(op_options or {}),
                    ),
                    dim,
                    mlp_ratio=mlp_ratio,
                    drop_path=rate,
                    act_layer=act_layer or QuickGELU,
                    norm_layer=norm_layer,
                    proj_drop=proj_drop_rate,
                )
                for rate in rates
            ]
            before = in_chans if number == 0 else embed_dims[number - 1]
            embed = ConvEmbed(before, dim, KERNELS[number], STRIDES[number], norm_layer)
            stages.append(Stage(embed, blocks, dim, cls_token=last))
        super().__init__(
            stages,
            dims=embed_dims,
            reductions=(4, 8, 16),
            norm=norm_layer(embed_dims[-1]),
            img_size=img_size,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
        )
        start_bias(self.head)


def build(variant: str, op: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A registered CvT: timm's builder gives features_only, weights by tag, local-dir and hub."""
    return build_model_with_cfg(
        CvT,
        variant,
        pretrained,
        feature_cfg={"out_indices": kwargs.pop("out_indices", (0, 1, 2)), "feature_cls": "getter"},
        op=op,
        op_options=take_operator_options(op, kwargs) | take_companions(kwargs),
        **host_arguments(kwargs),
    )


HOST = Host(
    name="cvt",
    build=build,
    first_conv="stage0.patch_embed.proj",
    models=(CvT,),
    blocks=(PRE_NORM,),
    tensor=r".*\.attn\.conv_proj_q\..*",
    smallest={"depths": (1, 1, 2), "embed_dims": (16, 32, 48), "num_heads": (1, 2, 3)},
    layouts=(WeightLayout("CvT's code", r"stage0\.blocks\.0\.attn\.conv_proj_q\.conv\.weight"),),
)
