"""How an image becomes a tensor for a file, as what is kept of the run says it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torchvision import transforms as tv
from torchvision.transforms.functional import pil_to_tensor

from softless.data.pictures import Picture, tensor_of
from softless.data.transforms import Normalised, Pipeline, eval_transform, plain_transform
from softless.experiment.groups import DENSE

OF_PIXELS = (tv.Normalize, tv.ToTensor, Normalised)


def prepared_as(best: Mapping[str, Any]) -> Pipeline:
    """image -> (C, H, W), as best.json says that images are prepared in evaluation: those of a
    detector or segmenter whole.
    """
    transform = plain_transform if best.get("task") in DENSE else eval_transform
    return transform(
        best["image_size"],
        best["crop_pct"],
        best["interpolation"],
        best["mean"],
        best["std"],
        best["in_chans"],
        deep=best.get("range") is not None,
    )


def as_bytes(pipeline: Pipeline) -> Pipeline:
    """The same framing, and bytes (C, H, W) in place of normalised numbers."""
    steps = [
        step
        for step in pipeline.transforms
        if not isinstance(step, OF_PIXELS) and type(step).__name__ != "MaybeToTensor"
    ]
    return Pipeline([*steps, in_channels], [], fixed=True)


def in_channels(picture: Picture) -> Tensor:
    """A picture of bytes as (C, h, w) uint8."""
    return tensor_of(picture) if isinstance(picture, np.ndarray) else pil_to_tensor(picture)
