"""The ways into every operator: whole tensors, one buffer, both projections, the matrix alone; sums
are kept in float32.
"""

# B batch, H heads, N query tokens, M key tokens, D features of q and k, E features of v

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from softless.attention.call import Call, autocast_off
from softless.attention.checks import check_options, keys_of
from softless.attention.choose import Plan, chosen, of_buffer, planned, remembered
from softless.attention.overflow import LARGE, in_range, may_overflow
from softless.attention.record import Grid, Operator
from softless.attention.recording import recording
from softless.attention.registry import get


def attend(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    op: str | Operator = "sima",
    mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    grid: Grid | None = None,
    learned: Mapping[str, Tensor] | None = None,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
    **options: Any,
) -> Tensor:
    """Attention of q over k and v by a named operator: q (B, H, N, D), k (B, H, M, D) and
    v (B, H, M, E) give (B, H, N, E).

    Sums over tokens are float32 (float64 for float64 input) whatever the input dtype and whatever
    autocast says.

    Args:
        q: Queries (B, H, N, D).
        k: Keys (B, H, M, D); None for an operator with tied q and k.
        v: Values (B, H, M, E).
        op: Name in `softless.OPERATORS`, or a record.
        mask: (B, M) boolean, True where a key counts. Masking is removal: a masked token leaves
            norms, sums and the outputs of others as if it were not there.
        query_mask: (B, N) boolean, True where a query counts; the other rows return 0. In
            self-attention pass the same mask twice.
        grid: (prefix tokens, height, width), in tokens, for operators that need it; others ignore
            it.
        learned: The operator's own tensors (xca: "temperature"). None takes those of a new module,
            random ones drawn from seed 0.
        out_dtype: dtype of the result; the input's by default.
        backend: "auto" takes what `use_backend` said in this thread, or the first that refuses
            nothing; a name runs that one or raises.
        **options: The operator's options, as `softless list operators` prints them.

    Returns:
        (B, H, N, E) in out_dtype.

    Raises:
        UsageError: shapes, masks, dtypes or options that do not fit; unknown operator.
        PrecisionError: float16 cannot hold the output at this number of tokens (a rule on shapes),
            or of these values (where they are looked at).
        BackendRefused: the backend asked for cannot run this call.

    Source:
        The paper of each operator: `softless.OPERATORS[op].paper`; "sima" is arXiv:2206.08898.

    Examples:
        >>> q, k, v = torch.ones(1, 2, 5, 8), torch.ones(1, 2, 7, 8), torch.ones(1, 2, 7, 4)
        >>> softless.attend(q, k, v, op="sima", token_scale="tokens").shape
        torch.Size([1, 2, 5, 4])
    """
    record = get(op)
    checked = check_options(record, options)
    keys = keys_of(record, q, k, checked)
    call = Call(record, q, keys, v, checked, mask, query_mask, grid, learned, out_dtype, backend)
    return _run(planned(call), call)


def attend_packed(
    qkv: Tensor,
    num_heads: int,
    op: str | Operator = "sima",
    mask: Tensor | None = None,
    grid: Grid | None = None,
    learned: Mapping[str, Tensor] | None = None,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
    **options: Any,
) -> Tensor:
    """Self-attention of the buffer (B, N, 3 H D) that one projection wrote, heads joined again:
    (B, N, H D).

    The same value as `attend` on its three parts. A backend that reads the buffer itself also
    writes its gradient as one.

    Raises:
        UsageError: as `attend`; an operator with tied q and k.
        PrecisionError: as `attend`.
        BackendRefused: as `attend`.
    """
    record = get(op)
    checked = check_options(record, options)
    if (
        mask is None
        and grid is None
        and learned is None
        and not (torch.compiler.is_compiling() or recording())
    ):
        plan = remembered(record, qkv, num_heads, out_dtype, backend, checked)
    else:
        settings = {"grid": grid, "learned": learned, "out_dtype": out_dtype, "backend": backend}
        plan = planned(of_buffer(record, qkv, num_heads, checked, mask, **settings))
    if plan.backend.packed is None or plan.widened:
        return _joined(_run(plan, of_buffer(record, qkv, num_heads, checked, mask)))
    with autocast_off(qkv.device.type):
        o = plan.backend.packed(qkv, num_heads, mask=mask, **plan.extras)
    if may_overflow(o[:, :1], qkv[:, :1]):
        o = _joined(_run(plan, of_buffer(record, qkv, num_heads, checked, mask)))
    return in_range(o, plan.out_dtype, record.name, qkv)


def output_matrix(
    qkv: Tensor, num_heads: int, op: str | Operator = "sima", backend: str = "auto", **options: Any
) -> Tensor | None:
    """The matrix (B, H, D, D), float32, that turns each raw query of a buffer (B, N, 3 H D) into
    its output.

    None where there is none, and where float32 does not hold it: `attend_packed` then answers.

    An output projection can absorb it: q A W is q (A W), and A W has as many rows as q has
    channels, however many tokens there are.
    """
    record = get(op)
    if not record.has_matrix:
        return None
    checked = check_options(record, options)
    # the matrix is: float16 need not hold the output
    out_dtype = torch.float32 if qkv.dtype == torch.float16 else None
    call = of_buffer(record, qkv, num_heads, checked, out_dtype=out_dtype, backend=backend)
    plan, q, k, v = planned(call), call.q, call.k, call.v
    if plan.backend.matrix is None:
        return None
    if plan.widened:
        q, k, v = q.float(), k.float(), v.float()
    with autocast_off(q.device.type):
        matrix = plan.backend.matrix(q, k, v, **plan.extras)
    return None if may_overflow(matrix, q[:, :, :1], k[:, :, :1]) else matrix


def attend_projected(
    x: Tensor,
    qkv: tuple[Tensor, Tensor | None],
    proj: tuple[Tensor, Tensor | None],
    num_heads: int,
    op: str | Operator = "sima",
    backend: str = "auto",
    **options: Any,
) -> Tensor | None:
    """Self-attention of tokens x (B, N, dim) with both its projections, (weight, bias) each:
    (B, N, dim_out); None where no backend does that.

    The same value as the projection, `attend_packed` and the other projection, for training on many
    tokens: what lies between is not kept.
    """
    record = get(op)
    tensors = [tensor for tensor in (x, *qkv, *proj) if tensor is not None]
    if record.learned or "grid" in record.needs or len({tensor.dtype for tensor in tensors}) > 1:
        return None
    # its shape decides; it is not there yet
    buffer = x.new_empty(()).expand(*x.shape[:2], len(qkv[0]))
    plan = planned(
        of_buffer(record, buffer, num_heads, check_options(record, options), backend=backend)
    )
    if plan.backend.projected is None or plan.widened:
        return None
    with autocast_off(x.device.type):
        return plan.backend.projected(x, *qkv, *proj, num_heads, **plan.extras)


def _joined(o: Tensor) -> Tensor:
    """Heads side by side: (B,H,N,D) -> (B,N,H D)."""
    return o.transpose(1, 2).flatten(2)


def _run(plan: Plan, call: Call) -> Tensor:
    """The output of a call by its plan: (B,H,N,E) in the plan's dtype."""
    q, k, v = call.q, call.k, call.v
    if plan.widened:
        q, k, v = q.float(), k.float(), v.float()
    with autocast_off(q.device.type):
        o = plan.backend.fn(q, k, v, mask=call.mask, query_mask=call.query_mask, **plan.extras)
        if may_overflow(o[:, :, :1], q[:, :, :1], k[:, :, :1]):
            o = _in_double(plan, call, o)
    return in_range(o, plan.out_dtype, plan.record.name, call.q, call.k, call.v)


def _in_double(plan: Plan, call: Call, o: Tensor) -> Tensor:
    """The output with the samples that overflow computed again in float64, as half precision is in
    float32.

    Samples that hold NaN or infinity, and those of usual values, keep what they have: what an image
    is answered hangs on none beside it.
    """
    q, k, v = call.q, call.k, call.v
    first = torch.stack([x[:, :, 0].abs().flatten(1).amax(1) for x in (q, k)]).amax(0)
    suspect = ~o[:, :, 0].isfinite().flatten(1).all(1) | ~(first <= LARGE)
    largest = torch.stack([x.abs().flatten(1).amax(1) for x in (q, k, v)]).amax(0)
    again = suspect & largest.isfinite() & (largest > LARGE)
    if not again.any():
        return o
    q, k, v = q.double(), k.double(), v.double()
    extras = {name: _double(value) for name, value in plan.extras.items()}
    doubled = replace(call, q=q, k=k, v=v)
    exact = chosen(doubled, extras, "auto").fn(
        q, k, v, mask=call.mask, query_mask=call.query_mask, **extras
    )
    return torch.where(again[:, None, None, None], exact.to(plan.out_dtype), o.to(plan.out_dtype))


def _double(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _double(inner) for name, inner in value.items()}
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
