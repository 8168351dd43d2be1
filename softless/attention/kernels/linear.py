"""The norm-over-tokens family in one pass over q, k and v: native kernels as operators of torch, with gradients.

    forward:    |q|, |k| and k^T v of all tokens in one sweep, then o = q (k^T v gain / |q| / |k|)
    backward:   dA = q^T do in one sweep, D x E algebra, then dq, dk and dv in one sweep; saved are q, k, v, the norms and k^T v

Each is one node of a graph: `torch.compile`, the FLOP counter and the counter of exponentials see `softless::…`, with a fake form and a
formula. In self-attention q, k and v are read from the buffer that their projection wrote (`packed`), and the gradient is written as one.
"""

# B batch, H heads, N query tokens, M key tokens, D features of q and k, E features of v

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from softless.attention.features import STILL, Norm
from softless.attention.kernels import native
from softless.attention.packed import unpacked
from softless.errors import UsageError

NORMS: dict[str, int] = {"none": 0, "l1": 1, "l2": 2}
BY_COUNT = 0.0  # token_scale "tokens" as a number: multiply by N

library = torch.library.Library("softless", "DEF")
library.define(
    "sums(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? query_mask, int norm) -> (Tensor, Tensor, Tensor)"
)
library.define(
    "attend(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? query_mask, int norm, float? token_scale, float eps) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
library.define(
    "attend_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? query_mask, Tensor q_size, Tensor k_size, "
    "Tensor context, int norm, float? token_scale, float eps) -> (Tensor, Tensor, Tensor)"
)
library.define(
    "attend_packed(Tensor qkv, int heads, Tensor? mask, int norm, float? token_scale, float eps) -> (Tensor, Tensor, Tensor, Tensor)"
)
library.define(
    "attend_packed_backward(Tensor grad, Tensor qkv, int heads, Tensor? mask, Tensor q_size, Tensor k_size, Tensor context, int norm, "
    "float? token_scale, float eps) -> Tensor"
)


def _gain(q: Tensor, query_mask: Tensor | None, token_scale: float | None) -> Tensor | None:
    """(B) float32: what the outputs of each image are multiplied by."""
    if token_scale is None:
        return None
    by = 1.0 if token_scale == BY_COUNT else 1.0 / token_scale
    if query_mask is None:
        return torch.full((q.shape[0],), q.shape[2] * by, dtype=torch.float32)
    return query_mask.sum(-1).float() * by


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _room(q: Tensor, v: Tensor, norm: int) -> dict[str, Tensor]:
    """Empty sums: sizes (B,H,D) of q and of k, which stay zero without a norm, and context (B,H,D,E)."""
    B, H, _, D = q.shape
    make = partial(torch.empty, dtype=torch.float32, device=q.device)
    size = make if norm else partial(torch.zeros, dtype=torch.float32, device=q.device)
    return {"q_size": size(B, H, D), "k_size": size(B, H, D), "context": make(B, H, D, v.shape[3])}


def _masks(mask: Tensor | None, query_mask: Tensor | None) -> dict[str, Tensor]:
    return {name: x.contiguous() for name, x in (("mask", mask), ("query_mask", query_mask)) if x is not None}


def sums(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, query_mask: Tensor | None, norm: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over tokens of |q|, |k| (l2: squares) and k^T v, float32."""
    q, k, v = _dense(q), _dense(k), _dense(v)
    made, masks = _room(q, v, norm), _masks(mask, query_mask)
    native.run("sums", native.call(q, k, v, norm=norm, **masks, **made))
    return made["q_size"], made["k_size"], made["context"]


def _attend(q: Tensor, k: Tensor, v: Tensor, o: Tensor, mask: Tensor | None, query_mask: Tensor | None, norm: int, token_scale: float | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Fill o (B,H,N,E); the sums."""
    made, masks, gain = _room(q, v, norm), _masks(mask, query_mask), _gain(q, query_mask, token_scale)
    given = {} if gain is None else {"gain": gain}
    native.run("attend", native.call(q, k, v, norm=norm, eps=eps, out=native.at(o), **masks, **made, **given))
    return made["q_size"], made["k_size"], made["context"]


def _backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, into: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, query_mask: Tensor | None, q_size: Tensor, k_size: Tensor, context: Tensor, norm: int, token_scale: float | None, eps: float) -> None:  # fmt: skip
    """Fill the gradients of q, k and v."""
    masks, gain = _masks(mask, query_mask), _gain(q, query_mask, token_scale)
    given = {} if gain is None else {"gain": gain}
    dq, dk, dv = (native.at(x) for x in into)
    made = native.call(
        q, k, v, norm=norm, eps=eps, still=STILL, grad_out=native.at(grad), grad_q=dq, grad_k=dk, grad_v=dv,
        q_size=q_size, k_size=k_size, context=context, **masks, **given,
    )  # fmt: skip
    native.run("backward", made)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, query_mask: Tensor | None, norm: int, token_scale: float | None, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Output (B,H,N,E), laid out by tokens, and the sums."""
    q, k, v = _dense(q), _dense(k), _dense(v)
    o = _by_tokens(q, v)
    return o, *_attend(q, k, v, o, mask, query_mask, norm, token_scale, eps)


def _by_tokens(q: Tensor, v: Tensor) -> Tensor:
    B, H, N, _ = q.shape
    return torch.empty(B, N, H, v.shape[3], dtype=q.dtype, device=q.device).transpose(1, 2)


def attend_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, query_mask: Tensor | None, q_size: Tensor, k_size: Tensor, context: Tensor, norm: int, token_scale: float | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v."""
    q, k, v, grad = _dense(q), _dense(k), _dense(v), _dense(grad)
    into = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    _backward(grad, q, k, v, into, mask, query_mask, q_size, k_size, context, norm, token_scale, eps)  # type: ignore[arg-type]
    return into  # type: ignore[return-value]


def attend_packed(qkv: Tensor, heads: int, mask: Tensor | None, norm: int, token_scale: float | None, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Output (B,N,H D) of self-attention, and the sums."""
    q, k, v = unpacked(_dense(qkv), heads)
    o = torch.empty(*qkv.shape[:2], qkv.shape[2] // 3, dtype=qkv.dtype, device=qkv.device)
    found = _attend(q, k, v, o.unflatten(-1, (heads, -1)).transpose(1, 2), mask, mask, norm, token_scale, eps)
    return o, *found


def attend_packed_backward(grad: Tensor, qkv: Tensor, heads: int, mask: Tensor | None, q_size: Tensor, k_size: Tensor, context: Tensor, norm: int, token_scale: float | None, eps: float) -> Tensor:  # fmt: skip
    """The gradient of the buffer, written in place of three."""
    made = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    by_heads = _dense(grad).unflatten(-1, (heads, -1)).transpose(1, 2)
    parts, into = unpacked(_dense(qkv), heads), unpacked(made, heads)
    _backward(by_heads, *parts, into, mask, mask, q_size, k_size, context, norm, token_scale, eps)
    return made


for function in (sums, attend, attend_backward, attend_packed, attend_packed_backward):
    library.impl(function.__name__, function, "CPU")


# Shapes for tracing


def _fake_attend(q: Tensor, _k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _by_tokens(q, v), *_room(q, v, 1).values()  # type: ignore[return-value]


def _fake_packed(qkv: Tensor, heads: int, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, _, v = unpacked(qkv, heads)
    return qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3), *_room(q, v, 1).values()  # type: ignore[return-value]


def _fake_sums(q: Tensor, _k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return tuple(_room(q, v, 1).values())


def _fake_backward(_grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))


def _fake_packed_backward(_grad: Tensor, qkv: Tensor, *_: Any) -> Tensor:
    return torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)


FAKES: dict[str, Callable[..., Any]] = {
    "sums": _fake_sums,
    "attend": _fake_attend,
    "attend_backward": _fake_backward,
    "attend_packed": _fake_packed,
    "attend_packed_backward": _fake_packed_backward,
}
for name, fake in FAKES.items():
    torch.library.register_fake(f"softless::{name}", fake, lib=library)


# Gradients


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, mask, query_mask, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, mask, query_mask, *output[1:])
    ctx.set_materialize_grads(False)  # the sums have no gradient, and need no zeros for one
    ctx.mark_non_differentiable(*output[1:])


def _slope(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    slopes = torch.ops.softless.attend_backward(grad, *ctx.saved_tensors, *ctx.settings)
    return (*slopes, None, None, None, None, None)


def _keep_packed(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    qkv, ctx.heads, mask, *ctx.settings = inputs
    ctx.save_for_backward(qkv, mask, *output[1:])
    ctx.set_materialize_grads(False)  # the sums have no gradient, and need no zeros for one
    ctx.mark_non_differentiable(*output[1:])


def _slope_packed(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    qkv, mask, *found = ctx.saved_tensors
    slope = torch.ops.softless.attend_packed_backward(grad, qkv, ctx.heads, mask, *found, *ctx.settings)
    return slope, None, None, None, None, None


def _no_second(_: Any, *__: Any) -> Any:
    raise UsageError('the native kernels have no second derivative: pass backend="eager" to softless.attend')


def _nothing(*_: Any, **__: Any) -> None:
    """There is nothing to keep for what raises."""


torch.library.register_autograd("softless::attend", _slope, setup_context=_keep, lib=library)
torch.library.register_autograd("softless::attend_packed", _slope_packed, setup_context=_keep_packed, lib=library)
for name in ("sums", "attend_backward", "attend_packed_backward"):
    torch.library.register_autograd(f"softless::{name}", _no_second, setup_context=_nothing, lib=library)


# FLOPs, 2 per multiply-add


def _products(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], queries: int, keys: int) -> int:
    B, H, N, D = q
    return 2 * B * H * D * v[3] * (queries * N + keys * k[2])


def _split(qkv: tuple[int, ...], heads: int) -> tuple[int, ...]:
    return qkv[0], heads, qkv[1], qkv[2] // (3 * heads)


@register_flop_formula(torch.ops.softless.attend)
def _attend_flops(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return _products(q, k, v, 1, 1)


@register_flop_formula(torch.ops.softless.sums)
def _sums_flops(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return _products(q, k, v, 0, 1)


@register_flop_formula(torch.ops.softless.attend_backward)
def _backward_flops(_: Any, q: Any, k: Any, v: Any, *__: Any, **___: Any) -> int:
    return _products(q, k, v, 2, 2)


@register_flop_formula(torch.ops.softless.attend_packed)
def _packed_flops(qkv: Any, heads: int, *_: Any, **__: Any) -> int:
    one = _split(qkv, heads)
    return _products(one, one, one, 1, 1)


@register_flop_formula(torch.ops.softless.attend_packed_backward)
def _packed_backward_flops(_: Any, qkv: Any, heads: int, *__: Any, **___: Any) -> int:
    one = _split(qkv, heads)
    return _products(one, one, one, 2, 2)


# The backend


def _number(token_scale: str | float | None) -> float | None:
    return BY_COUNT if isinstance(token_scale, str) else token_scale


def run(q: Tensor, k: Tensor, v: Tensor, *, norm: Norm, mask: Tensor | None, query_mask: Tensor | None, token_scale: str | float | None, eps: float, **_: Any) -> Tensor:  # fmt: skip
    """(B,H,N,E): the operator's value."""
    return torch.ops.softless.attend(q, k, v, mask, query_mask, NORMS[norm], _number(token_scale), eps)[0]


def run_packed(qkv: Tensor, heads: int, *, norm: Norm, mask: Tensor | None, token_scale: str | float | None, eps: float, **_: Any) -> Tensor:  # fmt: skip
    """(B,N,H D): self-attention of the buffer (B,N,3 H D) that holds q, k and v."""
    return torch.ops.softless.attend_packed(qkv, heads, mask, NORMS[norm], _number(token_scale), eps)[0]


def summed(q: Tensor, k: Tensor, v: Tensor, *, norm: Norm) -> dict[str, Tensor]:
    """The summary of `softless.attention.linear`, in one sweep: "q" and "k" (B,H,1,D), "context" (B,H,D,E)."""
    q_size, k_size, context = torch.ops.softless.sums(q, k, v, None, None, NORMS[norm])
    return {"context": context, "q": q_size[:, :, None], "k": k_size[:, :, None]}


def refuses(q: Tensor, k: Tensor, v: Tensor) -> list[str]:
    """Why the native kernels cannot run a call."""
    reasons = []
    if torch.compiler.is_exporting():
        return ["an exported graph holds nodes that every runtime knows"]
    if native.LIBRARY is None:
        return [native.WHY_NOT]
    if not native.PATHS[torch.float32]:
        return ["this processor has neither AVX-512 nor AVX2 with FMA"]
    if q.device.type != "cpu":
        reasons.append(f"runs on the processor, got {q.device}")
    if q.dtype not in native.DTYPES:
        reasons.append(f"takes float32 and bfloat16, got {q.dtype}")
    if q.numel() == 0 or k.numel() == 0 or v.numel() == 0:
        reasons.append("there is nothing to sum")
    return reasons


def here() -> str:
    """The ways of this processor by dtype, the fastest first."""
    return "; ".join(
        f"{str(dtype).removeprefix('torch.')}: {', '.join(paths)}" for dtype, paths in native.PATHS.items()
    )
