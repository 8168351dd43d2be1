"""How many of Newton's steps SOFT's inverse takes in a graph, where no step can ask whether it was
the last: as many as the images of a calibration need.
"""

# B batch, C channels, H x W pixels

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from softless.attention.inverse import RESIDUAL, by_newton, watching_newton
from softless.errors import UsageError
from softless.layers.attention import Attention


@dataclass(frozen=True)
class Steps:
    """The steps of every matrix, and what they cost on the images that chose them.

    Args:
        steps: how many, the two behind the stop included.
        residual: the largest |I - A X| (Frobenius) that they left.
        distance: how far the answers lie from the model's own, over the largest of those.
        images: how many images chose them.
    """

    steps: int
    residual: float
    distance: float
    images: int

    def __str__(self) -> str:
        return (
            f"{self.steps} of Newton's steps, chosen on {self.images} images: |I - A X| up to "
            f"{self.residual:.1e}, answers {self.distance:.1e} from those of the model's own "
            "inverse"
        )


def inverts(model: nn.Module) -> bool:
    """Whether a model takes an inverse that a graph needs steps for: soft or softnorm, as they are
    by default.
    """
    return any(
        "inverse" in module.op.options and not module.op.filled(module.options).get("parity")
        for module in model.modules()
        if isinstance(module, Attention)
    )


@torch.no_grad()
def chosen(model: nn.Module, images: Tensor) -> Steps:
    """The steps that these images (B,C,H,W) need: the most of any matrix of any layer.

    Raises:
        UsageError: no image, or a matrix that so many steps do not invert in float32.
    """
    if not len(images):
        raise UsageError("images holds none: give those that calibrate Newton's steps, or None")
    own = _numbers(model(images))
    with watching_newton() as needed:
        model(images)
    with by_newton(needed.most) as reached:
        answers = _numbers(model(images))
    if not max(needed.residual, reached.residual) <= RESIDUAL:
        raise UsageError(
            f"on these images {reached.steps} of Newton's steps leave |I - A X| = "
            f"{max(needed.residual, reached.residual):.1e} of a kernel matrix in float32, and "
            f"{RESIDUAL:g} is the most that a file may have: its answers would not be the model's. "
            "Give images like those that it will see, or train with a larger ridge"
        )
    distance = float((answers - own).abs().max() / own.abs().max())
    return Steps(needed.most, reached.residual, distance, len(images))


def _numbers(answer: Any) -> Tensor:
    """All numbers of an answer, in a row."""
    return torch.cat([x.flatten().double() for x in tree_leaves(answer) if isinstance(x, Tensor)])
