"""Segmenters and detectors: their host attends, and what stands on its maps stays as it is.

The refit walks the part that makes the maps (`models.features.Features`), on images that are framed
as the model frames them. A distillation compares answers as vectors whose cosine is a mean:
    segmenter   sqrt(p) of each pixel's classes: the cosine is the mean over the pixels of the
                Bhattacharyya coefficient sum_c sqrt(p_c q_c), so 2 - 2 cos is twice the mean
                squared Hellinger distance
    detector    its host's four maps, each divided by the root of its size
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from softless.convert.rehost import features_of
from softless.errors import UsageError
from softless.models.features import Features
from softless.models.scale import training_scale
from softless.modes import in_evaluation
from softless.recovery.chunks import Chunks

CHUNK = 8  # images that pass at once: their grids are large


def features_in(model: nn.Module) -> Features | None:
    """The part of a segmenter or a detector that makes its maps; None of any other model."""
    return features_of(model) if hasattr(model, "framed") else None


def answers_pixels(model: nn.Module) -> bool:
    """Whether a model of maps answers each pixel, as a segmenter does."""
    return features_in(model) is not None and hasattr(model, "decode")


def fitted_part(model: nn.Module) -> nn.Module:
    """The part of a model whose blocks are walked."""
    features = features_in(model)
    return model if features is None else features


@dataclass(frozen=True)
class Framed(Chunks):
    """Chunks (b, C, h, w) as the host of a model of maps sees them."""

    model: nn.Module
    chunks: Sequence[Tensor]

    def __len__(self) -> int:
        return len(self.chunks)

    def made(self, index: int) -> Tensor:
        return framed(self.model, self.chunks[index])


def framed(model: nn.Module, images: Tensor) -> Tensor:
    """Images (n, C, h, w) as the host of a model of maps sees them in evaluation."""
    network: Any = model
    with in_evaluation(model), torch.no_grad():
        answer: Tensor = network.framed(images.to(next(model.parameters())))
    return answer


class AnswerVectors(nn.Module):
    """Images (B, C, h, w) to vectors (B, D) that a distillation compares by their cosine.

    Args:
        model: a segmenter or a detector; it is moved itself.
    """

    num_classes = 0

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.pretrained_cfg = getattr(model, "pretrained_cfg", {})

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, h, w), sides multiples of what the host takes, to (B, D)."""
        network: Any = self.model
        if answers_pixels(self.model):
            logits: Tensor = network(images)
            return (logits.float().log_softmax(1) / 2).exp().flatten(1)
        maps = [each.float().flatten(1) for each in network.features(images)]
        return torch.cat([each / math.sqrt(each.shape[1]) for each in maps], 1)


def tile_size(model: nn.Module) -> tuple[int, int] | None:
    """Height and width of the tiles that images of several sizes are cut into for a segmenter or a
    detector: its training size. None for any other model.

    Raises:
        UsageError: the model does not know it.
    """
    if features_in(model) is None:
        return None
    scale = training_scale(model)
    if scale is None:
        raise UsageError(
            f"this {type(model).__name__} does not know at which size it was trained, and images "
            "of a folder have several: give tensors (n, C, h, w) of one size"
        )
    return scale.height, scale.width


def tile(image: Tensor, size: tuple[int, int], key: int) -> Tensor:
    """A crop (C, height, width) of an image (C, h, w), at a place drawn from a key; a smaller image
    is filled up at the right and below.
    """
    height, width = size
    missing = (0, max(width - image.shape[2], 0), 0, max(height - image.shape[1], 0))
    image = nn.functional.pad(image, missing)
    generator = torch.Generator().manual_seed(key)
    top, start = (
        int(torch.randint(longer - side + 1, (1,), generator=generator))
        for longer, side in zip(image.shape[1:], size, strict=True)
    )
    return image[:, top : top + height, start : start + width]
