"""One call of an operator: what came in, as one object that checks, choice and run hand on."""

# B batch, H heads, N query tokens, M key tokens, D features of q and k, E features of v

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softless.attention.record import Dims, Grid, Operator

HALF = (torch.float16, torch.bfloat16)


@dataclass
class Call:
    """A record and what it is called with: q (B,H,N,D), k (B,H,M,D), v (B,H,M,E), masks, and what
    `attend` takes besides.
    """

    record: Operator
    q: Tensor
    k: Tensor
    v: Tensor
    options: Mapping[str, Any]  # those that were given
    mask: Tensor | None = None
    query_mask: Tensor | None = None
    grid: Grid | None = None
    learned: Mapping[str, Tensor] | None = None
    out_dtype: torch.dtype | None = None
    backend: str = "auto"

    @property
    def dims(self) -> Dims:
        """The sizes of the call, with every option."""
        return Dims.of(self.q, self.k, self.v, self.grid, self.record.filled(self.options))


def autocast_off(device_type: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast would put the sums back into half precision (on a CPU the norms too)."""
    on = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if on else contextlib.nullcontext()


def widen(value: Any) -> Any:
    """A tensor of half precision, or those in a mapping, in float32; anything else as it is."""
    if isinstance(value, Mapping):
        return {name: widen(inner) for name, inner in value.items()}
    return value.float() if isinstance(value, Tensor) and value.dtype in HALF else value
