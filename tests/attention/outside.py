"""The simplest linear operator, written as an outside package would: relu + 0.1, six imports, seven
fields.
"""

from typing import Any

from torch import Tensor

from softless.attention import Claims, Identity, Operator, Streaming, Tokens, keep


def feature(x: Tensor, mask: Tensor | None) -> Tensor:
    return keep(x.relu() + 0.1, mask)


def reference(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, query_mask: Tensor | None = None
) -> Tensor:
    """o = f(q) (f(k)^T v) / f(q) sum f(k), f(x) = relu(x) + 0.1."""
    f_q, f_k = feature(q, query_mask), feature(k, mask)
    weights = (f_q * f_k.sum(-2, keepdim=True)).sum(-1, keepdim=True).clamp_min(1e-12)
    return f_q @ (f_k.mT @ keep(v, mask)) / weights


def summarise(tokens: Tokens, _: None = None) -> dict[str, Tensor]:
    f = feature(tokens.k, tokens.mask)
    return {"context": f.mT @ keep(tokens.v, tokens.mask), "total": f.sum(-2, keepdim=True)}


def read(tokens: Tokens, sums: dict[str, Tensor]) -> Tensor:
    f = feature(tokens.q, tokens.query_mask)
    return f @ sums["context"] / (f * sums["total"]).sum(-1, keepdim=True).clamp_min(1e-12)


def linear(name: str = "mine") -> Operator:
    """The record, under a name of its own."""
    return Operator(
        Identity(name, "relu plus a tenth"),
        reference,
        Claims(flops=lambda d: 2 * d.B * d.H * d.D * d.E * (d.N + d.M), normalises="rows"),
        streaming=Streaming.sums(summarise, read),
    )


def quadratic(name: str = "squared", **more: Any) -> Operator:
    """A formula that is not linear and has no stream: relu(q k^T)^2 v / M."""

    def squared(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Tensor | None = None,
        query_mask: Tensor | None = None,
    ) -> Tensor:
        q, k, v = keep(q, query_mask), keep(k, mask), keep(v, mask)
        keys = k.shape[-2] if mask is None else mask.sum(-1)[:, None, None, None].clamp_min(1)
        return (q @ k.mT).relu().square() @ v / keys

    claims = Claims(flops=lambda d: 2 * d.B * d.H * d.N * d.M * (d.D + d.E), growth="N^2")
    return Operator(Identity(name, "squares of positive scores"), squared, claims, **more)
