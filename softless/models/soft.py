"""The SOFT pyramid as a host: three stages of post-norm blocks with the operator, and a last one of
pre-norm softmax attention.

    stages 1 to 3:  x = LN1(x + DP(Attention(x)));  x = LN2(x + DP(MLP(x)))
    stage 4:        x += DP(Attention(LN1 x));      x += DP(MLP(LN2 x)),    with a class token

Lu et al., "SOFT: Softmax-free Transformer with Linear Complexity", NeurIPS 2021, arXiv:2110.11945,
and its code; normalised: arXiv:2207.03341. The published last stage is softmax attention, so the
published models are not softmax-free: `last_stage` names another operator for it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.layers import GELUTanh
from timm.models import build_model_with_cfg
from torch import nn

from softless.attention.registry import get
from softless.layers.attention import Attention
from softless.models.host import Host, WeightLayout
from softless.models.options import host_arguments, take_companions, take_operator_options
from softless.models.pyramid import PRE_NORM, PostNormBlock, PreNormBlock, Pyramid, Stage, ramp

REDUCTIONS = (4, 8, 16, 32)
# side of the windows that make one bottleneck token: 49 of them in each stage at 224 x 224
RATIOS = (8, 4, 2)
V_CONVS = (9, 5, 3)  # side of the depthwise convolution of v


def _step(before: int, after: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU()]


class SoftPyramid(Pyramid):
    """The SOFT pyramid with `op` in its first three stages.

    Args:
        op: name of the operator; one with windows on the grid has those of 8, 4 and 2 cells in the
            three stages.
        op_options: the operator's options, and v_conv: None for the published 9, 5, 3; 0 for none;
            or one side for all.
        last_stage: operator of the last stage.
        embed_dims: widths of the stages.
        depths: blocks of the stages.
        num_heads: heads of the stages, or one number for all.
        **kwargs: as in `Pyramid`, and in_chans, mlp_ratio, qkv_bias, drop rates, act_layer
            (tanh-GELU, and GELU in the last stage, as published).

    Raises:
        UsageError: unknown operator, or sizes that do not fit.
    """

    def __init__(
        self,
        *,
        op: str = "soft",
        op_options: dict[str, Any] | None = None,
        last_stage: str = "softmax",
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (1, 2, 3, 2),
        num_heads: int | Sequence[int] = (2, 4, 10, 16),
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
    ) -> None:
        heads = [num_heads] * len(embed_dims) if isinstance(num_heads, int) else list(num_heads)
        rates = ramp(drop_path_rate, sum(depths))
        size = (img_size, img_size) if isinstance(img_size, int) else img_size
        stages = []
        for number, (dim, depth) in enumerate(zip(embed_dims, depths, strict=True)):
            last = number == len(embed_dims) - 1
            common: dict[str, Any] = {"qkv_bias": qkv_bias, "proj_drop": proj_drop_rate}
            if last:
                attention = partial(
                    Attention, dim, heads[number], last_stage, attn_drop=attn_drop_rate, **common
                )
                block = partial(
                    PreNormBlock,
                    act_layer=act_layer or nn.GELU,
                    norm_layer=partial(nn.LayerNorm, eps=1e-6),
                )
            else:
                attention = partial(
                    Attention, dim, heads[number], op, **common, **_at(number, op, op_options or {})
                )
                block = partial(
                    PostNormBlock, act_layer=act_layer or GELUTanh, norm_layer=nn.LayerNorm
                )
            own, rates = rates[:depth], rates[depth:]
            blocks = [
                block(
                    attention(), dim, mlp_ratio=mlp_ratio, drop_path=rate, proj_drop=proj_drop_rate
                )
                for rate in own
            ]
            before = in_chans if number == 0 else embed_dims[number - 1]
            steps = (
                [*_step(before, 32, 2), *_step(32, 32, 1), *_step(32, dim, 2)]
                if number == 0
                else _step(before, dim, 2)
            )
            grid = (size[0] // REDUCTIONS[number], size[1] // REDUCTIONS[number])
            stages.append(Stage(nn.Sequential(*steps), blocks, dim, cls_token=last, positions=grid))
        super().__init__(
            stages,
            dims=embed_dims,
            reductions=REDUCTIONS,
            norm=nn.LayerNorm(embed_dims[-1], eps=1e-6),
            img_size=img_size,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
        )


def _at(stage: int, op: str, stated: dict[str, Any]) -> dict[str, Any]:
    """The attention's options in one stage: windows and the convolution of v are as published
    unless they are given.
    """
    record, options = get(op), dict(stated)
    if "ratio" in record.options:
        options.setdefault("ratio", RATIOS[stage])
    own = {name: value for name, value in options.items() if name in record.options}
    side = options.pop("v_conv", None)
    if side is None:
        reduced = record.reduces is not None and record.reduces(record.filled(own)) > 1
        side = 0 if reduced else V_CONVS[stage]  # k and v of reduced tokens have no grid
    return {**options, "v_conv": side or None}


def build(variant: str, op: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A registered SOFT pyramid: timm's builder gives features_only, weights by tag, local-dir and
    hub.
    """
    return build_model_with_cfg(
        SoftPyramid,
        variant,
        pretrained,
        feature_cfg={
            "out_indices": kwargs.pop("out_indices", (0, 1, 2, 3)),
            "feature_cls": "getter",
        },
        op=op,
        op_options=take_operator_options(op, kwargs) | take_companions(kwargs),
        **host_arguments(kwargs),
    )


HOST = Host(
    name="pyramid",
    build=build,
    first_conv="stage0.patch_embed.0",
    models=(SoftPyramid,),
    blocks=(PRE_NORM,),
    tensor=r"stage\d+\.blocks\..*",
    smallest={
        "depths": (1, 1, 1, 1),
        "embed_dims": (16, 16, 32, 32),
        "num_heads": (1, 1, 2, 2),
    },
    layouts=(
        WeightLayout(
            "SOFT's code",
            r"block1\.0\.att\.mha\.W_q\.weight",
            (
                (
                    r"^patch_embed(\d)\.proj\.(.*)",
                    lambda m: f"stage{int(m[1]) - 1}.patch_embed.{m[2]}",
                ),
                (r"^pos_embed(\d)()$", lambda m: f"stage{int(m[1]) - 1}.pos_embed"),
                (r"^block(\d)\.(.*)", lambda m: f"stage{int(m[1]) - 1}.blocks.{m[2]}"),
                (r"^cls_token$", "stage3.cls_token"),
                (r"\.att\.mha\.W_(q|v)\.", r".attn.\1."),
                (r"\.att\.mha\.ff\.", ".attn.proj."),
                (r"\.att\.mha\.attn\.Qlandmark_op\.weight", ".attn.learned.conv"),
                (r"\.att\.mha\.attn\.Qnorm_act\.0\.(weight|bias)", r".attn.learned.norm_\1"),
                (r"\.att\.mha\.attn\.conv\.", ".attn.v_conv."),
                (r"\.att\.ff(\d)\.", r".mlp.fc\1."),
                (r"\.att\.norm(\d)\.", r".norm\1."),
            ),
            ("soft", "softnorm"),
        ),
    ),
)
