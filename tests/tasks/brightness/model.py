"""A host and two layers that say how bright an image is."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from softless.models.create import create_model


class BrightnessModel(nn.Module):
    """Images (B, C, H, W) to their brightness (B,)."""

    def __init__(self, architecture: str, model_args: Mapping[str, Any], width: int) -> None:
        super().__init__()
        self.host = create_model(architecture, **{**model_args, "num_classes": width})
        self.head = nn.Linear(width, 1)

    def forward(self, images: Tensor) -> Tensor:
        brightness: Tensor = self.head(self.host(images)).squeeze(1)
        return brightness


WITH_HEAD = BrightnessModel
