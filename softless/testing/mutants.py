"""Deliberate faults in the operator, each of which the meters must see: that they pass says
something only then.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from softless.attention.record import Backend, Bounds, Operator
from softless.testing.faults import Fault, measured
from softless.testing.values import masked, neighbours, values

Form = Callable[..., Tensor]


def _wrapped(form: Form) -> dict[str, Form]:
    def one_percent(q: Tensor, k: Tensor, v: Tensor, **extras: Any) -> Tensor:
        return form(q, k, v, **extras) * 1.01

    def all_zeros(q: Tensor, k: Tensor, v: Tensor, **extras: Any) -> Tensor:
        return torch.zeros_like(form(q, k, v, **extras))

    def heads_swapped(q: Tensor, k: Tensor, v: Tensor, **extras: Any) -> Tensor:
        return form(q, k, v.flip(1), **extras)

    def a_token_forgotten(q: Tensor, k: Tensor, v: Tensor, **extras: Any) -> Tensor:
        first = torch.ones(v.shape[2], 1, dtype=v.dtype)
        first[-1] = 0
        return form(q, k, v * first, **extras)

    def masks_ignored(q: Tensor, k: Tensor, v: Tensor, **extras: Any) -> Tensor:
        return form(q, k, v, **{**extras, "mask": None, "query_mask": None})

    def mates_mixed(q: Tensor, k: Tensor, v: Tensor, **extras: Any) -> Tensor:
        return form(q, k, v, **extras) * (1 + 1e-6 * q.shape[0])

    return {
        fault.__name__: fault
        for fault in (
            one_percent,
            all_zeros,
            heads_swapped,
            a_token_forgotten,
            masks_ignored,
            mates_mixed,
        )
    }


METERS = {"masks_ignored": (masked,), "mates_mixed": (neighbours,)}


def mutants(op: Operator) -> Iterator[Fault]:
    """Each fault in place of the first backend is seen by the meters of values, masks or
    neighbours.
    """
    eager = next(backend for backend in op.backends if backend.name == "eager")
    tolerance = {dtype: min(bar, 5e-3) for dtype, bar in eager.tolerance.items()}
    for name, form in _wrapped(eager.fn).items():
        broken = replace(op, own=(Backend("eager", form, bounds=Bounds(tolerance=tolerance)),))
        if not any(measured("own", meter, broken) for meter in METERS.get(name, (values,))):
            yield Fault(
                "own",
                "an operator whose faults show",
                f"'{name}' passes every meter",
                "make the reference feel its tokens, heads and masks",
            )
