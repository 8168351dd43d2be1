"""How a folder of images is answered."""

from dataclasses import dataclass
from pathlib import Path

import torch

from softless.evaluation.evaluate import precision_of


@dataclass(frozen=True)
class Setting:
    """Where, how many images at once, and in what precision."""

    device: torch.device
    batch_size: int  # of classifiers; whole images run one by one
    amp: str  # "none", "bfloat16" or "float16"
    workers: int = 0  # processes that load images of a classifier
    annotations: str | Path | None = None  # COCO's file whose ids a detector's answers keep

    @property
    def precision(self) -> str:
        """float32, bfloat16 or float16."""
        return precision_of(self.amp)
