"""Small hosts on whose answers every branch counts, for the tests of streaming."""

from typing import Any

import timm
import torch
from torch import Tensor, nn

import softless
from softless import OPERATORS
from tests.models.lively import lively

SIZE = (160, 176)  # 10 x 11 patches: more tokens than any operator has landmarks
STREAMED = [name for name, record in OPERATORS.items() if record.streaming is not None]
# kernels of random tokens far from their bottleneck tokens are 0
GENTLE: dict[str, dict[str, Any]] = {
    "soft": {"sampling": "pool"},
    "softnorm": {"sampling": "pool"},
}
VIT, XCIT = "deit_tiny_patch16_224", "xcit_nano_12_p16_224"


def image(size: tuple[int, int] = SIZE, seed: int = 1) -> Tensor:
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed))


def vit(op: str = "sima", **arguments: Any) -> nn.Module:
    made = {"depth": 2, "num_classes": 7, "img_size": SIZE, **GENTLE.get(op, {}), **arguments}
    return lively(softless.create_model(VIT, op=op, **made), image())


def xcit(op: str = "sima", **arguments: Any) -> nn.Module:
    return lively(
        softless.create_model(
            XCIT, op=op, **{"depth": 2, "num_classes": 7, **GENTLE.get(op, {}), **arguments}
        ),
        image(),
    )


def swapped(name: str, op: str = "sima", **arguments: Any) -> nn.Module:
    model = timm.create_model(name, num_classes=7, depth=2, **arguments)
    softless.swap(model, op=op, **GENTLE.get(op, {}))
    return lively(model, image())


@torch.no_grad()
def answer(model: nn.Module, x: Tensor) -> Tensor:
    found = model(x)
    assert isinstance(found, Tensor)
    return found


def apart(found: Tensor, wanted: Tensor) -> float:
    """Relative to the size of what is wanted."""
    assert found.shape == wanted.shape
    return float((found - wanted).norm() / wanted.norm())
