"""ViT and DeiT as hosts: timm's own VisionTransformer with our attention in its `attn_layer=` place."""

from typing import Any

from timm.layers import PatchEmbed as TimmPatchEmbed
from timm.models import build_model_with_cfg
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from softless.layers import Attention, SharedGrid, check_size, operator_class
from softless.layers.patch_embed import refuse_empty
from softless.layers.plain import refuse_absent
from softless.models.options import host_arguments, take_companions, take_operator_options


class PatchEmbed(TimmPatchEmbed):
    """timm's patch embedding, refusing an image that is not a whole number of patches in one sentence, and telling the grid."""

    told: SharedGrid | None = None
    prefix = 0
    takes_none = False  # whether the host can go on with a batch of no images

    def forward(self, x: Tensor) -> Tensor:
        if not self.takes_none:
            refuse_empty(x)
        refuse_absent(x, proj=self.proj)
        check_size(x.shape[-2], x.shape[-1], self.patch_size)
        if self.told is not None:
            height, width = self.dynamic_feat_size((x.shape[-2], x.shape[-1]))
            self.told.tell((self.prefix, height, width))
        return super().forward(x)


def connect(model: VisionTransformer) -> VisionTransformer:
    """Tell the attention modules what timm's blocks do not: how many tokens there are, and at each pass their grid."""
    embed = model.patch_embed
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    for attention in attentions:
        attention.set_tokens(embed.num_patches + model.num_prefix_tokens)
    looking = [attention for attention in attentions if attention.looks_at_the_grid]
    if looking and isinstance(embed, PatchEmbed):
        embed.told, embed.prefix = SharedGrid(), model.num_prefix_tokens
        for attention in looking:
            attention.set_grid(embed.told)
    return model


class ViT(VisionTransformer):
    """timm's VisionTransformer, connected to attention modules that look at the grid or at a fixed number of tokens."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        connect(self)
        if isinstance(self.patch_embed, PatchEmbed):
            self.patch_embed.takes_none = True

    def _pos_embed(self, x: Tensor) -> Tensor:
        if x.shape[0]:
            return super()._pos_embed(x)
        return super()._pos_embed(x.new_zeros(1, *x.shape[1:]))[:0]  # timm's reshapes by what is left over


def arguments(op: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """timm's arguments of a VisionTransformer with this operator; images of any size that fits are taken."""
    attention = operator_class(op)
    options = take_operator_options(op, kwargs) | take_companions(kwargs)
    place = {
        "attn_layer": attention.with_options(**options) if options else attention,
        "embed_layer": PatchEmbed,
        "dynamic_img_size": True,
    }
    return {**place, **host_arguments(kwargs)}


def build(variant: str, op: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A registered ViT: timm's builder gives features_only, set_input_size, weights by tag, local-dir and hub."""
    return build_model_with_cfg(
        ViT,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
        **arguments(op, kwargs),
    )
