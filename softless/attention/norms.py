"""Norms over tokens and masks, shared by the operators that divide q and k by a norm over the
tokens.
"""

# B batch, H heads, N tokens, D features

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from softless.attention.recording import recording
from softless.attention.transforms import transformed

Norm = Literal["l1", "l2", "none"]

# a channel whose norm is below this share of the median channel's gets no gradient
# (docs/fidelity.md)
STILL = 1e-6
EPS = 1e-12  # smallest norm anything is divided by, as in torch.nn.functional.normalize
# tokens summed at a stretch in float32: at a million tokens one long sum costs a digit
BLOCK = 1024


def keep(x: Tensor, mask: Tensor | None) -> Tensor:
    """x (B,H,N,D) with the tokens outside mask (B,N) set to zero, whatever they held (NaN too)."""
    return x if mask is None else x.masked_fill(~mask[:, None, :, None], 0)


def magnitude(x: Tensor, norm: Norm) -> Tensor:
    """The norm of each channel over the tokens, additive over tokens (the l2 norm squared):
    (B,H,N,D) -> (B,H,1,D).
    """
    return x.abs().sum(-2, keepdim=True) if norm == "l1" else (x * x).sum(-2, keepdim=True)


def root(total: Tensor, norm: Norm) -> Tensor:
    """The norm itself, (B,H,1,D), from what `magnitude` sums."""
    return total if norm == "l1" else total.sqrt()


def seen(total: Tensor) -> Tensor:
    """A sum over tokens, NaN where it overflowed: a quotient by infinity would be 0, an answer that
    looks right.

    `attend` computes what holds NaN again in float64 where it may look at values.

    Any shape is taken, that of `magnitude` (B,H,1,D) for one.
    """
    if recording():
        return total  # nobody looks there
    return total.masked_fill(total == math.inf, math.nan)


def divisor(total: Tensor, norm: Norm, eps: float) -> Tensor:
    """What a channel is divided by, from what `magnitude` sums: max(|x|, eps), NaN where the sum
    overflowed. Both are (B,H,1,D).
    """
    return root(seen(total), norm).clamp_min(eps)


def settle(x: Tensor, norm: Norm) -> Tensor:
    """x (B,H,n,D), cut off from its gradient in channels that are next to nothing.

    The gradient of x / |x| grows as 1 / |x|: 1e12 on an all-zero channel. It is the formula's while
    the channel's norm exceeds 1e-6 of the head's median channel norm, and defined as zero below
    that. Values are untouched.
    """
    if (
        norm == "none"
        or torch.jit.is_tracing()
        or not ((torch.is_grad_enabled() and x.requires_grad) or transformed())
    ):
        return x  # what is traced holds one graph, whether or not gradients are on
    size = root(magnitude(x.detach(), norm), norm)
    # sort: torch.median is not deterministic on a GPU
    median = size.sort(-1).values[..., (size.shape[-1] - 1) // 2, None]
    return torch.where(size > (STILL * median).clamp_min(EPS), x, x.detach())


def normalise(x: Tensor, norm: Norm = "l1", mask: Tensor | None = None, eps: float = EPS) -> Tensor:
    """x^ = x / max(|x|, eps), the norm of each channel over its tokens: (B,H,N,D) -> (B,H,N,D)."""
    x = settle(keep(x, mask), norm)
    return x if norm == "none" else x / divisor(magnitude(x, norm), norm, eps)


@dataclass(frozen=True)
class TokenNorm:
    """`normalise` by a norm over the tokens, (B,H,N,D) -> (B,H,N,D), as the hat of a record: what
    is streamed needs the norm itself.
    """

    norm: Norm

    def __call__(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return normalise(x, self.norm, mask)


def product(k: Tensor, v: Tensor) -> Tensor:
    """k^T v over the tokens: (B,H,M,D), (B,H,M,E) -> (B,H,D,E), in blocks so that rounding does not
    grow with M.
    """
    tokens = k.shape[-2]
    if recording() or tokens <= BLOCK:
        # an exported graph holds one product, without a branch on the number of tokens
        return k.mT @ v
    head = tokens // BLOCK * BLOCK
    blocks = (tokens // BLOCK, BLOCK)
    parts = k[..., :head, :].unflatten(-2, blocks).mT @ v[..., :head, :].unflatten(-2, blocks)
    total = (
        parts.sum(-3, dtype=torch.float64).to(parts.dtype)
        if parts.device.type != "mps"
        else parts.sum(-3)
    )
    return total + k[..., head:, :].mT @ v[..., head:, :] if head < tokens else total
