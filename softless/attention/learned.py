"""An operator's own tensors at their start: what a new module holds, and what `attend` takes where
none are given.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from softless.attention.options import Learned, Options, Sizes
from softless.attention.record import Operator
from softless.errors import UsageError


def starting(
    record: Operator, sizes: Sizes, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Each tensor the operator has under these options, float64 on the CPU; `generator` draws the
    random ones, torch's own by default. Their shapes are those that the record claims.
    """
    claims = record.own_tensors(sizes.options)
    return {name: drawn(claim, sizes, generator) for name, claim in claims.items()}


def drawn(claim: Learned, sizes: Sizes, generator: torch.Generator | None = None) -> Tensor:
    """One tensor at its start: float64, of the shape that its claim makes of the sizes."""
    shape = claim.shape(sizes)
    if callable(claim.start):
        return claim.start(shape, generator).double()
    return torch.full(shape, claim.start, dtype=torch.float64)


def given_or_starting(
    record: Operator, learned: Mapping[str, Tensor] | None, options: Options, k: Tensor, v: Tensor
) -> dict[str, Tensor]:
    """The tensors passed by a caller, or those of a new module with random ones drawn from seed 0,
    in k's dtype and place. Here k is (B,H,M,D), v (B,H,M,E).

    Raises:
        UsageError: some tensors are missing, or do not belong to the operator.
    """
    own = record.own_tensors(options)
    if learned is None and own:
        sizes = Sizes(k.shape[1], k.shape[3], record.filled(options), k.shape[2], v.shape[3])
        tensors = starting(record, sizes, torch.Generator().manual_seed(0))
        return {name: x.to(k.device, k.dtype) for name, x in tensors.items()}
    if set(learned or {}) != set(own):
        raise UsageError(
            f"operator '{record.name}' has learned tensors: {', '.join(own) or 'none'}; got "
            f"{', '.join(sorted(learned or {})) or 'none'}"
        )
    return dict(learned or {})
