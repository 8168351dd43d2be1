"""What options and keys must hold to; a whole call is checked in `call`.

Everything raises in one sentence.
"""

# B batch, H heads, N query tokens, M key tokens, D features of q and k, E features of v

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from softless.attention.record import Operator
from softless.errors import UsageError, unknown


def check_options(record: Operator, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, if the operator has them and takes these values.

    Raises:
        UsageError: an option the operator does not have, or a value outside its rule.
    """
    for name, value in options.items():
        if name not in record.options:
            raise unknown(f"option of operator '{record.name}'", name, record.options)
        if not record.options[name].takes(value):
            description = (
                f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            )
            raise UsageError(
                f"operator '{record.name}': {name}={description} is not "
                f"{record.options[name].values}"
            )
    return dict(options)


def keys_of(record: Operator, q: Tensor, k: Tensor | None, options: Mapping[str, Any]) -> Tensor:
    """The keys (B,H,M,D) of a call: q (B,H,N,D) where they are tied.

    Raises:
        UsageError: keys for an operator whose q and k are tied, or none for another.
    """
    tied = record.wants("tied_qk", options)
    if tied and k is not None:
        raise UsageError(f"operator '{record.name}' has tied q and k: pass k=None")
    if k is None and not tied:
        raise UsageError(f"operator '{record.name}' needs keys: pass k of shape (B, H, M, D)")
    return q if k is None else k
