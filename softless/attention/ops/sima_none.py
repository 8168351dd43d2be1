"""SimA without any norm: the paper's control, which did not train (NaN on XCiT-S12/16).

    o = q (k^T v)

Koohpayegani and Pirsiavash, arXiv:2206.08898, section 4.6.
"""

from functools import partial

import torch
from torch import Tensor

from softless.attention import linear, linear_record
from softless.attention.norms import EPS
from softless.attention.record import TOLERANCE, Claims, Identity, Operator, Views


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    order: str = "auto",
) -> Tensor:
    """The paper's section 4.6: q (B,H,N,D), k (B,H,M,D), v (B,H,M,E) -> (B,H,N,E)."""
    return linear.reference(
        q,
        k,
        v,
        norm="none",
        mask=mask,
        query_mask=query_mask,
        token_scale=None,
        order=order,
        eps=EPS,
    )


SPEC = Operator(
    identity=Identity(
        name="sima_none",
        summary="SimA without norms: the paper's control, whose training ended in NaN there",
        formula="o = q (kᵀ v)",
        paper="arXiv:2206.08898 §4.6",
        title="SimANone",
    ),
    reference=reference,
    claims=Claims(
        flops=linear.flops,
        exps=lambda _: 0,
        growth="N",
        normalises="nothing",
        scale_free=False,
        equivariant=True,
        implied_matrix=True,
        cross=True,
    ),
    streaming=linear_record.streaming("none", token_scale=None, eps=EPS),
    options={"order": linear.ORDER},
    views=Views(
        class_row=partial(linear.class_row, norm="none"),
    ),
    own=linear_record.backends(
        "none",
        # without norms, channels of all sizes cancel in one sum
        {**TOLERANCE, torch.float32: 5e-6},
        token_scale=None,
        eps=EPS,
    ),
)
