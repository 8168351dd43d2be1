"""The norm-over-tokens family in one pass over q, k and v: native kernels as operators of torch,
with gradients.

    forward:    |q|, |k| and k^T v of all tokens in one sweep, then o = q (k^T v gain / |q| / |k|)
    backward:   dA = q^T do in one sweep, D x E algebra, then dq, dk and dv in one sweep; saved are q, k, v, the norms and k^T v

Each is one node of a graph: `torch.compile`, the FLOP counter and the counter of exponentials see
`softless::…`, with a fake form and a formula. In self-attention q, k and v are read from the buffer
that their projection wrote (`packed`), and the gradient is written as one.
"""

# B batch, H heads, N query tokens, M key tokens, D features of q and k, E features of v

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from softless.attention.kernels import native
from softless.attention.kernels.formulas import register_flop_formula
from softless.attention.linear import eager
from softless.attention.norms import STILL, Norm
from softless.attention.packed import unpacked
from softless.attention.transforms import transformed

NORMS: dict[str, int] = {"none": 0, "l1": 1, "l2": 2}
BY_COUNT = 0.0  # token_scale "tokens" as a number: multiply by N

library = torch.library.Library("softless", "DEF")
library.define(
    "sums(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? query_mask, int norm) -> (Tensor, "
    "Tensor, Tensor)"
)
library.define(
    "attend(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? query_mask, int norm, float? "
    "token_scale, float eps) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
library.define(
    "attend_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? query_mask, "
    "Tensor q_size, Tensor k_size, "
    "Tensor context, int norm, float? token_scale, float eps) -> (Tensor, Tensor, Tensor)"
)
library.define(
    "attend_packed(Tensor qkv, int heads, Tensor? mask, int norm, float? token_scale, float eps) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
library.define(
    "attend_packed_backward(Tensor grad, Tensor qkv, int heads, Tensor? mask, Tensor q_size, "
    "Tensor k_size, Tensor context, int norm, "
    "float? token_scale, float eps) -> Tensor"
)


def room(
    B: int, H: int, D: int, E: int, norm: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Empty sums: sizes (B,H,D) of q and of k, which stay zero without a norm, and context
    (B,H,D,E).
    """
    size = torch.empty if norm else torch.zeros
    return (
        size(B, H, D, dtype=torch.float32, device=device),
        size(B, H, D, dtype=torch.float32, device=device),
        torch.empty(B, H, D, E, dtype=torch.float32, device=device),
    )


def _gain(
    images: int, queries: int, query_mask: Tensor | None, token_scale: float | None
) -> Tensor | None:
    """(B) float32: what the outputs of each image are multiplied by."""
    if token_scale is None:
        return None
    by = 1.0 if token_scale == BY_COUNT else 1.0 / token_scale
    if query_mask is None:
        return torch.full((images,), queries * by, dtype=torch.float32)
    return query_mask.sum(-1).float() * by


def sums(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, query_mask: Tensor | None, norm: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over tokens of |q|, |k| (l2: squares), (B,H,D) each, and k^T v (B,H,D,E), in float32."""
    q, k, v = map(native.dense, (q, k, v))
    B, H, _, D = q.shape
    q_size, k_size, context = room(B, H, D, v.shape[3], norm, q.device)
    native.run(
        "sums",
        native.sizes(q, k, v),
        q.dtype,
        norm=norm,
        q=native.at(q),
        k=native.at(k),
        v=native.at(v),
        mask=mask,
        query_mask=query_mask,
        q_size=q_size,
        k_size=k_size,
        context=context,
    )
    return q_size, k_size, context


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    query_mask: Tensor | None,
    norm: int,
    token_scale: float | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output (B,H,N,E), laid out by tokens, and the sums."""
    q, k, v = map(native.dense, (q, k, v))
    B, H, N, D = q.shape
    o, gain = native.by_tokens(q, v), _gain(B, N, query_mask, token_scale)
    q_size, k_size, context = room(B, H, D, v.shape[3], norm, q.device)
    native.run(
        "attend",
        native.sizes(q, k, v),
        q.dtype,
        norm=norm,
        q=native.at(q),
        k=native.at(k),
        v=native.at(v),
        out=native.at(o),
        mask=mask,
        query_mask=query_mask,
        q_size=q_size,
        k_size=k_size,
        context=context,
        gain=gain,
        eps=eps,
    )
    return o, q_size, k_size, context


def attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    query_mask: Tensor | None,
    q_size: Tensor,
    k_size: Tensor,
    context: Tensor,
    norm: int,
    token_scale: float | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q (B,H,N,D), k (B,H,M,D) and v (B,H,M,E), in their dtypes."""
    q, k, v, grad = map(native.dense, (q, k, v, grad))
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    gain = _gain(q.shape[0], q.shape[2], query_mask, token_scale)
    native.run(
        "backward",
        native.sizes(q, k, v),
        q.dtype,
        norm=norm,
        q=native.at(q),
        k=native.at(k),
        v=native.at(v),
        mask=mask,
        query_mask=query_mask,
        q_size=q_size,
        k_size=k_size,
        context=context,
        gain=gain,
        eps=eps,
        still=STILL,
        grad_out=native.at(grad),
        grad_q=native.at(dq),
        grad_k=native.at(dk),
        grad_v=native.at(dv),
    )
    return dq, dk, dv


def parts(buffer: Tensor, heads: int, number: int) -> list[native.At]:
    """Where each part (B,H,N,D) of a buffer (B,N,number H D) lies."""
    image, token, _ = buffer.stride()
    width, first = buffer.shape[2] // number, buffer.data_ptr()
    size = width * buffer.element_size()
    return [(first + part * size, image, width // heads, token) for part in range(number)]


def attend_packed(
    qkv: Tensor, heads: int, mask: Tensor | None, norm: int, token_scale: float | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output (B,N,H D) of self-attention, and the sums."""
    qkv = native.dense(qkv)
    B, N, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    D = width // heads
    o, gain = (
        torch.empty(B, N, width, dtype=qkv.dtype, device=qkv.device),
        _gain(B, N, mask, token_scale),
    )
    q_size, k_size, context = room(B, heads, D, D, norm, qkv.device)
    (q, k, v), (out,) = parts(qkv, heads, 3), parts(o, heads, 1)
    native.run(
        "attend",
        (B, heads, N, N, D, D),
        qkv.dtype,
        norm=norm,
        q=q,
        k=k,
        v=v,
        out=out,
        mask=mask,
        query_mask=mask,
        q_size=q_size,
        k_size=k_size,
        context=context,
        gain=gain,
        eps=eps,
    )
    return o, q_size, k_size, context


def attend_packed_backward(
    grad: Tensor,
    qkv: Tensor,
    heads: int,
    mask: Tensor | None,
    q_size: Tensor,
    k_size: Tensor,
    context: Tensor,
    norm: int,
    token_scale: float | None,
    eps: float,
) -> Tensor:
    """The gradient of the buffer (B, N, 3 H D), written in place of three."""
    qkv, grad = native.dense(qkv), native.dense(grad)
    B, N, D = qkv.shape[0], qkv.shape[1], qkv.shape[2] // (3 * heads)
    slopes = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    (q, k, v), (dq, dk, dv), (do,) = (
        parts(qkv, heads, 3),
        parts(slopes, heads, 3),
        parts(grad, heads, 1),
    )
    native.run(
        "backward",
        (B, heads, N, N, D, D),
        qkv.dtype,
        norm=norm,
        q=q,
        k=k,
        v=v,
        mask=mask,
        query_mask=mask,
        q_size=q_size,
        k_size=k_size,
        context=context,
        gain=_gain(B, N, mask, token_scale),
        eps=eps,
        still=STILL,
        grad_out=do,
        grad_q=dq,
        grad_k=dk,
        grad_v=dv,
    )
    return slopes


for function in (sums, attend, attend_backward, attend_packed, attend_packed_backward):
    library.impl(function.__name__, function, "CPU")


# Shapes for tracing


def _fake_attend(
    q: Tensor, _k: Tensor, v: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return native.by_tokens(q, v), *_fake_sums(q, _k, v)


def _fake_packed(qkv: Tensor, heads: int, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, N, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    D = width // heads
    return qkv.new_empty(B, N, width), *room(B, heads, D, D, 1, qkv.device)


def _fake_sums(q: Tensor, _k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    B, H, _n, D = q.shape
    return room(B, H, D, v.shape[3], 1, q.device)


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


def formula(
    qkv: tuple[Tensor, Tensor, Tensor],
    masks: tuple[Tensor | None, Tensor | None],
    norm: int,
    token_scale: float | None,
    eps: float,
) -> Tensor:
    """The operator's value by torch alone, which can be differentiated as often as one likes:
    (B,H,N,E).
    """
    name: Any = next(name for name, number in NORMS.items() if number == norm)
    widened = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in qkv)
    scale = "tokens" if token_scale == BY_COUNT else token_scale
    o = eager(
        *widened,
        norm=name,
        mask=masks[0],
        query_mask=masks[1],
        token_scale=scale,
        eps=eps,
        order="channels",
    )
    return o.to(qkv[0].dtype)


def packed_formula(
    qkv: Tensor, heads: int, mask: Tensor | None, norm: int, token_scale: float | None, eps: float
) -> Tensor:
    """The same of the buffer (B,N,3 H D): (B,N,H D)."""
    return (
        formula(unpacked(qkv, heads), (mask, mask), norm, token_scale, eps)
        .transpose(1, 2)
        .flatten(2)
    )


def slopes_by(
    value: Callable[..., Tensor], inputs: tuple[Tensor | None, ...], grad: Tensor
) -> list[Tensor | None]:
    """Gradients of a value by torch alone, themselves differentiable: what a backward pass with
    create_graph=True asks for. One for each input, of its shape; None where it asks for none.
    """
    with torch.enable_grad():
        differentiable = [x for x in inputs if x is not None and x.requires_grad]
        slopes = iter(torch.autograd.grad(value(*inputs), differentiable, grad, create_graph=True))
    return [next(slopes) if x is not None and x.requires_grad else None for x in inputs]


def by_torch() -> bool:
    """Whether a backward pass is itself differentiated or mapped; inside a compiled graph it never
    is.
    """
    return (torch.is_grad_enabled() or bool(transformed())) and not torch.compiler.is_compiling()


def _slope(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    if by_torch():
        q, k, v, *masks = ctx.saved_tensors[:5]
        by_formula = slopes_by(
            lambda *qkv: formula(qkv, (masks[0], masks[1]), *ctx.settings), (q, k, v), grad
        )
        return (*by_formula, *5 * (None,))
    slopes = torch.ops.softless.attend_backward(grad, *ctx.saved_tensors, *ctx.settings)
    return (*slopes, None, None, None, None, None)


def _keep_packed(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    qkv, ctx.heads, mask, *ctx.settings = inputs
    ctx.save_for_backward(qkv, mask, *output[1:])
    ctx.set_materialize_grads(False)  # the sums have no gradient, and need no zeros for one
    ctx.mark_non_differentiable(*output[1:])


def _slope_packed(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    qkv, mask, *sums = ctx.saved_tensors
    if by_torch():
        return (
            *slopes_by(lambda x: packed_formula(x, ctx.heads, mask, *ctx.settings), (qkv,), grad),
            *5 * (None,),
        )
    slope = torch.ops.softless.attend_packed_backward(
        grad, qkv, ctx.heads, mask, *sums, *ctx.settings
    )
    return slope, None, None, None, None, None


torch.library.register_autograd("softless::attend", _slope, setup_context=_keep, lib=library)
torch.library.register_autograd(
    "softless::attend_packed", _slope_packed, setup_context=_keep_packed, lib=library
)
for name in ("attend_backward", "attend_packed_backward"):
    native.without_gradient(
        library,
        name,
        'the native kernels have no second derivative: pass backend="eager" to softless.attend',
    )
native.without_gradient(
    library,
    "sums",
    "the native kernels' sums over tokens have no gradient of their own: take softless.attend, "
    'or backend="eager"',
)


# FLOPs, 2 per multiply-add


def _products(
    q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], queries: int, keys: int
) -> int:
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
    side = _split(qkv, heads)
    return _products(side, side, side, 1, 1)


@register_flop_formula(torch.ops.softless.attend_packed_backward)
def _packed_backward_flops(_: Any, qkv: Any, heads: int, *__: Any, **___: Any) -> int:
    side = _split(qkv, heads)
    return _products(side, side, side, 2, 2)


# The backend


def number(token_scale: str | float | None) -> float | None:
    return BY_COUNT if isinstance(token_scale, str) else token_scale


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    norm: Norm,
    mask: Tensor | None,
    query_mask: Tensor | None,
    token_scale: str | float | None,
    eps: float,
    **_: Any,
) -> Tensor:
    """(B,H,N,E): the operator's value."""
    return torch.ops.softless.attend(
        q, k, v, mask, query_mask, NORMS[norm], number(token_scale), eps
    )[0]


def run_packed(
    qkv: Tensor,
    heads: int,
    *,
    norm: Norm,
    mask: Tensor | None,
    token_scale: str | float | None,
    eps: float,
    **_: Any,
) -> Tensor:
    """(B,N,H D): self-attention of the buffer (B,N,3 H D) that holds q, k and v."""
    return torch.ops.softless.attend_packed(
        qkv, heads, mask, NORMS[norm], number(token_scale), eps
    )[0]


def summed(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, query_mask: Tensor | None, *, norm: Norm
) -> dict[str, Tensor]:
    """The summary of `softless.attention.linear`, in one sweep: "context" (B,H,D,E), and under a
    norm "q" and "k" (B,H,1,D).
    """
    q_size, k_size, context = torch.ops.softless.sums(q, k, v, mask, query_mask, NORMS[norm])
    if norm == "none":
        return {"context": context}
    return {"context": context, "q": q_size[:, :, None], "k": k_size[:, :, None]}
