"""How a call goes: by which backend, in which precision.

The choice is plain Python over device, dtype and shape.
"""

# B batch, H heads, N query tokens, D features of a head

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softless.attention.call import HALF, Call, check_call, extras_of, widen
from softless.attention.checks import check_options, keys_of
from softless.attention.choice import asked_for
from softless.attention.kernels import native
from softless.attention.packed import unpacked
from softless.attention.record import Backend, Grid, Operator
from softless.attention.registry import get
from softless.attention.streaming import no_reason
from softless.attention.transforms import transformed
from softless.errors import BackendRefused, PrecisionError, UsageError


@dataclass(frozen=True)
class Plan:
    """How a call goes: by which backend, with what beside q, k, v and masks, to which dtype, and
    whether in float32.
    """

    record: Operator
    backend: Backend
    extras: dict[str, Any]
    out_dtype: torch.dtype
    widened: bool


def planned(call: Call) -> Plan:
    """Checks a call and chooses its backend.

    Raises:
        UsageError: shapes, masks, dtypes or tensors that do not fit.
        PrecisionError: float16 cannot hold the output.
        BackendRefused: the backend asked for cannot run this call.
    """
    record = call.record
    check_call(call)
    extras = extras_of(call)
    out_dtype = call.out_dtype or call.q.dtype
    if record.limits is not no_reason and (why := record.limits(call.dims, **extras)):
        raise UsageError(f"operator '{record.name}': {why}")
    half = record.half_refusal if out_dtype == torch.float16 else None
    if half is not None and (why := half(call.dims, **extras)):
        raise PrecisionError(f"operator '{record.name}': {why}")
    wide_output = call.q.dtype in HALF and out_dtype not in HALF
    backend = chosen(call, extras, asked_for(call.backend))
    widened = call.q.dtype in HALF and (wide_output or not backend.native_half)
    if widened:
        extras = {name: widen(value) for name, value in extras.items()}
    return Plan(record, backend, extras, out_dtype, widened)


def of_buffer(
    record: Operator,
    qkv: Tensor,
    num_heads: int,
    options: Mapping[str, Any],
    mask: Tensor | None = None,
    **fields: Any,
) -> Call:
    """The call of self-attention on the parts of a buffer (B, N, 3 H D); `fields` are further ones
    of `Call`.

    Raises:
        UsageError: another shape.
    """
    if qkv.ndim != 3 or qkv.shape[2] % (3 * num_heads):
        raise UsageError(
            f"qkv {tuple(qkv.shape)} with num_heads={num_heads}: it must be (batch, tokens, 3 x "
            "num_heads x features)"
        )
    q, k, v = unpacked(qkv, num_heads)
    return Call(record, q, keys_of(record, q, k, options), v, options, mask, mask, **fields)


REMEMBERED = 512
# by shape and dtype: on few tokens, looking at a call takes longer than the call
_plans: dict[Any, Plan] = {}


def remembered(
    record: Operator,
    qkv: Tensor,
    num_heads: int,
    out_dtype: torch.dtype | None,
    backend: str,
    options: Mapping[str, Any],
) -> Plan:
    """The plan of a call without masks, grid and tensors of the operator's own, which its shapes
    decide. Here qkv is the buffer (B, N, 3 H D).
    """
    backend = asked_for(backend)
    key = (
        record,
        qkv.shape,
        qkv.dtype,
        qkv.device.type,
        num_heads,
        out_dtype,
        backend,
        native.set_aside(),
        transformed(),
        *options.items(),
    )
    plan = _plans.get(key)
    if plan is None:
        plan = planned(
            of_buffer(record, qkv, num_heads, options, out_dtype=out_dtype, backend=backend)
        )
        if record.learned or not plan.backend.differentiable:
            return plan  # it holds tensors, or is for calls without gradients
        if len(_plans) >= REMEMBERED:
            _plans.clear()
        _plans[key] = plan
    return plan


def backend_of(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    op: str | Operator,
    grid: Grid | None = None,
    learned: Mapping[str, Tensor] | None = None,
    **options: Any,
) -> Backend:
    """The backend that `attend` would take for these tensors without masks. Shapes: q (B,H,N,D), k
    (B,H,M,D), v (B,H,M,E).
    """
    record = get(op)
    call = Call(record, q, k, v, check_options(record, options), grid=grid, learned=learned)
    return chosen(call, extras_of(call), asked_for())


def _wants_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def chosen(call: Call, extras: Mapping[str, Any], name: str) -> Backend:
    """The first backend that refuses nothing, or the one asked for.

    Raises:
        BackendRefused: the one asked for cannot run this call, or none can; each backend's reasons
            are listed.
    """
    record, q, k, v = call.record, call.q, call.k, call.v
    reasons: dict[str, list[str]] = {}
    for candidate in record.backends:
        why = candidate.refuses(q, k, v, mask=call.mask, query_mask=call.query_mask, **extras)
        if not candidate.differentiable and _wants_gradient(
            q, k, v, *(extras.get("learned") or {}).values()
        ):
            why = [*why, "has no gradients: it is for torch.no_grad() and torch.inference_mode()"]
        if name in {"auto", candidate.name} and not why:
            return candidate
        reasons[candidate.name] = why or ["can run"]
    if name != "auto" and name not in reasons:
        raise BackendRefused(
            f"operator '{record.name}' has no backend '{name}'. It has: {', '.join(reasons)}"
        )
    explanation = "; ".join(f"{backend}: {' and '.join(why)}" for backend, why in reasons.items())
    raise BackendRefused(
        f"backend '{name}' cannot run {record.name} on q {tuple(q.shape)} {q.dtype} {q.device}: "
        f"{explanation}"
    )
