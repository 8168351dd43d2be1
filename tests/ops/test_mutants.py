"""Deliberate faults in SimA, each of which the bars must catch at every number of tokens
(reliability.md D2).
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.ops.bars import failed
from tests.ops.draw import attend

LENGTHS = (2, 49, 196, 4096)


def sima(q: Tensor, k: Tensor, v: Tensor, **arguments: object) -> Tensor:
    return attend(q, k, v, op="sima", **arguments)


def all_zeros(q: Tensor, k: Tensor, v: Tensor, **arguments: object) -> Tensor:
    return torch.zeros_like(sima(q, k, v, **arguments))


def one_percent(q: Tensor, k: Tensor, v: Tensor, **arguments: object) -> Tensor:
    return sima(q, k, v, **arguments) * 1.01


def head_swapped(q: Tensor, k: Tensor, v: Tensor, **arguments: object) -> Tensor:
    return sima(q, k.flip(1), v, **arguments)


def sides_swapped(q: Tensor, k: Tensor, v: Tensor, **arguments: object) -> Tensor:
    return sima(k, q, v, **arguments)


def mask_dropped(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    **arguments: object,
) -> Tensor:
    o = sima(q, k, v, **arguments)
    return o if query_mask is None else o.masked_fill(~query_mask[:, None, :, None], 0)


def key_mask_dropped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **arguments: object
) -> Tensor:
    return sima(q, k, v, **arguments)


def _by_hand(
    q: Tensor, k: Tensor, v: Tensor, norm: Callable[[Tensor], Tensor], **arguments: object
) -> Tensor:
    mask = arguments.get("mask")
    if isinstance(mask, Tensor):
        q, k, v = (x * mask[:, None, :, None] for x in (q, k, v))
    out = arguments["out_dtype"]
    assert isinstance(out, torch.dtype)
    wide = [x.float() for x in (q, k, v)]
    return ((wide[0] / norm(q)) @ ((wide[1] / norm(k)).mT @ wide[2])).to(out)


def eps_forgotten(q: Tensor, k: Tensor, v: Tensor, **arguments: object) -> Tensor:
    return _by_hand(q, k, v, lambda x: x.float().abs().sum(-2, keepdim=True), **arguments)


def norm_in_half(q: Tensor, k: Tensor, v: Tensor, **arguments: object) -> Tensor:
    return _by_hand(
        q, k, v, lambda x: x.abs().sum(-2, keepdim=True).float().clamp_min(1e-12), **arguments
    )


def published(q: Tensor, k: Tensor, v: Tensor, **arguments: object) -> Tensor:
    """The official code's form in the dtype of its inputs: what SimA users run today."""
    q, k = (torch.nn.functional.normalize(x, p=1.0, dim=-2) for x in (q, k))
    return (q @ (k.mT @ v)).to(arguments["out_dtype"])  # type: ignore[call-overload]


MUTANTS = (
    all_zeros,
    one_percent,
    head_swapped,
    sides_swapped,
    mask_dropped,
    key_mask_dropped,
    eps_forgotten,
    norm_in_half,
    published,
)


@pytest.mark.parametrize("tokens", [1, *LENGTHS])
def test_the_operator_passes(tokens: int) -> None:
    assert failed(sima, tokens) == []


@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_each_fault_is_caught(mutant: Callable[..., Tensor], tokens: int) -> None:
    assert failed(mutant, tokens), f"{mutant.__name__} passes every bar at {tokens} tokens"
