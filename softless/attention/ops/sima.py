"""SimA: divide q and k by their l1 norm over tokens; no exponential and no row sum.

    o_n = sum_m <q^_n, k^_m> v_m,        x^_nd = x_nd / sum_n |x_nd|

Linear in N because (q^ k^^T) v is computed as q^ (k^^T v).
Koohpayegani and Pirsiavash, "SimA: Simple Softmax-free Attention", WACV 2024, arXiv:2206.08898.
"""

from functools import partial

from torch import Tensor

from softless.attention import linear, linear_record
from softless.attention.norms import EPS, TokenNorm
from softless.attention.record import Claims, Half, Identity, Operator, Views


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    token_scale: str | float | None = None,
    order: str = "auto",
    eps: float = EPS,
) -> Tensor:
    """The paper's section 2.2: q (B,H,N,D), k (B,H,M,D), v (B,H,M,E) -> (B,H,N,E). `token_scale`
    multiplies by N or N / N_train (ours, design §4).
    """
    return linear.reference(
        q,
        k,
        v,
        norm="l1",
        mask=mask,
        query_mask=query_mask,
        token_scale=token_scale,
        order=order,
        eps=eps,
    )


SPEC = Operator(
    identity=Identity(
        name="sima",
        summary="l1 norm over tokens in place of softmax over keys",
        formula="o = q^ (k^ᵀ v), x^ = x / Σₙ|x|",
        paper="arXiv:2206.08898",
        title="SimA",
    ),
    reference=reference,
    claims=Claims(
        flops=linear.flops,
        exps=lambda _: 0,
        growth="N",
        normalises="tokens",
        scale_free=True,
        equivariant=True,
        implied_matrix=True,
        cross=True,
    ),
    streaming=linear_record.streaming("l1"),
    options={"token_scale": linear.TOKEN_SCALE, "order": linear.ORDER, "eps": linear.FLOOR},
    half=Half(
        half_refusal=linear.half_refusal,
        half_lift=lambda d: linear.power_of_two(d.N),
    ),
    views=Views(
        hat=TokenNorm("l1"),
        class_row=partial(linear.class_row, norm="l1"),
    ),
    own=linear_record.backends("l1"),
)
