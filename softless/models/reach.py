"""Which models there are, and which take another attention."""

from functools import cache

import timm
import torch
from timm.models import is_model, model_entrypoint

from softless.attention.registry import get
from softless.errors import UsageError, nearest
from softless.layers.attention import Attention, operator_class
from softless.models.hosts import HOSTS
from softless.models.variants import BUILT_HERE, ENTRIES

# timm's modules whose models take attn_layer=
TIMM_MODULES = {module for host in HOSTS.values() for module in host.timm_modules}


def check_host(name: str, op: str | None) -> None:
    """Whether there are such a model and such an operator, and one has a place for the other.

    Raises:
        UsageError: there are not (nearest name offered), or it has none.
    """
    if op is not None:
        get(op)
    if name in ENTRIES:
        entry = ENTRIES[name]
        if entry.name != entry.variant.name and op not in {None, entry.op}:
            raise UsageError(
                f"'{name}' has operator '{entry.op}': for op='{op}' name the host, "
                f"'{entry.variant.name}'"
            )
        return
    if op is None:
        if name in BUILT_HERE and not is_model(name):
            raise UsageError(
                f"'{name}' is a host without an operator of its own: pass op=, for example "
                "op='soft'"
            )
        _known(name)
    elif name not in BUILT_HERE:
        _known(name)
        listed = f"Hosts: ViT and DeiT models of timm, and {', '.join(sorted(BUILT_HERE))}"
        if model_entrypoint(name).__module__.rsplit(".", 1)[-1] not in TIMM_MODULES:
            raise UsageError(f"'{name}' has no place for another attention. {listed}")
        if not _exchanges(name):
            raise UsageError(
                f"'{name}' has no place for another attention: its blocks compute it together "
                f"with their MLP, and would keep softmax. {listed}"
            )


@cache
def _exchanges(name: str) -> bool:
    """Whether a ViT of timm has blocks that take `attn_layer`: parallel ones compute attention
    themselves, and would keep softmax.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = timm.create_model(name, depth=1, attn_layer=operator_class("sima"))
    return any(isinstance(module, Attention) for module in model.modules())


def _known(name: str) -> None:
    if not is_model(name):
        near = nearest(name, [*ENTRIES, *timm.list_models()])
        raise UsageError(
            f"no model named '{name}'. {near}`softless list models` shows ours, "
            "timm.list_models() the hosts"
        )
