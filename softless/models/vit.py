"""ViT and DeiT as hosts: timm's own VisionTransformer with our attention in its `attn_layer=` place."""

from typing import Any

from timm.layers import PatchEmbed as TimmPatchEmbed
from timm.models import build_model_with_cfg
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from softless.layers import check_size, operator_class
from softless.models.options import host_arguments, take_operator_options


class PatchEmbed(TimmPatchEmbed):
    """timm's patch embedding, refusing an image that is not a whole number of patches in one sentence."""

    def forward(self, x: Tensor) -> Tensor:
        check_size(x.shape[-2], x.shape[-1], self.patch_size)
        return super().forward(x)


def arguments(op: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """timm's arguments of a VisionTransformer with this operator; images of any size that fits are taken."""
    attention = operator_class(op)
    options = take_operator_options(op, kwargs)
    place = {
        "attn_layer": attention.with_options(**options) if options else attention,
        "embed_layer": PatchEmbed,
        "dynamic_img_size": True,
    }
    return {**place, **host_arguments(kwargs)}


def build(variant: str, op: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A registered ViT: timm's builder gives features_only, set_input_size, weights by tag, local-dir and hub."""
    return build_model_with_cfg(
        VisionTransformer,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
        **arguments(op, kwargs),
    )
