"""Linear attention by relu: EfficientViT's and SANA's.

    o = relu(q) (relu(k)^T v) / max(relu(q) . sum relu(k), eps)

Equal to cosFormer without its re-weighting. A query without a positive feature gives 0. Sums are
float32: in float16 they overflow to infinity at some hundred tokens, and the division makes zeros
of them. There is no native kernel: the sweeps of the SimA family also sum
|q|, which is not needed here, and know no relu, so that q and k would be read and written once more.
Cai et al., "EfficientViT: Multi-Scale Linear Attention for High-Resolution Dense Prediction", ICCV
2023, arXiv:2205.14756.
"""

# B batch, H heads, N query tokens, M key tokens, D features of q and k, E features of v

from typing import Any

import torch
from torch import Tensor

from softless.attention import cosine
from softless.attention.averages import flops
from softless.attention.norms import keep
from softless.attention.record import TOLERANCE, Backend, Bounds, Claims, Identity, Operator, Views
from softless.attention.streaming import Streaming, Summary, Tokens, at_once


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """The formula as printed, its floor by a maximum. Shapes: q (B,H,N,D), k (B,H,M,D), v (B,H,M,E)
    -> (B,H,N,E).
    """
    f_q, f_k = keep(q, query_mask).relu(), keep(k, mask).relu()
    weights = (f_q * f_k.sum(-2, keepdim=True)).sum(-1, keepdim=True).clamp_min(eps)
    return f_q @ (f_k.mT @ keep(v, mask)) / weights


def class_row(q: Tensor, k: Tensor, *, eps: float) -> Tensor:
    """The first query's weights over all tokens: (B,H,N,D) twice -> (B,H,1,N)."""
    weights = q[:, :, :1].relu() @ k.relu().mT
    return weights / weights.sum(-1, keepdim=True).clamp_min(eps)


def summarise(tokens: Tokens, _: None, **__: Any) -> Summary:
    """Both sums over the keys of a chunk."""
    return cosine.summarise(tokens.k, tokens.v, None, tokens.mask)


def read(tokens: Tokens, summary: Summary, *, eps: float) -> Tensor:
    """The output of these queries, (B,H,n,E)."""
    return cosine.read(tokens.q, summary, None, tokens.query_mask, eps)


STREAMING = Streaming.sums(summarise, read, holds="Σrelu(k)ᵀv (D x E) and Σrelu(k) (D)")

SPEC = Operator(
    Identity(
        name="relu_linear",
        summary="relu features, rows divided by their sums",
        formula="o = relu(q) (relu(k)ᵀ v) / relu(q) Σ relu(k)",
        paper="arXiv:2205.14756",
        differs="eps floors the sum of weights and is not added to it, so that rows sum to one "
        "exactly. The published modules' convolutions of "
        "q, k and v (multi-scale tokens) are not part of the operator.",
    ),
    reference,
    Claims(flops=flops, normalises="rows"),
    streaming=STREAMING,
    options={"eps": cosine.FLOOR},
    views=Views(class_row=class_row),
    own=(
        Backend(
            "eager", at_once(STREAMING), bounds=Bounds(tolerance={**TOLERANCE, torch.float32: 2e-6})
        ),
    ),
)
