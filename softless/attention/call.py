"""One call of an operator: what came in, as one object that choice and run hand on, and whether it
fits together.
"""

# B batch, H heads, N query tokens, M key tokens, D features of q and k, E features of v

import contextlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softless.attention.learned import given_or_starting
from softless.attention.record import Dims, Grid, Operator
from softless.attention.recording import recording
from softless.attention.transforms import transformed
from softless.errors import UsageError

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


def check_call(call: Call) -> None:
    """Shapes, dtypes, masks and the number of grid cells.

    Raises:
        UsageError: something does not fit; the shapes are repeated.
    """
    record, q, k, v = call.record, call.q, call.k, call.v
    if not (q.ndim == k.ndim == v.ndim == 4):
        raise UsageError(
            f"{_shapes(call)}: all three must have four dimensions (batch, heads, tokens, features)"
        )
    if q.shape[:2] != k.shape[:2] or k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3]:
        raise UsageError(
            f"{_shapes(call)}: batch and heads must agree, k and v in tokens, q and k in features"
        )
    if not record.cross and q.shape[2] != k.shape[2]:
        raise UsageError(f"{_shapes(call)}: operator '{record.name}' needs as many queries as keys")
    if not (q.dtype == k.dtype == v.dtype) or not q.is_floating_point():
        raise UsageError(
            f"q {q.dtype}, k {k.dtype}, v {v.dtype}: all three must have one floating-point dtype"
        )
    if call.mask is not None or call.query_mask is not None:
        _check_masks(call)
    if isinstance(pairs := call.options.get("pairwise"), Tensor):
        _check_pairs(call, pairs)
    if "grid" in record.needs:
        _check_cells(call)


def _check_pairs(call: Call, pairs: Tensor) -> None:
    full_shape = (*call.q.shape[:3], call.k.shape[2])
    fits = 2 <= pairs.ndim <= len(full_shape)
    if not fits or any(
        n not in (1, m) for n, m in zip(pairs.shape[::-1], full_shape[::-1], strict=False)
    ):
        raise UsageError(
            f"operator '{call.record.name}': pairwise={pairs.dtype} {tuple(pairs.shape)} does not "
            "broadcast to "
            f"(batch, heads, queries, keys) = {full_shape}: give it the last two, three or four of "
            "these, 1 where all share it"
        )


def _check_masks(call: Call) -> None:
    batch = call.q.shape[0]
    for name, token_mask, length in (
        ("mask", call.mask, call.k.shape[2]),
        ("query_mask", call.query_mask, call.q.shape[2]),
    ):
        if token_mask is not None and (
            token_mask.dtype != torch.bool or tuple(token_mask.shape) != (batch, length)
        ):
            raise UsageError(
                f"{name} is {token_mask.dtype} {tuple(token_mask.shape)}: it must be torch.bool "
                f"of shape ({batch}, {length}), "
                "True where a token counts"
            )
    looks = not (torch.compiler.is_compiling() or recording() or transformed())
    mask = call.mask
    if looks and mask is not None and mask.device.type == "cpu" and not mask.any(-1).all():
        warnings.warn("a sample has all its tokens masked: its output is 0", stacklevel=6)


def _shapes(call: Call) -> str:
    return f"q {tuple(call.q.shape)}, k {tuple(call.k.shape)}, v {tuple(call.v.shape)}"


def _check_cells(call: Call) -> None:
    record, tokens = call.record, call.k.shape[2]
    if record.wants("grid", call.options) and (grid := check_grid(record, call.grid, call.options)):
        prefix, height, width = grid
        if prefix + height * width != tokens:
            raise UsageError(
                f"operator '{record.name}': grid={grid} has {prefix} + {height} x {width} = "
                f"{prefix + height * width} "
                f"tokens, and there are {tokens}: pass the grid that these tokens stand on"
            )


def extras_of(call: Call) -> dict[str, Any]:
    """What the operator takes besides q, k, v and the masks: every option, its own tensors, the
    grid.

    Raises:
        UsageError: tensors or a grid that it does not have, or that are missing.
    """
    record = call.record
    extras = record.filled(call.options)
    if record.learned or call.learned:
        own = given_or_starting(record, call.learned, extras, call.k, call.v)
        if record.learned:
            extras["learned"] = own
    if "grid" in record.needs:
        extras["grid"] = check_grid(record, call.grid, call.options)
    return extras


def check_grid(record: Operator, grid: Grid | None, options: Mapping[str, Any]) -> Grid | None:
    """The grid, if it is one; None where these options need none.

    Raises:
        UsageError: no grid where the operator needs it, or one that is none.
    """
    if not record.wants("grid", options):
        return grid
    if grid is None:
        raise UsageError(
            f"operator '{record.name}' needs the grid of the tokens: pass grid=(prefix_tokens, "
            "height, width)"
        )
    if len(grid) != 3 or grid[0] < 0 or min(grid[1:]) < 1:
        raise UsageError(
            f"grid={grid!r}: it must be (prefix_tokens, height, width), for example (1, 14, 14)"
        )
    return grid
