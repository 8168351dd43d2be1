"""Self-attention of many tokens in training with both its projections, so that much of what lies
between them is never there whole.

    forward:    q, k, v = x W^T + b;  A = k^T v gain / |q| / |k| per head;  P = A W_o^T, its heads stacked;  y = q P + b_o
    backward:   G = q^T dy is the gradient of P, and goes on to A and W_o; then, a stretch of tokens at a time,
                dq = dy P^T + slope of |q|,  dk = v dC^T + slope of |k|,  dv = k dC,  dx = (dq, dk, dv) W,  dW += (dq, dk, dv)^T x

Held are x, the buffer of q, k and v, and the sums: neither o nor its gradient ever exists, and
those of q, k and v only for a stretch. The products are as many as without: G stands in place of
both o^T dy and q^T do.
"""

# B images, N tokens, H heads, D features of a head, W = H D

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from softless.attention.kernels import native
from softless.attention.kernels.formulas import register_flop_formula
from softless.attention.kernels.linear import (
    BY_COUNT,
    NORMS,
    by_torch,
    library,
    number,
    packed_formula,
    parts,
    room,
    slopes_by,
)
from softless.attention.norms import EPS, STILL, Norm, seen
from softless.attention.packed import absorbed

STRETCH = (
    # tokens whose gradients of q, k and v exist at a time: the products are at their speed, and
    # little is held
    1536
)

library.define(
    "self_attention(Tensor x, Tensor weight, Tensor? bias, Tensor proj, Tensor? proj_bias, int "
    "heads, int norm, float? token_scale, float eps) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
library.define(
    "self_attention_backward(Tensor grad, Tensor x, Tensor weight, Tensor proj, Tensor qkv, "
    "Tensor q_size, Tensor k_size, Tensor context, "
    "int norm, float? token_scale, float eps, bool for_x, bool for_weights) -> (Tensor, Tensor, "
    "Tensor, Tensor, Tensor)"
)


def self_attention(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    proj: Tensor,
    proj_bias: Tensor | None,
    heads: int,
    norm: int,
    token_scale: float | None,
    eps: float,
) -> tuple[Tensor, ...]:
    """Output (B,N,dim_out), the buffer of q, k and v (B,N,3 W), and the sums."""
    qkv = F.linear(x, weight, bias)
    B, N, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    D = width // heads
    sums = room(B, heads, D, D, norm, x.device)
    q, k, v = parts(qkv, heads, 3)
    native.run(
        "sums",
        (B, heads, N, N, D, D),
        x.dtype,
        norm=norm,
        q=q,
        k=k,
        v=v,
        q_size=sums[0],
        k_size=sums[1],
        context=sums[2],
    )
    matrix = sums[2] * _factor(*sums[:2], N, norm, token_scale, eps)
    merged = absorbed(matrix, proj).to(x.dtype)
    y = torch.empty(B, N, len(proj), dtype=x.dtype, device=x.device)
    for image in range(B):
        torch.mm(qkv[image, :, :width], merged[image], out=y[image])
    return (y if proj_bias is None else y.add_(proj_bias)), qkv, *sums


def self_attention_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    proj: Tensor,
    qkv: Tensor,
    q_size: Tensor,
    k_size: Tensor,
    context: Tensor,
    norm: int,
    token_scale: float | None,
    eps: float,
    for_x: bool,
    for_weights: bool,
) -> tuple[Tensor, ...]:
    """Gradients of x, of the weight and the bias that made q, k and v, and of those of the output
    projection; empty where not asked for. Here x is (B, N, dim), grad (B, N, dim_out), qkv (B, N, 3
    H D), context (B,H,D,D).
    """
    B, H, D, _ = context.shape
    N, width, dtype = x.shape[1], H * D, x.dtype
    stretch = -(-N // max(1, round(N / STRETCH)))
    stretches = [
        (image, slice(first, min(N, first + stretch)))
        for image in range(B)
        for first in range(0, N, stretch)
    ]

    factor = _factor(q_size, k_size, N, norm, token_scale, eps)
    matrix = context * factor
    merged = absorbed(matrix, proj)
    slope_of_merged = torch.zeros_like(merged)
    for image, at in stretches:
        slope_of_merged[image] += qkv[image, at, :width].T @ grad[image, at]
    slope_of_heads = slope_of_merged.unflatten(1, (H, D))
    slope_of_matrix = slope_of_heads @ proj.float().unflatten(1, (H, D)).permute(1, 0, 2)
    along = (slope_of_matrix * matrix).sum(-1)
    q_slope, q_still = _slope_of_size(along, q_size, norm, eps)
    k_slope, k_still = _slope_of_size(along, k_size, norm, eps)
    slope_of_context = slope_of_matrix * factor

    back = merged.masked_fill(q_still.flatten(1)[..., None], 0).mT.to(dtype).contiguous()
    q_slope = q_slope.flatten(1).to(dtype)
    dx = torch.empty_like(x) if for_x else x.new_empty(0)
    dweight, dbias, dproj_bias = (
        torch.zeros(shape, device=x.device) for shape in (weight.shape, len(weight), len(proj))
    )
    buffer = torch.empty(stretch, 3 * width, dtype=dtype, device=x.device)
    for image, at in stretches:
        tokens = qkv[image, at]
        n, slopes = len(tokens), buffer[: len(tokens)]
        torch.mm(grad[image, at], back[image], out=slopes[:, :width])
        if norm:
            slopes[:, :width].addcmul_(
                tokens[:, :width].sign() if norm == NORMS["l1"] else tokens[:, :width],
                q_slope[image],
            )
        (q, k, v), (_, dk, dv) = parts(tokens[None], H, 3), parts(slopes[None], H, 3)
        native.run(
            "spread",
            (1, H, n, n, D, D),
            dtype,
            norm=norm,
            q=q,
            k=k,
            v=v,
            k_size=k_slope[image],
            context=slope_of_context[image],
            grad_k=dk,
            grad_v=dv,
        )
        if k_still[image].any():
            slopes[:, width : 2 * width].masked_fill_(k_still[image].flatten(), 0)
        if for_x:
            torch.mm(slopes, weight, out=dx[image, at])
        if for_weights:
            dweight += slopes.T @ x[image, at]
            # in float32 inside; asked for float32, torch would widen them all first
            dbias += slopes.sum(0)
            dproj_bias += grad[image, at].sum(0)
    if not for_weights:
        return dx, *(x.new_empty(0) for _ in range(4))
    dproj = torch.einsum("bhde,bhdo->ohe", matrix, slope_of_heads).flatten(1)
    return dx, dweight.to(dtype), dbias.to(dtype), dproj.to(dtype), dproj_bias.to(dtype)


def _norms(size: Tensor, norm: int) -> Tensor:
    return size.sqrt() if norm == NORMS["l2"] else size


def _factor(
    q_size: Tensor, k_size: Tensor, queries: int, norm: int, token_scale: float | None, eps: float
) -> Tensor:
    """What the rows of k^T v are multiplied by: (B,H,D,1)."""
    gain = (
        1.0
        if token_scale is None
        else queries
        if token_scale == BY_COUNT
        else queries / token_scale
    )
    if not norm:
        return torch.full((*q_size.shape, 1), gain, device=q_size.device)
    q_norm, k_norm = (_norms(seen(size).double(), norm).clamp_min(eps) for size in (q_size, k_size))
    return (gain / (q_norm * k_norm)).float()[..., None]


def _slope_of_size(along: Tensor, size: Tensor, norm: int, eps: float) -> tuple[Tensor, Tensor]:
    """What multiplies sign(x) (l1) or x (l2) in a gradient, and the channels that get none at all:
    (B,H,D) each (`features.settle`).
    """
    if not norm:
        return torch.zeros_like(size), torch.zeros_like(size, dtype=torch.bool)
    norms = _norms(size, norm)
    median = norms.sort(-1).values[..., (norms.shape[-1] - 1) // 2, None]
    still = norms <= (STILL * median).clamp_min(EPS)
    by = norms.square() if norm == NORMS["l2"] else norms
    return torch.where(still | (norms <= eps), 0.0, -along / by), still


for function in (self_attention, self_attention_backward):
    library.impl(function.__name__, function, "CPU")


def _fake(
    x: Tensor,
    weight: Tensor,
    _b: Tensor | None,
    proj: Tensor,
    _o: Tensor | None,
    heads: int,
    *_: Any,
) -> tuple[Tensor, ...]:
    B, N, _dim = x.shape
    D = len(weight) // (3 * heads)
    return (
        x.new_empty(B, N, len(proj)),
        x.new_empty(B, N, len(weight)),
        *room(B, heads, D, D, 1, x.device),
    )


def _fake_backward(
    _: Tensor, x: Tensor, weight: Tensor, proj: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    for_x, for_weights = rest[-2:]
    dx = torch.empty_like(x) if for_x else x.new_empty(0)
    if not for_weights:
        return dx, *(x.new_empty(0) for _ in range(4))
    return (
        dx,
        torch.empty_like(weight),
        x.new_empty(len(weight)),
        torch.empty_like(proj),
        x.new_empty(len(proj)),
    )


torch.library.register_fake("softless::self_attention", _fake, lib=library)
torch.library.register_fake("softless::self_attention_backward", _fake_backward, lib=library)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, proj, proj_bias, ctx.heads, *ctx.settings = inputs
    ctx.save_for_backward(x, weight, proj, *output[1:], bias, proj_bias)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])


def _formula(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    proj: Tensor,
    proj_bias: Tensor | None,
    *,
    heads: int,
    settings: Any,
) -> Tensor:
    """The same value by torch alone."""
    return F.linear(
        packed_formula(F.linear(x, weight, bias), heads, None, *settings), proj, proj_bias
    )


def _slope(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    for_x, *for_weights = ctx.needs_input_grad[:5]
    x, weight, proj, *sums, bias, proj_bias = ctx.saved_tensors
    if by_torch():
        value = partial(_formula, heads=ctx.heads, settings=ctx.settings)
        return (*slopes_by(value, (x, weight, bias, proj, proj_bias), grad), *4 * (None,))
    slopes = torch.ops.softless.self_attention_backward(
        grad, x, weight, proj, *sums, *ctx.settings, for_x, any(for_weights)
    )
    return (
        *(
            slope if needed else None
            for slope, needed in zip(slopes, ctx.needs_input_grad, strict=False)
        ),
        None,
        None,
        None,
        None,
    )


torch.library.register_autograd(
    "softless::self_attention", _slope, setup_context=_keep, lib=library
)
native.without_gradient(
    library,
    "self_attention_backward",
    'the native kernels have no second derivative: pass backend="eager" to softless.attend',
)


@register_flop_formula(torch.ops.softless.self_attention)
def _flops(x: Any, weight: Any, _b: Any, proj: Any, _o: Any, heads: int, *_: Any, **__: Any) -> int:
    B, N, dim = x
    width = weight[0] // 3
    return (
        2
        * B
        * (
            N * (dim * weight[0] + width * (width // heads + proj[0]))
            + width * width // heads * proj[0]
        )
    )


@register_flop_formula(torch.ops.softless.self_attention_backward)
def _backward_flops(
    _: Any,
    x: Any,
    weight: Any,
    proj: Any,
    _qkv: Any,
    _q: Any,
    _k: Any,
    context: Any,
    *rest: Any,
    **__: Any,
) -> int:
    B, N, dim = x
    width, D = weight[0] // 3, context[2]
    for_x, for_weights = rest[-2:]
    merging = 2 * B * width * D * proj[0]
    return (
        2 * B * N * (2 * width * proj[0] + 2 * width * D + (for_x + for_weights) * dim * weight[0])
        + (2 + for_weights) * merging
    )


def run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    proj: Tensor,
    proj_bias: Tensor | None,
    heads: int,
    *,
    norm: Norm,
    token_scale: str | float | None,
    eps: float,
    **_: Any,
) -> Tensor:
    """(B,N,dim_out): self-attention of tokens (B,N,dim) by weights (3 W, dim) and (dim_out, W)."""
    return torch.ops.softless.self_attention(
        x, weight, bias, proj, proj_bias, heads, NORMS[norm], number(token_scale), eps
    )[0]
