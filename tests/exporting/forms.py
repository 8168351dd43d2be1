"""What the tests of edge forms share: a small ViT, images, and how far a form is from its model."""

import copy
from typing import Any

import torch
from timm.layers import Attention as TimmAttention
from torch import Tensor, nn

import softless
from softless.models.create import create_model
from tests.exporting.alive import alive
from tests.models.lively import zeroed

BAR = 1e-5  # of the largest logit, in float32
MOVES = 1e-2  # by so much, at least, the logits move where attention is switched off
SMALL = {
    "depth": 2,
    "embed_dim": 48,
    "num_heads": 4,
    "num_classes": 10,
    "img_size": (64, 96),
}


def vit(op: str = "sima", **given: Any) -> Any:
    return create_model("deit_tiny_patch16_224", op=op, **{**SMALL, **given})


def images(height: int = 64, width: int = 96, number: int = 3, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(number, channels, height, width, generator=generator)


@torch.no_grad()
def apart(module: nn.Module, model: nn.Module, x: Tensor) -> float:
    """How far answers lie from those of a model, over the largest of those."""
    expected: Tensor = copy.deepcopy(model).eval()(x)
    answer: Tensor = module(x)
    assert answer.shape == expected.shape
    return float((answer - expected).abs().max() / expected.abs().max())


def assert_parity(model: nn.Module, x: Tensor, **given: Any) -> Any:
    """The form of a model is the model, for any number of images and for one; and what switches
    attention off is not.
    """
    model = alive(model, x)
    size = (x.shape[-2], x.shape[-1])
    module = softless.edge(model, size, **given)
    assert apart(module, model, x) <= BAR, module.form
    single = softless.edge(model, size, batch=1, **given)
    assert apart(single, model, x[:1]) <= BAR, single.form
    assert apart(softless.edge(without_attention(model), size, **given), model, x) > MOVES
    return module


def without_attention(model: nn.Module) -> nn.Module:
    """The control: a copy whose attention, ours or timm's, adds its bias alone."""
    model = zeroed(copy.deepcopy(model))
    for module in model.modules():
        if isinstance(module, TimmAttention):
            module.proj.weight.data.zero_()
    return model
