"""Models that are to take images of several sizes: what timm's constructors call that."""

from collections.abc import Mapping
from typing import Any

import torch

from softless.models.create import create_model

ANY: tuple[dict[str, bool], ...] = (
    {"dynamic_img_size": True},
    {"strict_img_size": False},
    {},
)  # ViTs; Swin and its like; XCiT, pyramids


def any_size(architecture: str, args: Mapping[str, Any], pixels: int) -> dict[str, Any]:
    """The arguments of `create_model`, with `img_size` and what lets a model take other sizes too, where it has them.

    Found by trying, as constructors do not tell: convolutional networks have no `img_size`, XCiT has nothing but it.

    Raises:
        UsageError: no such model, or arguments that it does not have.
    """
    with torch.random.fork_rng(devices=[]):
        for more in ANY:
            given = {"img_size": pixels, **args, **more}
            if _is_taken(architecture, given):
                return given
    return dict(args)


def _is_taken(architecture: str, args: Mapping[str, Any]) -> bool:
    try:
        create_model(architecture, **args)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        return False
    return True
