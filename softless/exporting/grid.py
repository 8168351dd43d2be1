"""On which grid of pixels a model takes images, and which models take only the size they were
recorded with.
"""

from typing import Any

from torch import nn

from softless.errors import UsageError
from softless.layers.attention import Attention
from softless.layers.conv_attention import ConvAttention
from softless.models.hosts import host_of

ONE_SIZE = "pyramid"  # the host whose windows lie on a grid of one size
ONE_NUMBER = "linformer"  # the operator that learns a row for each token


def grid_step(model: nn.Module) -> int:
    """Pixels that both sides of an image are multiples of: a patch of the coarsest stage."""
    info: Any = getattr(model, "feature_info", None)
    if not info:
        return 1
    stages = info if isinstance(info, list | tuple) else info.get_dicts()
    return max(int(stage["reduction"]) for stage in stages)


def free_step(model: nn.Module) -> int:
    """The same for a graph of any size, of which both sides are a multiple of this: twice as many
    where keys are read at every other patch.
    """
    strided = any(isinstance(module, ConvAttention) for module in model.modules())
    return grid_step(model) * (2 if strided else 1)


def check_size(model: nn.Module, size: tuple[int, int], name: str) -> None:
    """Whether an image of this height and width lies on the grid.

    Raises:
        UsageError: it does not; the nearest size that does is named.
    """
    step = grid_step(model)
    height, width = size
    if height < 1 or width < 1 or height % step or width % step:
        near = tuple(max(step, round(side / step) * step) for side in size)
        raise UsageError(
            f"--size {height} {width}: {name} takes sides that are multiples of {step} pixels, "
            f"for example --size {near[0]} {near[1]}"
        )


def check_any_size(model: nn.Module, name: str) -> None:
    """Whether one graph of a model answers images of any size.

    Raises:
        UsageError: it does not, and why.
    """
    host = host_of(model)
    if host is not None and host.name == ONE_SIZE:
        raise UsageError(
            f"{name} is a SOFT pyramid, whose windows lie on the grid of one size: give --size in "
            "place of --dynamic size, one file for each size"
        )
    operators = {module.op.name for module in model.modules() if isinstance(module, Attention)}
    if ONE_NUMBER in operators:
        raise UsageError(
            f"{name} attends by {ONE_NUMBER}, which learns a row for each token of one size: give "
            "--size in place of --dynamic size"
        )
