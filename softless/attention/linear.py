"""q^ (k^T^ v) for any norm over tokens: the linear family of SimA, written once.

The norms divide the small D x E product instead of the tokens:

    summary of tokens:  |q|, |k| (D numbers each), k^T v (D x E), all sums over tokens
    reader:             A = k^T v / |k| / |q|
    output:             q A
"""

# B batch, H heads, N query tokens, M key tokens, D features of q and k, E features of v

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from softless.attention.moments import number
from softless.attention.norms import EPS, Norm, divisor, keep, magnitude, normalise, product, settle
from softless.attention.options import Option
from softless.attention.record import Dims
from softless.attention.recording import recording
from softless.attention.streaming import Summary, Tokens

# up to here float16 holds the answer in the paper's scale (reference: reliability.md D3)
HALF_TOKENS = 2048

ORDER = Option(
    default="auto",
    says="which product comes first: q^ k^^T (tokens) or k^^T v (channels); auto takes the "
    "cheaper one for the shapes at hand",
    accepts=lambda value: value in {"auto", "tokens", "channels"},
    values="'auto', 'tokens' or 'channels'",
)
TOKEN_SCALE = Option(
    default=None,
    says="None is the paper's form, whose output shrinks as tokens are added; 'tokens' multiplies "
    "by the number of queries N, "
    "a number n by N / n",
    accepts=lambda value: (
        value is None
        or value == "tokens"
        or (isinstance(value, int | float) and not isinstance(value, bool) and value > 0)
    ),
    values="None, 'tokens' or a positive number of tokens",
)
FLOOR = Option(
    default=EPS,
    says="smallest norm that is divided by",
    accepts=lambda value: isinstance(value, float) and value > 0,
    values="a positive number",
)


def gain(queries: Tensor | int, token_scale: str | float | None) -> Tensor | float:
    """What token_scale multiplies the output by, for so many queries that count. A tensor (B, 1, 1,
    1) where `queries` is one, else a number.
    """
    if token_scale is None:
        return 1.0
    return queries if isinstance(token_scale, str) else queries / token_scale


def count(x: Tensor, mask: Tensor | None) -> Tensor | int:
    """How many tokens of x (B,H,N,D) count: N, or (B,1,1,1) under a mask."""
    return x.shape[-2] if mask is None else mask.sum(-1)[:, None, None, None].to(x.dtype)


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    norm: Norm,
    mask: Tensor | None,
    query_mask: Tensor | None,
    token_scale: str | float | None,
    eps: float,
    order: str,
) -> Tensor:
    """The formula as printed: normalise q and k over the tokens, then multiply. Shapes: q
    (B,H,N,D), k (B,H,M,D), v (B,H,M,E) -> (B,H,N,E).
    """
    q_hat, k_hat = normalise(q, norm, query_mask, eps), normalise(k, norm, mask, eps)
    v = keep(v, mask)
    o = (q_hat @ k_hat.mT) @ v if tokens_first(Dims.of(q, k, v), order) else q_hat @ (k_hat.mT @ v)
    return o * gain(count(q, query_mask), token_scale)


def summarise(
    tokens: Tokens, _: None, *, norm: Norm, token_scale: str | float | None, **__: Any
) -> Summary:
    """Norms and context of some tokens; every entry is a plain sum over tokens."""
    q, k = (
        settle(keep(tokens.q, tokens.query_mask), norm),
        settle(keep(tokens.k, tokens.mask), norm),
    )
    summary = {"context": product(k, keep(tokens.v, tokens.mask))}
    if norm != "none":
        summary |= {"q": magnitude(q, norm), "k": magnitude(k, norm)}
    if token_scale is not None:
        summary["queries"] = number(q, tokens.query_mask)
    return summary


def finish(
    summary: Summary, *, norm: Norm, token_scale: str | float | None, eps: float, **_: Any
) -> Tensor:
    """The D x E matrix that turns a raw query into its output: (B,H,D,E)."""
    matrix = summary["context"]
    for side in ("k", "q") if norm != "none" else ():
        matrix = matrix / divisor(summary[side], norm, eps).mT
    return (
        matrix
        if token_scale is None
        else matrix * gain(summary["queries"], token_scale).to(matrix.dtype)  # type: ignore[union-attr]
    )


def read(tokens: Tokens, matrix: Tensor, *, norm: Norm, **_: Any) -> Tensor:
    """The output of these queries: (B,H,n,D) -> (B,H,n,E)."""
    return settle(keep(tokens.q, tokens.query_mask), norm) @ matrix


def eager(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    norm: Norm,
    mask: Tensor | None,
    query_mask: Tensor | None,
    token_scale: str | float | None,
    eps: float,
    order: str,
) -> Tensor:
    """The same value with the norms folded into the smaller factor: the D x E product, or k where N
    x M is smaller. Shapes: q (B,H,N,D), k (B,H,M,D), v (B,H,M,E) -> (B,H,N,E).
    """
    if not tokens_first(Dims.of(q, k, v), order):
        tokens = Tokens(q, k, v, mask, query_mask)
        matrix = finish(
            summarise(tokens, None, norm=norm, token_scale=token_scale),
            norm=norm,
            token_scale=token_scale,
            eps=eps,
        )
        return read(tokens, matrix, norm=norm)
    q, k, v = settle(keep(q, query_mask), norm), settle(keep(k, mask), norm), keep(v, mask)
    for x in (q, k) if norm != "none" else ():
        k = k / divisor(magnitude(x, norm), norm, eps)
    return (q @ k.mT) @ v * gain(count(q, query_mask), token_scale)


def matrix(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    norm: Norm,
    token_scale: str | float | None,
    eps: float,
    summed: Callable[..., Summary] | None = None,
    **_: Any,
) -> Tensor:
    """The D x E matrix that turns each raw query into its output, (B,H,D,E); `summed` is a faster
    way to the norms and the context.
    """
    if summed is None:
        summary = summarise(Tokens(q, k, v), None, norm=norm, token_scale=token_scale)
    else:
        summary = summed(q, k, v, None, None, norm=norm) | {
            "queries": torch.tensor(q.shape[2], dtype=torch.float64)
        }
    return finish(summary, norm=norm, token_scale=token_scale, eps=eps)


def tokens_first(d: Dims, order: str) -> bool:
    """Whether (q k^T) v is taken before q (k^T v): by name, or by the multiply-adds of each; a tie
    is linear.
    """
    if order != "auto":
        return order == "tokens"
    if recording():
        return False  # an exported graph must not depend on the number of tokens it was traced at
    return d.N * d.M * (d.D + d.E) < d.D * d.E * (d.N + d.M)


def half_refusal(d: Dims, *, token_scale: str | float | None, **_: Any) -> str | None:
    """Why float16 cannot hold this output: q^ is of the order of 1/N, so it sinks below the
    smallest float16 numbers.
    """
    if token_scale == "tokens":
        return None
    n = max(d.N, d.M)
    factor = 1.0 if token_scale is None else n / float(token_scale)
    if n**1.5 <= HALF_TOKENS**1.5 * factor:
        return None
    scale = "the paper's scale" if token_scale is None else f"token_scale={token_scale}"
    return (
        f"float16 cannot hold the output of {n} tokens in {scale} (the limit is {HALF_TOKENS} "
        "tokens; merely rounding the exact answer "
        'loses it): pass out_dtype=torch.float32, use bfloat16, or set token_scale="tokens"'
    )


def power_of_two(tokens: int) -> float:
    """The largest power of two up to the number of tokens: scaling by it is exact."""
    return 2.0 ** (int(tokens).bit_length() - 1)


def class_row(q: Tensor, k: Tensor, *, norm: Norm, eps: float) -> Tensor:
    """The first query's weights over all tokens, its norm taken over all queries: (B,H,N,D) twice
    -> (B,H,1,N).
    """
    q, k = settle(q, norm), settle(k, norm)
    first = q[:, :, :1]
    for x in (q, k) if norm != "none" else ():
        first = first / divisor(magnitude(x, norm), norm, eps)
    return first @ k.mT


def flops(d: Dims) -> int:
    """Both products in the cheaper order, 2 FLOPs per multiply-add."""
    return (
        2
        * d.B
        * d.H
        * (d.N * d.M * (d.D + d.E) if tokens_first(d, "auto") else d.D * d.E * (d.N + d.M))
    )
