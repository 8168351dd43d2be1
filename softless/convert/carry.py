"""The weights of a model with one attention in the same host with another: every tensor by its
name, q and k as one where the operator ties them.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from softless.errors import UsageError
from softless.models.weights import as_here

TIED = re.compile(r"(.*\.)qv\.(weight|bias)")
LEARNED = ".learned."


def carried(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A state for a model, of the tensors that the same host with another attention has.

    A common projection of q and k is the mean of both, as `swap` makes it. An operator's own
    tensors are taken where the other operator has the same, and stay as they were drawn elsewhere.

    Args:
        state: of the other model.
        own: of the model that is to have them.

    Returns:
        The state, and the names of its tensors that no training has seen.

    Raises:
        UsageError: a tensor of the host is missing, of another shape, or has no place.
    """
    state, _ = as_here({**state}, None, own)
    used, unseen, filled = set[str](), list[str](), dict[str, Tensor]()
    for name, drawn in own.items():
        source = _source(name, state)
        value = None if source is None else _value(name, source, state)
        if source is not None and value is not None and value.shape == drawn.shape:
            used.add(source)
            filled[name] = value
        elif LEARNED in name:
            filled[name] = drawn
            unseen.append(name)
        elif value is None:
            raise UsageError(f"the weights have no {name}, which this model needs")
        else:
            raise UsageError(
                f"{name} is {tuple(value.shape)} in the weights and {tuple(drawn.shape)} in the "
                "model: build it as they were trained"
            )
    attentions = {name.rpartition(".learned.")[0] for name in own if LEARNED in name}
    attentions |= {name.rpartition(".proj.")[0] for name in own if name.endswith(".proj.weight")}
    foreign = [
        name
        for name in state
        if name not in used
        and LEARNED not in name
        and name.rpartition(".")[0] not in attentions
        and not name.endswith("num_batches_tracked")
    ]
    if foreign:
        raise UsageError(f"the weights have {foreign[0]}, for which this model has no place")
    return filled, tuple(unseen)


def _source(name: str, state: Mapping[str, Tensor]) -> str | None:
    """The name in the state of what fills a tensor."""
    names = [name]
    if LEARNED in name:  # as timm calls the temperature of XCA
        names.append(name.replace(LEARNED, "."))
    else:
        head, _, leaf = name.rpartition(".")
        names.append(f"{head}{LEARNED}{leaf}")
    if tied := TIED.fullmatch(name):
        names.append(f"{tied[1]}qkv.{tied[2]}")
    return next((candidate for candidate in names if candidate in state), None)


def _value(name: str, source: str, state: Mapping[str, Tensor]) -> Tensor:
    value = state[source]
    if TIED.fullmatch(name) and source != name:
        q, k, v = value.chunk(3)
        return torch.cat([(q + k) / 2, v])
    return value
