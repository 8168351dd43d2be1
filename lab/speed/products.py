"""The attention alone, without its projections: the two halves of the papers' Figure 1.

There SimA was made to take the rival's order of products, so that only the softmax differs.
`published_tokens` is (q^ k^T) v as softmax attention has it, `published_channels` is q^ (k^T v) as
XCA has it. `published` and `sima` choose for themselves.
"""

# B batch, H heads, N tokens, D channels of a head

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lab.operators import published
from lab.speed.contract import check, exact_of
from lab.speed.pace import paced
from lab.speed.work import DTYPES, Case, Work
from softless.attention import attend
from softless.attention.choose import backend_of
from softless.attention.kernels import native

TOKENS = (196, 576, 1024, 2304, 4096, 9216)  # images of 224 to 1536 pixels
WIDTHS = (384, 1024, 2048, 4096, 8192)
# bytes that the float32 matrices of attention may take together: batch 8 where they fit, batch 1
# otherwise
ROOM = 2**30


def _batch(entries: int) -> int:
    return 8 if 8 * 4 * entries <= ROOM else 1


TOKENS_WORKS = tuple(Work(dtype, _batch(6 * n * n), n, heads=6) for dtype in DTYPES for n in TOKENS)
SEQNORM_WORKS = tuple(
    Work(dtype, batch, n)
    for dtype in DTYPES
    for batch in (1, 8)
    for n in (196, 576, 2304, 9216)
    if batch * n <= 9216
)
WIDTH_WORKS = tuple(
    Work(dtype, _batch(width * width // heads), 196, dim=width, heads=heads)
    for dtype in DTYPES
    for heads in (8, 1)
    for width in WIDTHS
)


def softmax_matrix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The N x N matrix, its softmax, its product with v: all of (B, H, N, D)."""
    return (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1) @ v


def xca(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """XCA as timm has it at its starting temperature (arXiv:2106.09681): channels first, tokens
    last; q, k, v and the answer are (B, H, N, D).
    """
    q, k, v = (x.mT for x in (q, k, v))
    temperature = torch.ones(q.shape[1], 1, 1, dtype=q.dtype)
    weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * temperature).softmax(-1)
    return (weights @ v).mT


def in_order(q: Tensor, k: Tensor, v: Tensor, *, tokens: bool) -> Tensor:
    """The published form on (B, H, N, D): (q^ k^T) v with `tokens`, q^ (k^T v) without."""
    q, k = F.normalize(q, p=1.0, dim=-2), F.normalize(k, p=1.0, dim=-2)
    return (q @ k.mT) @ v if tokens else q @ (k.mT @ v)


Product = Callable[[Tensor, Tensor, Tensor], Tensor]
# the operator whose meaning it has, and how it is computed
OVER_TOKENS: Mapping[str, tuple[str, Product]] = {
    "sima": ("sima", partial(attend, op="sima")),
    "published": ("sima", published),
    "published_tokens": ("sima", partial(in_order, tokens=True)),
    "softmax": ("softmax", F.scaled_dot_product_attention),
    "softmax_matrix": ("softmax", softmax_matrix),
}
OVER_WIDTH: Mapping[str, tuple[str, Product]] = {
    "sima": ("sima", partial(attend, op="sima")),
    "published": ("sima", published),
    "published_channels": ("sima", partial(in_order, tokens=False)),
    "xca": ("xca", xca),
}
SEQNORM: Mapping[str, tuple[str, Product]] = {
    "seqnorm": ("seqnorm", partial(attend, op="seqnorm")),
    "seqnorm_torch": ("seqnorm", partial(attend, op="seqnorm", backend="eager")),
    "sima": ("sima", partial(attend, op="sima")),
}
SAID = {
    "seqnorm_torch": "attend, eager",
    "published": "published formula, torch",
    "published_tokens": "published formula, (q kᵀ) v",
    "published_channels": "published formula, q (kᵀ v)",
    "softmax": "fused SDPA",
    "softmax_matrix": "N x N matrix held",
    "xca": "timm's formula, torch",
}


def measure(work: Work, seconds: float, rivals: Mapping[str, tuple[str, Product]]) -> Case:
    """The products on q, k and v that lie in one buffer, as a projection leaves them."""
    inner = torch.randn(
        work.batch,
        work.tokens,
        3,
        work.heads,
        work.dim // work.heads,
        generator=torch.Generator().manual_seed(4),
    )
    q, k, v = inner.to(work.kind).permute(2, 0, 3, 1, 4).unbind(0)
    calls = {name: _call(run, q, k, v) for name, (_, run) in rivals.items()}
    last = [x[-1:].double() for x in (q, k, v)]
    with torch.inference_mode():
        true = {op: exact_of(op, *last) for op, _ in rivals.values()}
        errors = {
            name: check(name, call(), true[rivals[name][0]], work, work.kind)
            for name, call in calls.items()
        }
    del true, last
    paths = {name: SAID.get(name) or way(name, q, k, v) for name in rivals}
    return Case(work, errors, paths, paced(calls, seconds))


over_tokens = partial(measure, rivals=OVER_TOKENS)
over_width = partial(measure, rivals=OVER_WIDTH)
seqnorm = partial(measure, rivals=SEQNORM)


def way(op: str, q: Tensor, k: Tensor, v: Tensor) -> str:
    """The backend that `attend` takes for q (B, H, N, D), k and v, and which kernel of it."""
    name = backend_of(q, k, v, op).name
    return (
        f"attend, {name} "
        f"{native.path_of(q.dtype, q.shape[-1], v.shape[-1]) if name == 'native' else ''}"
    ).rstrip()


def _call(run: Product, q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.inference_mode():
            return run(q, k, v)

    return call
