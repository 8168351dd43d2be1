"""How an image becomes bytes for a file that normalises them itself."""

import numpy as np
from torch import Tensor
from torchvision import transforms as tv
from torchvision.transforms.functional import pil_to_tensor

from softless.data.pictures import Picture, tensor_of
from softless.data.transforms import Normalised, Pipeline

OF_PIXELS = (tv.Normalize, tv.ToTensor, Normalised)


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
