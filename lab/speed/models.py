"""Whole models: DeiT-S with each attention, and XCiT-S12 as timm has it, as SimA's authors have it,
and ours.
"""

from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
from timm.models.cait import ClassAttn
from timm.models.xcit import XCA
from torch import Tensor, nn

from lab.errors_of import deviation
from lab.speed.contract import bounded, check_layers
from lab.speed.pace import paced
from lab.speed.rivals import OPERATOR, Bare, Published, PublishedClass, share_weights
from lab.speed.work import DTYPES, Case, Work
from softless.models.create import create_model

DEIT, XCIT = "deit_small_patch16_224", "xcit_small_12_p16_224"
# published beside ours: twelve layers of rounding
LOGITS = {torch.float32: 1e-4, torch.bfloat16: 4e-2}


def _works(
    host: str, heads: int, prefix: int, sizes: tuple[tuple[int, int], ...]
) -> tuple[Work, ...]:
    """(pixels, batch) of a model with patches of 16 pixels, in each dtype."""
    return tuple(
        Work(dtype, batch, (pixels // 16) ** 2 + prefix, heads=heads, pixels=pixels, host=host)
        for dtype in DTYPES
        for pixels, batch in sizes
    )


DEIT_WORKS = _works(
    DEIT, 6, 1, ((112, 1), (224, 1), (224, 8), (384, 1), (512, 1), (768, 1), (1536, 1))
)
XCIT_WORKS = _works(XCIT, 8, 0, ((224, 1), (224, 8), (768, 1), (1536, 1)))


def measure_deit(work: Work, seconds: float) -> Case:
    """A ViT of timm: bare, ours, published, timm's own fused softmax."""
    assert work.host is not None
    size: dict[str, Any] = {"img_size": work.pixels, "dynamic_img_size": True}
    models = {
        "bare": timm.create_model(work.host, attn_layer=Bare, **size),
        "sima": create_model(work.host, op="sima", **size),
        "published": timm.create_model(work.host, attn_layer=Published, **size),
        "softmax": timm.create_model(work.host, **size),
    }
    return timed(work, models, lambda model: [block.attn for block in model.blocks], seconds)


def measure_xcit(work: Work, seconds: float) -> Case:
    """An XCiT: ours, published (timm's, with SimA in its two places), timm's own XCA."""
    assert work.host is not None
    models = {
        "published": with_published(timm.create_model(work.host)),
        "sima": create_model(work.host, op="sima"),
        "xca": timm.create_model(work.host),
    }
    return timed(work, models, lambda model: [block.attn for block in model.blocks], seconds)


def with_published(model: Any) -> Any:
    """timm's XCiT with the published attention in place of XCA and of class attention; every other
    part is timm's.
    """
    for block in [*model.blocks, *model.cls_attn_blocks]:
        old = block.attn
        assert isinstance(old, XCA | ClassAttn)
        published_class = Published if isinstance(old, XCA) else PublishedClass
        block.attn = published_class(
            old.proj.in_features, old.num_heads, qkv_bias=old.proj.bias is not None
        )
        # as timm begins; beside a bias, in bfloat16 the attention of many tokens could not be
        # checked
        nn.init.zeros_(block.attn.proj.bias)
    return model


def timed(
    work: Work, models: Mapping[str, Any], layers: Callable[[Any], list[nn.Module]], seconds: float
) -> Case:
    """Give the models the first one's weights, check their first and last attention and the logits,
    then time them in turns.
    """
    models = {name: model.eval() for name, model in models.items()}
    first = next(iter(models.values()))
    for name, model in models.items():
        missing = share_weights(first, model)
        assert OPERATOR.get(name) != "sima" or not missing, (
            f"{name} has no weights for {missing[:3]}"
        )
        model.to(work.kind)
    pixels = work.pixels or 0
    images = torch.rand(
        work.batch, 3, pixels, pixels, generator=torch.Generator().manual_seed(3)
    ).to(work.kind)
    checked = {
        name: check_layers(
            name, [layers(model)[0], layers(model)[-1]], OPERATOR.get(name), model, images, work
        )
        for name, model in models.items()
    }
    calls = {name: _call(model, images) for name, model in models.items()}
    apart = deviation(calls["sima"](), calls["published"]().double()).frobenius
    bounded("sima", apart, work, LOGITS[work.kind], "logits beside those of 'published'")
    errors, paths = (
        {name: error_and_path[i] for name, error_and_path in checked.items()} for i in (0, 1)
    )
    return Case(work, errors, paths, paced(calls, seconds))  # type: ignore[arg-type]


def _call(model: nn.Module, images: Tensor) -> Callable[[], Any]:
    def call() -> Any:
        with torch.inference_mode():
            return model(images)

    return call
