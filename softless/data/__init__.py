"""Labelled images from files and arrays, their transforms, and batches that any machine draws
alike.
"""

from softless.data.datasets import Splits, open_parts, open_splits
from softless.data.loader import (
    EpochLoader,
    EpochOrder,
    TransformedSamples,
    eval_loader,
    shared_loader,
    train_loader,
)
from softless.data.samples import ArraySamples, FileSamples, Samples
from softless.data.transforms import Pipeline, build_transforms, eval_transform

__all__ = [
    "ArraySamples",
    "EpochLoader",
    "EpochOrder",
    "FileSamples",
    "Pipeline",
    "Samples",
    "Splits",
    "TransformedSamples",
    "build_transforms",
    "eval_loader",
    "eval_transform",
    "open_parts",
    "open_splits",
    "shared_loader",
    "train_loader",
]
