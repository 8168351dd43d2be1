"""Models that are to take images of several sizes: what timm's constructors call that, and SimA's
scale at the size of the training.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from softless.errors import UsageError
from softless.models.create import UnknownOption, create_model
from softless.models.scale import OPTION, TRAINING, queries
from softless.models.sides import sides

_log = logging.getLogger("softless.models")

# ViTs; Swin and its like; XCiT, pyramids
ANY: tuple[dict[str, bool], ...] = (
    {"dynamic_img_size": True},
    {"strict_img_size": False},
    {},
)


def any_size(architecture: str, args: Mapping[str, Any], pixels: int) -> dict[str, Any]:
    """The arguments of `create_model`, with `img_size` and what lets a model take other sizes too,
    where it has them.

    Found by trying, as constructors do not tell: convolutional networks have no `img_size`, XCiT
    has nothing but it.

    Raises:
        UsageError: no such model, or arguments that it does not have.
    """
    with torch.random.fork_rng(devices=[]):
        for option in ANY:
            arguments = {"img_size": pixels, **args, **option}
            if _is_taken(architecture, arguments):
                return arguments
    return dict(args)


def _is_taken(architecture: str, args: Mapping[str, Any]) -> bool:
    try:
        create_model(architecture, **args)
    except UnknownOption:
        return False
    return True


def with_training_scale(
    architecture: str, args: Mapping[str, Any], pixels: int | Sequence[int]
) -> dict[str, Any]:
    """The arguments of `create_model`, a token_scale="training" among them as the number of tokens
    of images of so many pixels (of a side, or height and width).

    At that size the model is the paper's, and away from it the attention's branch keeps its size.
    An operator without token_scale has none to keep: it is left out, and that is said.

    Raises:
        UsageError: a host whose stages see different numbers of tokens.
    """
    if args.get(OPTION) != TRAINING:
        return dict(args)
    bare = {name: value for name, value in args.items() if name != OPTION}
    with torch.random.fork_rng(devices=[]):
        model = create_model(architecture, **bare)
    counted = queries(model, *sides(pixels))
    numbers = {number for module, number in counted.items() if OPTION in module.op.options}  # type: ignore[union-attr, operator]
    if len(numbers) > 1:
        raise UsageError(
            f"token_scale=training: the stages of '{architecture}' see "
            f"{', '.join(map(str, sorted(numbers)))} tokens, and one number has "
            "to hold for all; set model.args.token_scale=tokens, or none"
        )
    if not numbers:
        _log.warning(
            "'%s' has no token_scale with this attention: token_scale=training is left out",
            architecture,
        )
        return bare
    return {**bare, OPTION: numbers.pop()}
