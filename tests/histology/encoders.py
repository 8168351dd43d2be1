"""Small encoders of tiles, and slides to cut."""

from pathlib import Path

import torch
from torch import nn

import softless

MODEL = "sima_deit_tiny_patch16_224"


def small(classes: int = 3, seed: int = 4) -> nn.Module:
    """A model of one block for tiles of any size that divides by 16."""
    torch.manual_seed(seed)
    return softless.create_model(MODEL, depth=1, num_classes=classes).eval()


def saved(folder: Path, **options: int) -> Path:
    """The folder of such a model."""
    softless.save_weights(small(**options), folder)
    return folder
