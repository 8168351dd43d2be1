"""The table of hosts, and what a reader asks of a model that it did not build."""

from collections.abc import Mapping
from types import MappingProxyType

from torch import nn

from softless.models import cvt, soft, vit, xcit
from softless.models.host import Host

# by name; of hosts whose tensors both fit a state dict, the first one is meant
HOSTS: Mapping[str, Host] = MappingProxyType({
    record.name: record for record in (vit.HOST, xcit.HOST, cvt.HOST, soft.HOST)
})


def host_of(model: nn.Module) -> Host | None:
    """The host that a model is of, timm's or ours, plain or optimized; None for another model."""
    return next((host for host in HOSTS.values() if isinstance(model, host.models)), None)


def class_blocks(model: nn.Module) -> list[nn.Module] | None:
    """The blocks behind the layers in which the class token meets the patches, none where a model
    of maps has cut them off; None where it stands ahead of the patches.
    """
    host = host_of(model)
    record = None if host is None else host.class_blocks
    return None if record is None else list(getattr(model, record.attribute) or ())


def class_token_unread(model: nn.Module) -> bool:
    """Whether the blocks that alone read the class token have been cut off."""
    host = host_of(model)
    record = None if host is None else host.class_blocks
    return record is not None and getattr(model, record.attribute) is None


def tokens_ahead(model: nn.Module) -> int | None:
    """Tokens ahead of the patches where the attention over them is; None where the model does not
    tell.
    """
    host = host_of(model)
    if host is not None and host.class_blocks is not None:
        return 0
    number = getattr(model, "num_prefix_tokens", None)
    return None if number is None else int(number)
