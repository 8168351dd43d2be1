"""InLine attention: linear attention made injective and local by taking off the mean; softmax to
first order about the mean key.

    o = s q (k^T v) / M + (1 - s q . mean k) mean v,        s = 1 / sqrt(D)

Weights sum to one and may be negative. With K = mean(k^T v) - mean(k)^T mean(v) it is mean v + s q
K: no division per token, no floor. Han et al., "Bridging the Divide: Reconsidering Softmax and
Linear Attention", NeurIPS 2024, arXiv:2412.06590; the kernel is the identity, as in the code.
"""

# B batch, H heads, N query tokens, M key tokens, D features of q and k, E features of v

from typing import Any

from torch import Tensor

from softless.attention import averages
from softless.attention.norms import keep
from softless.attention.record import TOLERANCE, Backend, Bounds, Claims, Identity, Operator, Views
from softless.attention.streaming import Streaming, Summary, Sweep, Tokens, at_once


def reference(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, query_mask: Tensor | None = None
) -> Tensor:
    """The formula as printed, with the scale and the mean of the code. Shapes: q (B,H,N,D), k
    (B,H,M,D), v (B,H,M,E) -> (B,H,N,E).
    """
    s, q = q.shape[-1] ** -0.5, keep(q, query_mask)
    key, value, context = averages.plain(keep(k, mask), v, mask)
    return keep(s * (q @ context) + (1 - s * averages.along(q, key)) * value, query_mask)


def class_row(q: Tensor, k: Tensor, **_: Any) -> Tensor:
    """The first query's weights over all tokens: (B,H,N,D) twice -> (B,H,1,N); there is no
    floor.
    """
    scores = q[:, :, :1] @ (k - k.mean(-2, keepdim=True)).mT
    return (1 + q.shape[-1] ** -0.5 * scores) / k.shape[-2]


def summarise(tokens: Tokens, _: None, **__: Any) -> Summary:
    """Averages of the keys and values of a chunk."""
    return averages.summarise(tokens.k, tokens.v, tokens.mask)


def read(tokens: Tokens, of: averages.Averages, **_: Any) -> Tensor:
    """mean v + s q K of these queries, (B,H,n,E)."""
    q = keep(tokens.q, tokens.query_mask)
    o = of.value.to(q.dtype) + q.shape[-1] ** -0.5 * (q @ of.covariance.to(q.dtype))
    return keep(o, tokens.query_mask)


STREAMING = Streaming(
    (Sweep(summarise, averages.finish, averages.merge, without=averages.without),),
    read,
    averages.HOLDS.replace("f(k)", "k"),
    averages.MERGES,
)

SPEC = Operator(
    Identity(
        name="inline",
        title="InLine",
        summary="softmax to first order about the mean key: weights that sum to one without a "
        "division per token",
        formula="o = s q (kᵀ v) / M + (1 − s q · mean k) mean v, s = 1/√D",
        paper="arXiv:2412.06590",
        differs="The paper leaves s and 1/M out of its equation 5; the code has them. The "
        "published dynamic convolution of v is not offered: "
        "`v_conv` is the plain one.",
    ),
    reference,
    Claims(flops=averages.flops, normalises="rows"),
    streaming=STREAMING,
    views=Views(class_row=class_row),
    own=(
        Backend(
            "eager",
            at_once(STREAMING),
            bounds=Bounds(tolerance={**TOLERANCE, **averages.TOLERANCE_FLOAT32}),
        ),
    ),
)
