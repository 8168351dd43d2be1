"""Linear attention by relu + 0.1: every weight is positive, so no query is left with nothing.

Installed, it registers itself.
"""

# B batch, H heads, N queries, M keys, D features of q and k, E features of v

import softless
from softless.attention import Claims, Identity, Operator, Streaming, keep


def feature(x, mask):
    return keep(x.relu() + 0.1, mask)


def reference(q, k, v, *, mask=None, query_mask=None):
    f_q, f_k = feature(q, query_mask), feature(k, mask)
    weights = (f_q * f_k.sum(-2, keepdim=True)).sum(-1, keepdim=True).clamp_min(1e-12)
    return f_q @ (f_k.mT @ keep(v, mask)) / weights


def summarise(tokens, _=None):
    f = feature(tokens.k, tokens.mask)
    return {"context": f.mT @ keep(tokens.v, tokens.mask), "total": f.sum(-2, keepdim=True)}


def read(tokens, sums):
    f = feature(tokens.q, tokens.query_mask)
    return f @ sums["context"] / (f * sums["total"]).sum(-1, keepdim=True).clamp_min(1e-12)


SPEC = Operator(
    Identity(
        name="shifted",
        summary="relu features plus a tenth, rows divided by their sums",
        formula="o = f(q) (f(k)ᵀ v) / f(q) Σ f(k), f(x) = relu(x) + 0.1",
    ),
    reference,
    Claims(flops=lambda d: 2 * d.B * d.H * d.D * d.E * (d.N + d.M), normalises="rows"),
    streaming=Streaming.sums(summarise, read),
)
softless.register(SPEC)
