"""How a model of `timm.create_model` was made, as far as it tells: its name and its sizes."""

from typing import Any

import timm
from torch import nn

from softless.models.arguments import takes
from softless.models.construction import Construction


def inferred_construction(model: nn.Module) -> Construction | None:
    """A name of timm and arguments that may have made a model; None where it has no such name.

    Only a comparison shows whether they make the same one.
    """
    about: Any = getattr(model, "pretrained_cfg", None) or {}
    name = about.get("architecture")
    if not isinstance(name, str) or not timm.is_model(name):
        return None
    pool = getattr(model, "global_pool", None)
    sizes = {
        "num_classes": getattr(model, "num_classes", None),
        "in_chans": _channels(model, about.get("first_conv")),
        "img_size": getattr(getattr(model, "patch_embed", None), "img_size", None),
        # of a ResNet it is the module that pools
        "global_pool": pool if isinstance(pool, str) else None,
        "dynamic_img_size": getattr(model, "dynamic_img_size", None),
    }
    arguments = {
        argument: value
        for argument, value in sizes.items()
        if value is not None and takes(name, None, argument)
    }
    return Construction(name, None, arguments)


def _channels(model: nn.Module, first_conv: Any) -> int | None:
    """Channels of the images, as the first convolution takes them."""
    paths = [first_conv] if isinstance(first_conv, str) else list(first_conv or ())
    modules = dict(model.named_modules())
    channels = [getattr(modules.get(path), "in_channels", None) for path in paths]
    return next((number for number in channels if isinstance(number, int)), None)
