"""Small models of timm's families whose attention is not that of its ViT, with weights on which
attention counts.
"""

from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.models.metaformer import Attention as MetaFormerAttention
from timm.models.metaformer import LayerNorm2dNoBias, LayerNormNoBias, MetaFormer, SepConv
from timm.models.nest import Nest
from timm.models.volo import VOLO
from torch import Tensor

Size = tuple[int, int]


def named(name: str, **arguments: Any) -> Callable[[], Any]:
    return lambda: timm.create_model(name, num_classes=5, **arguments)


def volo() -> Any:
    sizes: Any = {"embed_dims": (48, 96, 96, 96), "num_heads": (2, 4, 4, 4), "img_size": (64, 96)}
    depths: Any = (1, 1, 1, 1)
    return VOLO(depths, num_classes=5, qkv_bias=True, **sizes)


def nest() -> Any:
    return Nest(64, num_classes=5, embed_dims=(24, 48, 96), num_heads=(1, 2, 4), depths=(1, 1, 2))


def metaformer() -> Any:
    mixers: Any = [SepConv, SepConv, MetaFormerAttention, MetaFormerAttention]
    return MetaFormer(
        num_classes=5,
        depths=(1, 1, 1, 1),
        dims=(16, 32, 64, 96),
        token_mixers=mixers,
        norm_layers=[LayerNorm2dNoBias] * 2 + [LayerNormNoBias] * 2,
    )


# by family: the model, images that it takes, how many attention modules softmax's form fits
FAMILIES: dict[str, tuple[Callable[[], Any], Size, int]] = {
    "volo": (volo, (64, 96), 3),
    "convit": (named("convit_tiny", depth=3, local_up_to_layer=1, img_size=64), (64, 64), 2),
    "hiera": (
        named(
            "hiera_tiny_224", stages=(1, 1, 2, 1), embed_dim=24, img_size=(64, 96), init_values=0.5
        ),
        (64, 96),
        1,
    ),
    "sam2": (
        named("sam2_hiera_tiny", stages=(1, 1, 3, 1), embed_dim=24, global_att_blocks=(3, 4)),
        (64, 96),
        2,
    ),
    "fastvit": (named("fastvit_sa12", layers=(1, 1, 1, 1)), (64, 128), 1),
    "nest": (nest, (64, 64), 2),
    "metaformer": (metaformer, (64, 96), 2),
    "tnt": (
        named("tnt_s_patch16_224", depth=1, embed_dim=96, num_heads_outer=3, img_size=64),
        (64, 64),
        1,
    ),
    "twins, reduced": (
        named(
            "twins_pcpvt_small",
            depths=(1, 1, 1, 1),
            embed_dims=(16, 32, 64, 96),
            num_heads=(1, 2, 2, 3),
        ),
        (64, 96),
        4,
    ),
    "twins, groups": (
        named("twins_svt_small", depths=(2, 2, 2, 2), embed_dims=(16, 32, 64, 96)),
        (64, 96),
        4,
    ),
    "crossvit": (named("crossvit_tiny_240"), (240, 240), 15),
    "pvt": (named("pvt_v2_b0", depths=(1, 1, 1, 1)), (64, 96), 4),
}
# with a bias by position, which the twin without it has not
BIASED: dict[str, tuple[Callable[[], Any], Size, int]] = {
    "relpos": (
        named(
            "vit_relpos_small_patch16_224",
            depth=2,
            embed_dim=96,
            num_heads=3,
            img_size=(64, 96),
            qk_norm=True,
        ),
        (64, 96),
        2,
    ),
    "shared relpos": (
        named("vit_srelpos_small_patch16_224", depth=2, embed_dim=96, num_heads=3, img_size=64),
        (64, 64),
        2,
    ),
    "sam": (
        named(
            "samvit_base_patch16_224",
            depth=2,
            embed_dim=96,
            num_heads=3,
            img_size=64,
            global_attn_indexes=(1,),
            qk_norm=True,
            init_values=0.5,
        ),
        (64, 96),
        1,
    ),
    "efficientformer": (
        named("efficientformer_l1", depths=(1, 1, 1, 2), embed_dims=(16, 32, 48, 64), num_vit=1),
        (224, 224),
        1,
    ),
    "beit": (
        named(
            "beit_base_patch16_224",
            depth=2,
            embed_dim=96,
            num_heads=3,
            img_size=64,
            init_values=0.5,
        ),
        (64, 64),
        2,
    ),
    "beit, shared": (
        named(
            "beit_base_patch16_224",
            depth=2,
            embed_dim=96,
            num_heads=3,
            img_size=64,
            use_rel_pos_bias=False,
            use_shared_rel_pos_bias=True,
        ),
        (64, 64),
        2,
    ),
}
POSITIONS = ("rel_pos", "relative_position_bias_table", "attention_biases")


def built(family: str, *, biased: bool = False) -> Any:
    """A model of a family in evaluation, its weights such that its attention counts; without the
    biases by position unless they are asked for.
    """
    make, size, _ = (FAMILIES | BIASED)[family]
    torch.manual_seed(0)
    model = make().eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, x in model.named_parameters():
            if any(position in name for position in POSITIONS):
                x.normal_(std=2.0 if biased else 0.0, generator=generator)
            elif "gamma" in name or "layer_scale" in name:
                x.fill_(1.0)
            elif "head" in name and x.ndim > 1:
                x.normal_(std=0.1, generator=generator)
            elif ".attn" in name or "token_mixer" in name:
                spread = 2.5 * x[0].numel() ** -0.5 if x.ndim > 1 else 0.1
                x.normal_(std=spread, generator=generator) if "norm" not in name else None
    model.pretrained_cfg = {"input_size": (3, *size)}
    return model


def images(family: str, number: int = 2) -> Tensor:
    _, size, _ = (FAMILIES | BIASED)[family]
    return torch.randn(number, 3, *size, generator=torch.Generator().manual_seed(3))
