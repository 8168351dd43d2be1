"""The attentions that are timed beside ours, as modules with the projections of timm's `Attention`.

`bare`, the floor: nothing but the two linear layers. `published`: SimA as its authors' code has it.
`softmax` and `xca` are timm's.
"""

# B batch, H heads, N tokens, D channels of a head

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention as TimmAttention
from timm.models.xcit import XCA
from torch import Tensor, nn

from lab.operators import published
from softless.layers import Attention, operator_class


class Bare(nn.Module):
    """What any attention block must do: qkv(x) is computed and left, x is projected; in training,
    where every weight must get a gradient, q is.
    """

    def __init__(self, dim: int, num_heads: int = 8, qkv_bias: bool = False, **_: Any) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        """Tokens x (B, N, dim) to (B, N, dim)."""
        qkv = self.qkv(x)
        return self.proj(qkv[..., : x.shape[-1]] if self.training else x)


class Published(Bare):
    """SimA as published: q and k normalised in the input's dtype, the cheaper product first
    (arXiv:2206.08898 and its code).
    """

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        """Tokens x (B, N, dim) to (B, N, dim)."""
        q, k, v = (
            self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        )
        return self.proj(published(q, k, v).transpose(1, 2).flatten(2))


class PublishedClass(Bare):
    """Class attention of the same code: one row of weights, from the norms over all tokens."""

    EPS = 1e-6

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        """Tokens x (B, N, dim), the class token first, to its row (B, 1, dim)."""
        q, k, v = (
            self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        )
        q, k = (F.normalize(part, p=1.0, dim=-2, eps=self.EPS) for part in (q, k))
        row = (q[:, :, :1] * k).sum(-1)[:, :, None]
        return self.proj((row @ v).transpose(1, 2).flatten(2))


class SoftmaxMatrix(TimmAttention):
    """timm's attention without the fused kernel: the N x N matrix is held, as in the papers'
    days.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # timm calls it final for TorchScript; it is this very switch
        self.fused_attn = False  # type: ignore[misc]


class Merged(operator_class("sima")):  # type: ignore[misc]
    """Ours, its output projection merged from the first token on."""

    merged_from = 0


class Apart(operator_class("sima")):  # type: ignore[misc]
    """Ours, no projection ever taken into its attention."""

    merged_from = projected_from = math.inf


class Inside(operator_class("sima")):  # type: ignore[misc]
    """Ours, in training both projections taken into its attention from the first token on."""

    projected_from = 0


MODULES: Mapping[str, type[nn.Module]] = {
    "bare": Bare,
    "sima": operator_class("sima"),
    "published": Published,
    "softmax": TimmAttention,
    "xca": XCA,
    "merged": Merged,
    "apart": Apart,
    "inside": Inside,
}
OPERATOR = {  # its meaning
    **dict.fromkeys(
        ("sima", "published", "compiled", "merged", "apart", "packed", "inside"), "sima"
    ),
    "softmax": "softmax",
    "xca": "xca",
}
PATHS: Mapping[type[nn.Module], str] = {
    Bare: "linear layers alone",
    Published: "published formula, torch",
    PublishedClass: "published formula, torch",
    TimmAttention: "timm, fused SDPA",
    SoftmaxMatrix: "timm, N x N matrix held",
    XCA: "timm, torch",
}


def path_of(module: nn.Module, x: Tensor) -> str:
    """Which way a module computes its attention of x (B, N, dim) now, with or without gradients."""
    if isinstance(module, Attention):
        return module.path(x)
    return PATHS[type(module)]


def attention_modules(
    dim: int, heads: int, names: list[str], dtype: torch.dtype
) -> dict[str, nn.Module]:
    """The rivals with the same random projections, in evaluation.

    The bias of `proj` is zero: what comes out is attention alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        modules = {name: MODULES[name](dim, num_heads=heads, qkv_bias=True) for name in names}
    first: Any = modules[names[0]]
    nn.init.zeros_(first.proj.bias)
    for module in list(modules.values())[1:]:
        share_weights(first, module)
    return {name: module.to(dtype).eval() for name, module in modules.items()}


def share_weights(source: nn.Module, target: nn.Module) -> list[str]:
    """Give the target every weight of the source that has its name and shape; the names of its own
    that got none.
    """
    own = target.state_dict()
    shared = {
        name: value
        for name, value in source.state_dict().items()
        if name in own and own[name].shape == value.shape
    }
    target.load_state_dict(shared, strict=False)
    return sorted(set(own) - set(shared))
