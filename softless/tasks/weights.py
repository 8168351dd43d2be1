"""Weights of classes in a loss, as recipes ask for them."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from softless.errors import UsageError, unknown
from softless.words import few


def asked_weights(
    requested: str | Mapping[int | str, float],
    classes: Sequence[str],
    balanced: Callable[[], Tensor],
) -> Tensor | None:
    """The weights of the classes (K,) that a recipe asks for: none, balanced ones, or those that
    are named.

    Raises:
        UsageError: an unknown class.
    """
    if isinstance(requested, str):
        return balanced() if requested == "balanced" else None
    weights = torch.ones(len(classes))
    for name, weight in requested.items():
        if str(name) not in classes:
            raise unknown("class (class_weights)", str(name), classes)
        weights[classes.index(str(name))] = weight
    return weights


def class_weights(class_counts: Sequence[int] | np.ndarray) -> Tensor:
    """n / (K n_c) for each class, (K,) float32 of counts (K,): rare classes count more, the mean
    over the images stays 1.

    Raises:
        UsageError: a class without an image.
    """
    counts = torch.as_tensor(np.asarray(class_counts), dtype=torch.float64)
    if (counts == 0).any():
        raise UsageError(
            "balanced class weights need an image of every class; training images per class: "
            f"{counts.long().tolist()}"
        )
    return (counts.sum() / (len(counts) * counts)).float()


def label_weights(targets: np.ndarray, classes: Sequence[str]) -> Tensor:
    """Images without a label over those with it, for each label: (K,) float32 of targets (n, K).

    Raises:
        UsageError: a label that no image has.
    """
    positive = np.asarray(targets, dtype=np.float64).sum(0)
    none = [name for name, count in zip(classes, positive, strict=True) if not count]
    if none:
        raise UsageError(
            f"balanced class weights need an image with every label; none has {few(none)}"
        )
    return torch.as_tensor((len(targets) - positive) / positive).float()
