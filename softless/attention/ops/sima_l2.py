"""SimA with l2 norms over tokens: the paper's ablation (82.1 -> 79.2 on XCiT-S12/16).

    o = q^ (k^^T v),        x^_nd = x_nd / sqrt(sum_n x_nd^2)

Koohpayegani and Pirsiavash, arXiv:2206.08898, section 4.6.
"""

from functools import partial

from torch import Tensor

from softless.attention import linear, linear_record
from softless.attention.norms import EPS, TokenNorm
from softless.attention.record import Claims, Identity, Operator, Views


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    order: str = "auto",
    eps: float = EPS,
) -> Tensor:
    """The paper's section 4.6: q (B,H,N,D), k (B,H,M,D), v (B,H,M,E) -> (B,H,N,E)."""
    return linear.reference(
        q, k, v, norm="l2", mask=mask, query_mask=query_mask, token_scale=None, order=order, eps=eps
    )


SPEC = Operator(
    identity=Identity(
        name="sima_l2",
        summary="SimA with l2 norms: the paper's ablation",
        formula="o = q^ (k^ᵀ v), x^ = x / √Σₙx²",
        paper="arXiv:2206.08898 §4.6",
        title="SimAL2",
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
    streaming=linear_record.streaming("l2", token_scale=None),
    options={"order": linear.ORDER, "eps": linear.FLOOR},
    views=Views(
        hat=TokenNorm("l2"),
        class_row=partial(linear.class_row, norm="l2"),
    ),
    own=linear_record.backends("l2", token_scale=None),
)
