"""Frozen features of images: what a model knows of them ahead of its head, or without one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from softless.data.loader import EpochLoader
from softless.errors import DivergedError
from softless.evaluation.evaluate import forward_all, gathered
from softless.evaluation.intervals import wilson
from softless.models.hosts import class_blocks

Reading: TypeAlias = Callable[[nn.Module, Tensor], Tensor]
LAST_BLOCKS = 4  # of a ViT, as DINO takes for ViT-S
LAST_PAIR = 2  # class-attention layers, and blocks, of an XCiT, as SimA takes


@dataclass(frozen=True)
class Probe:
    """What a classifier over frozen features answers on one split."""

    measure: str  # "knn" or "linear", of `experiment.measures`
    how: str  # its settings, for people
    predicted: np.ndarray  # (n,)
    targets: np.ndarray  # (n,)
    classes: tuple[str, ...]
    train_images: int
    width: int  # of the features

    @property
    def correct(self) -> np.ndarray:
        """(n,) bool."""
        return self.predicted == self.targets

    @property
    def accuracy(self) -> float:
        """The share of the images that are classified rightly, 0..1."""
        return float(self.correct.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy."""
        return wilson(int(self.correct.sum()), len(self.targets))

    @property
    def balanced_accuracy(self) -> float:
        """Mean over the classes that occur of the share of their images that are classified
        rightly.
        """
        return float(
            np.mean([
                self.correct[self.targets == label].mean() for label in np.unique(self.targets)
            ])
        )

    @property
    def commonest(self) -> float:
        """What always answering the class that is commonest among these images gets right."""
        return float(np.bincount(self.targets).max() / len(self.targets))

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the accuracy under the name of its measure, and everything but the answers."""
        return {
            self.measure: self.accuracy,
            "interval": list(self.interval),
            "balanced_accuracy": self.balanced_accuracy,
            "commonest": self.commonest,
            "chance": 1 / len(self.classes),
            "how": self.how,
            "width": self.width,
            "train_images": self.train_images,
            "images": len(self.targets),
            "classes": list(self.classes),
        }


def as_it_is(model: nn.Module, images: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, D): what a model without classes gives."""
    features: Tensor = model(images)
    return features


def output(model: nn.Module, images: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, D): what the head of a model would take, in a ViT or XCiT the class
    token. For k-NN, as in DINO.
    """
    host: Any = model
    features: Tensor = host.forward_head(host.forward_features(images), pre_logits=True)
    return features


def layers(model: nn.Module, images: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, D): features of the last layers, for a linear probe.

    XCiT: class tokens of the last two class-attention layers and means of the tokens of the last
    two blocks, 4 x width (SimA, arXiv:2206.08898, section 4.3). ViT with a class token: that of the
    last four blocks (DINO, arXiv:2104.14294, for ViT-S). All others: `output`. Each part is
    normalised by the model's last norm, as in DINO. A model with fewer layers gives those it has.
    """
    host: Any = model
    if (behind := class_blocks(model)) is not None:
        with _outputs([*host.blocks[-LAST_PAIR:], *behind[-LAST_PAIR:]]) as captured:
            host.forward_features(images)
        tokens = len(host.blocks[-LAST_PAIR:])
        means = [host.norm(part).mean(1) for part in captured[:tokens]]
        return torch.cat([*(host.norm(part)[:, 0] for part in captured[tokens:]), *means], dim=1)
    if getattr(host, "num_prefix_tokens", 0) and getattr(host, "cls_token", None) is not None:
        last = min(LAST_BLOCKS, len(host.blocks))
        pairs = host.forward_intermediates(
            images, indices=last, norm=True, return_prefix_tokens=True, intermediates_only=True
        )
        return torch.cat([prefix[:, 0] for _, prefix in pairs], dim=1)
    return output(model, images)


def extract(
    model: nn.Module,
    loader: EpochLoader,
    read: Reading = output,
    *,
    device: torch.device | None = None,
    amp: str = "none",
    label: str = "extracting features",
) -> tuple[Tensor, Tensor]:
    """Features (n, D) float32 and targets (n,) of what a loader yields, on the processor; with
    several ranks all get the whole.

    Raises:
        DivergedError: features that are not finite.
    """
    compute_device = device or next(model.parameters()).device
    features, targets = forward_all(
        _Reader(model, read), loader, len(loader.positions), compute_device, amp, label
    )
    features, targets = gathered(loader, features, targets)
    bad = int((~features.isfinite()).any(1).sum())
    if bad:
        raise DivergedError(
            f"the features of {bad} of {len(features)} images are not finite: the weights diverged"
        )
    return features, targets


class _Reader(nn.Module):
    """A model called through a reading of it, in the mode that the model is in."""

    def __init__(self, model: nn.Module, read: Reading) -> None:
        super().__init__()
        self.model, self.read = model, read
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        return self.read(self.model, images)


@contextmanager
def _outputs(modules: list[nn.Module]) -> Iterator[list[Tensor]]:
    """What these modules give, in the order in which they are run."""
    captured: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output: captured.append(output))
        for module in modules
    ]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()
