"""The one way into every operator: checks the call, chooses a backend, keeps sums in float32."""

# B batch, H heads, N query tokens, M key tokens, D features of q and k, E features of v

import contextlib
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from softless.attention.choice import asked_for
from softless.attention.kernels import native
from softless.attention.learned import given_or_starting
from softless.attention.packed import unpacked
from softless.attention.recording import recording
from softless.attention.registry import get
from softless.attention.spec import Backend, Dims, Grid, Operator, no_reason
from softless.attention.transforms import transformed
from softless.errors import BackendRefused, PrecisionError, UsageError, unknown

HALF = (torch.float16, torch.bfloat16)


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
    """Attention of q over k and v by a named operator: q (B,H,N,D), k (B,H,M,D), v (B,H,M,E) -> (B,H,N,E).

    Sums over tokens are float32 (float64 for float64 input) whatever the input dtype and whatever autocast says.

    Args:
        q: Queries.
        k: Keys; None for an operator with tied q and k.
        v: Values.
        op: Name in `softless.OPERATORS`, or a record.
        mask: (B, M) boolean, True where a key counts. Masking is removal: a masked token leaves norms, sums and the outputs of
            others as if it were not there.
        query_mask: (B, N) boolean, True where a query counts; the other rows return 0. In self-attention pass the same mask twice.
        grid: (prefix tokens, height, width) for operators that need it; others take no notice.
        learned: The operator's own tensors (xca: "temperature"). None takes those of a new module, random ones drawn from seed 0.
        out_dtype: dtype of the result; the input's by default.
        backend: "auto" takes what `use_backend` said in this thread, or the first that refuses nothing; a name runs that one or raises.
        **options: The operator's options (see `softless list operators`).

    Returns:
        (B,H,N,E) in out_dtype.

    Raises:
        UsageError: shapes, masks, dtypes or options that do not fit; unknown operator.
        PrecisionError: float16 cannot hold the output at this number of tokens (a rule on shapes).
        BackendRefused: the backend asked for cannot run this call.
    """
    record = get(op)
    options = check_options(record, options)
    k = _keys(record, q, k, options)
    plan = _plan(record, q, k, v, mask, query_mask, grid, learned, out_dtype, backend, options)
    return _run(plan, q, k, v, mask, query_mask)


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
    """Self-attention of the buffer (B, N, 3 H D) that one projection wrote, heads joined again: (B, N, H D).

    The same value as `attend` on its three parts. A backend that reads the buffer itself also writes its gradient as one.

    Raises:
        UsageError: as `attend`; an operator with tied q and k.
        PrecisionError: as `attend`.
        BackendRefused: as `attend`.
    """
    record = get(op)
    checked = check_options(record, options)
    if mask is None and grid is None and learned is None and not (torch.compiler.is_compiling() or recording()):
        plan = _remembered(record, qkv, num_heads, out_dtype, backend, checked)
    else:
        plan = _packed_plan(record, qkv, num_heads, mask, grid, learned, out_dtype, backend, checked)
    if plan.backend.packed is None or plan.widened:
        return _run(plan, *unpacked(qkv, num_heads), mask, mask).transpose(1, 2).flatten(2)
    with autocast_off(qkv.device.type):
        o = plan.backend.packed(qkv, num_heads, mask=mask, **plan.extras)
    if _may_overflow(o[:, :1], qkv[:, :1]):
        o = _run(plan, *unpacked(qkv, num_heads), mask, mask).transpose(1, 2).flatten(2)
    return o if o.dtype == plan.out_dtype else o.to(plan.out_dtype)


def output_matrix(
    qkv: Tensor, num_heads: int, op: str | Operator = "sima", backend: str = "auto", **options: Any
) -> Tensor | None:
    """The matrix (B, H, D, D), float32, that turns each raw query of a buffer (B, N, 3 H D) into its output.

    None where there is none, and where float32 does not hold it: `attend_packed` then answers.

    An output projection can absorb it: q A W is q (A W), and A W has as many rows as q has channels, however many tokens there are.
    """
    record = get(op)
    if not record.has_matrix:
        return None
    options = check_options(record, options)
    q, k, v = unpacked(qkv, num_heads)
    wide = torch.float32 if qkv.dtype == torch.float16 else None  # the matrix is: float16 need not hold the output
    plan = _plan(record, q, k, v, None, None, None, None, wide, backend, options)
    if plan.backend.matrix is None:
        return None
    if plan.widened:
        q, k, v = q.float(), k.float(), v.float()
    with autocast_off(q.device.type):
        found = plan.backend.matrix(q, k, v, **plan.extras)
    return None if _may_overflow(found, q[:, :, :1], k[:, :, :1]) else found


def attend_projected(
    x: Tensor,
    qkv: tuple[Tensor, Tensor | None],
    proj: tuple[Tensor, Tensor | None],
    num_heads: int,
    op: str | Operator = "sima",
    backend: str = "auto",
    **options: Any,
) -> Tensor | None:
    """Self-attention of tokens x (B, N, dim) with both its projections, (weight, bias) each: (B, N, dim_out); None where no backend does that.

    The same value as the projection, `attend_packed` and the other projection, for training on many tokens: what lies between is not kept.
    """
    record = get(op)
    tensors = [one for one in (x, *qkv, *proj) if one is not None]
    if record.learned or "grid" in record.needs or len({one.dtype for one in tensors}) > 1:
        return None
    buffer = x.new_empty(()).expand(*x.shape[:2], len(qkv[0]))  # its shape decides; it is not there yet
    plan = _packed_plan(record, buffer, num_heads, None, None, None, None, backend, check_options(record, options))
    if plan.backend.projected is None or plan.widened:
        return None
    with autocast_off(x.device.type):
        return plan.backend.projected(x, *qkv, *proj, num_heads, **plan.extras)


def backend_of(q: Tensor, k: Tensor, v: Tensor, op: str | Operator, grid: Grid | None = None, learned: Mapping[str, Tensor] | None = None, **options: Any) -> Backend:  # fmt: skip
    """The backend that `attend` would take for these tensors without masks."""
    record = get(op)
    extras = _extras(record, k, v, grid, learned, record.filled(check_options(record, options)))
    return _choose(record, asked_for(), q, k, v, None, None, extras)


@dataclass(frozen=True)
class _Plan:
    """How a call goes: by which backend, with what beside q, k, v and masks, to which dtype, and whether in float32."""

    record: Operator
    backend: Backend
    extras: dict[str, Any]
    out_dtype: torch.dtype
    widened: bool


def _run(plan: _Plan, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, query_mask: Tensor | None) -> Tensor:
    if plan.widened:
        q, k, v = q.float(), k.float(), v.float()
    with autocast_off(q.device.type):
        o = plan.backend.fn(q, k, v, mask=mask, query_mask=query_mask, **plan.extras)
        if _may_overflow(o[:, :, :1], q[:, :, :1], k[:, :, :1]):
            o = _in_double(plan, o, q, k, v, mask, query_mask)
    return o if o.dtype == plan.out_dtype else o.to(plan.out_dtype)


LARGE = 2.0**40  # up to here products of three values and their sums over a million tokens fit float32


def _may_overflow(row: Tensor, *given: Tensor) -> bool:
    """Whether the output of the first query is not finite, or the first tokens given hold large values.

    Sums over tokens that overflow spoil every row, by NaN, infinity or zero, so the first tokens are enough and nothing is read as a whole.
    On a GPU a look would make the processor wait, and a graph must not depend on values: there it is not taken, nor where a gradient is wanted.
    """
    if row.device.type != "cpu" or row.requires_grad or not row.numel() or row.dtype == torch.float64:
        return False
    if torch.compiler.is_compiling() or recording() or type(row) is not Tensor:
        return False
    if is_in_torch_dispatch_mode() or torch._C._functorch.is_functorch_wrapped_tensor(row):
        return False
    if not torch.linalg.vector_norm(row, 1).item() < math.inf:  # NaN is not
        return True
    return any(x.numel() and not torch.linalg.vector_norm(x, math.inf).item() <= LARGE for x in given)


def _in_double(plan: _Plan, o: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, query_mask: Tensor | None) -> Tensor:  # fmt: skip
    """The output with the samples that overflow computed again in float64, as half precision is in float32.

    Samples that hold NaN or infinity, and those of usual values, keep what they have: what an image is answered hangs on none beside it.
    """
    first = torch.stack([x[:, :, 0].abs().flatten(1).amax(1) for x in (q, k)]).amax(0)
    seen = ~o[:, :, 0].isfinite().flatten(1).all(1) | ~(first <= LARGE)
    largest = torch.stack([x.abs().flatten(1).amax(1) for x in (q, k, v)]).amax(0)
    again = seen & largest.isfinite() & (largest > LARGE)
    if not again.any():
        return o
    q, k, v = q.double(), k.double(), v.double()
    extras = {name: _double(value) for name, value in plan.extras.items()}
    backend = _choose(plan.record, "auto", q, k, v, mask, query_mask, extras)
    exact = backend.fn(q, k, v, mask=mask, query_mask=query_mask, **extras)
    return torch.where(again[:, None, None, None], exact.to(plan.out_dtype), o.to(plan.out_dtype))


def _double(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _double(inner) for name, inner in value.items()}
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _packed_plan(record: Operator, qkv: Tensor, num_heads: int, mask: Tensor | None, grid: Grid | None, learned: Mapping[str, Tensor] | None, out_dtype: torch.dtype | None, backend: str, options: Mapping[str, Any]) -> _Plan:  # fmt: skip
    """Checks the buffer, and plans the call on its parts."""
    if qkv.ndim != 3 or qkv.shape[2] % (3 * num_heads):
        raise UsageError(
            f"qkv {tuple(qkv.shape)} with num_heads={num_heads}: it must be (batch, tokens, 3 x num_heads x features)"
        )
    q, k, v = unpacked(qkv, num_heads)
    return _plan(record, q, _keys(record, q, k, options), v, mask, mask, grid, learned, out_dtype, backend, options)


REMEMBERED = 512
_plans: dict[Any, _Plan] = {}  # by shape and dtype: on few tokens, looking at a call takes longer than the call


def _remembered(record: Operator, qkv: Tensor, num_heads: int, out_dtype: torch.dtype | None, backend: str, options: Mapping[str, Any]) -> _Plan:  # fmt: skip
    """The plan of a call without masks, grid and tensors of the operator's own, which its shapes decide."""
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
        plan = _packed_plan(record, qkv, num_heads, None, None, None, out_dtype, backend, options)
        if record.learned or not plan.backend.differentiable:
            return plan  # it holds tensors, or is for calls without gradients
        if len(_plans) >= REMEMBERED:
            _plans.clear()
        _plans[key] = plan
    return plan


def _plan(record: Operator, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, query_mask: Tensor | None, grid: Grid | None, learned: Mapping[str, Tensor] | None, out_dtype: torch.dtype | None, backend: str, options: Mapping[str, Any]) -> _Plan:  # fmt: skip
    """Checks a call and chooses its backend."""
    backend = asked_for(backend)
    _check(record, q, k, v, mask, query_mask)
    if "grid" in record.needs:
        _check_cells(record, k.shape[2], grid, options)
    filled = record.filled(options)
    extras = _extras(record, k, v, grid, learned, filled)
    out_dtype = out_dtype or q.dtype
    if record.limits is not no_reason and (why := record.limits(Dims.of(q, k, v, grid, filled), **extras)):
        raise UsageError(f"operator '{record.name}': {why}")
    half = record.half_refusal if out_dtype == torch.float16 else None
    if half is not None and (why := half(Dims.of(q, k, v, grid, filled), **extras)):
        raise PrecisionError(f"operator '{record.name}': {why}")
    wide = q.dtype in HALF and out_dtype not in HALF
    chosen = _choose(record, backend, q, k, v, mask, query_mask, extras)
    widened = q.dtype in HALF and (wide or not chosen.native_half)
    return _Plan(
        record,
        chosen,
        {name: widen(value) for name, value in extras.items()} if widened else extras,
        out_dtype,
        widened,
    )


def autocast_off(device_type: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast would put the sums back into half precision (on a CPU the norms too)."""
    on = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if on else contextlib.nullcontext()


def widen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: widen(inner) for name, inner in value.items()}
    return value.float() if isinstance(value, Tensor) and value.dtype in HALF else value


def _keys(record: Operator, q: Tensor, k: Tensor | None, options: Mapping[str, Any]) -> Tensor:
    tied = record.wants("tied_qk", options)
    if tied and k is not None:
        raise UsageError(f"operator '{record.name}' has tied q and k: pass k=None")
    if k is None and not tied:
        raise UsageError(f"operator '{record.name}' needs keys: pass k of shape (B, H, M, D)")
    return q if k is None else k


def extras_of(
    record: Operator,
    k: Tensor,
    v: Tensor,
    grid: Grid | None,
    learned: Mapping[str, Tensor] | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """What the operator takes besides q, k, v and the masks; anything it does not have is an error."""
    return _extras(record, k, v, grid, learned, record.filled(check_options(record, options)))


def _extras(record: Operator, k: Tensor, v: Tensor, grid: Grid | None, learned: Mapping[str, Tensor] | None, options: dict[str, Any]) -> dict[str, Any]:  # fmt: skip
    extras = dict(options)
    if record.learned or learned:
        own = given_or_starting(record, learned, options, k, v)
        if record.learned:
            extras["learned"] = own
    if "grid" in record.needs:
        extras["grid"] = check_grid(record, grid, options)
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
            f"operator '{record.name}' needs the grid of the tokens: pass grid=(prefix_tokens, height, width)"
        )
    if len(grid) != 3 or grid[0] < 0 or min(grid[1:]) < 1:
        raise UsageError(f"grid={grid!r}: it must be (prefix_tokens, height, width), for example (1, 14, 14)")
    return grid


def check_options(record: Operator, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, if the operator has them and takes these values.

    Raises:
        UsageError: an option the operator does not have, or a value outside its rule.
    """
    for name, value in options.items():
        if name not in record.options:
            raise unknown(f"option of operator '{record.name}'", name, record.options)
        if not record.options[name].accepts(value):
            shown = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise UsageError(f"operator '{record.name}': {name}={shown} is not {record.options[name].values}")
    return dict(options)


def _check(record: Operator, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, query_mask: Tensor | None) -> None:
    if not (q.ndim == k.ndim == v.ndim == 4):
        raise UsageError(f"{_shapes(q, k, v)}: all three must have four dimensions (batch, heads, tokens, features)")
    if q.shape[:2] != k.shape[:2] or k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3]:
        raise UsageError(f"{_shapes(q, k, v)}: batch and heads must agree, k and v in tokens, q and k in features")
    if not record.cross and q.shape[2] != k.shape[2]:
        raise UsageError(f"{_shapes(q, k, v)}: operator '{record.name}' needs as many queries as keys")
    if not (q.dtype == k.dtype == v.dtype) or not q.is_floating_point():
        raise UsageError(f"q {q.dtype}, k {k.dtype}, v {v.dtype}: all three must have one floating-point dtype")
    for name, given, length in (("mask", mask, k.shape[2]), ("query_mask", query_mask, q.shape[2])):
        if given is not None and (given.dtype != torch.bool or tuple(given.shape) != (q.shape[0], length)):
            raise UsageError(
                f"{name} is {given.dtype} {tuple(given.shape)}: it must be torch.bool of shape ({q.shape[0]}, {length}), True where a token counts"
            )
    looks = not (torch.compiler.is_compiling() or recording() or transformed())
    if looks and mask is not None and mask.device.type == "cpu" and not mask.any(-1).all():
        warnings.warn("a sample has all its tokens masked: its output is 0", stacklevel=4)


def _shapes(q: Tensor, k: Tensor, v: Tensor) -> str:
    return f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"


def _check_cells(record: Operator, tokens: int, grid: Grid | None, options: Mapping[str, Any]) -> None:
    if record.wants("grid", options) and (given := check_grid(record, grid, options)):
        prefix, height, width = given
        if prefix + height * width != tokens:
            raise UsageError(
                f"operator '{record.name}': grid={given} has {prefix} + {height} x {width} = {prefix + height * width} tokens, "
                f"and there are {tokens}: pass the grid that these tokens stand on"
            )


def _wants_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def _choose(
    record: Operator, name: str, q: Tensor, k: Tensor, v: Tensor, mask: Any, query_mask: Any, extras: Any
) -> Backend:
    """The first backend that refuses nothing, or the one asked for."""
    reasons: dict[str, list[str]] = {}
    for candidate in record.backends:
        why = candidate.refuses(q, k, v, mask=mask, query_mask=query_mask, **extras)
        if not candidate.differentiable and _wants_gradient(q, k, v, *(extras.get("learned") or {}).values()):
            why = [*why, "has no gradients: it is for torch.no_grad() and torch.inference_mode()"]
        if name in {"auto", candidate.name} and not why:
            return candidate
        reasons[candidate.name] = why or ["can run"]
    if name != "auto" and name not in reasons:
        raise BackendRefused(f"operator '{record.name}' has no backend '{name}'. It has: {', '.join(reasons)}")
    told = "; ".join(f"{backend}: {' and '.join(why)}" for backend, why in reasons.items())
    raise BackendRefused(
        f"backend '{name}' cannot run {record.name} on q {tuple(q.shape)} {q.dtype} {q.device}: {told}"
    )
