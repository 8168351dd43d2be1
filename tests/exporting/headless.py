"""A SimA ViT without split heads: the smallest graph there is, and the one that SmoothQuant
breaks.
"""

# B batch, N tokens, H heads, C = H D channels

from typing import Any

import torch
from torch import Tensor, nn


class HeadFree(nn.Module):
    """A SimA ViT of timm's with k^T v computed for all pairs of channels, and those of two heads
    set to zero.

    The same answers, in products of (B, N, C) and (B, C, C) alone.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.form, self.why, self.inversion = "head-free", "", None
        for block in model.blocks:
            block.attn = HeadFreeAttention(block.attn)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 1, H, W) -> logits."""
        logits: Tensor = self.model(images)
        return logits


class HeadFreeAttention(nn.Module):
    """q^ (k^^T v) of all channels at once: (B, N, C) -> (B, N, C)."""

    same_head: Tensor

    def __init__(self, attention: Any) -> None:
        super().__init__()
        channels = attention.qkv.weight.shape[1]
        self.q, self.k, self.v = (nn.Linear(channels, channels) for _ in range(3))
        parts = zip(attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3), strict=True)
        for layer, (weight, bias) in zip((self.q, self.k, self.v), parts, strict=True):
            layer.weight.data, layer.bias.data = weight.detach().clone(), bias.detach().clone()
        self.proj = attention.proj
        head = torch.arange(channels) // (channels // attention.num_heads)
        self.register_buffer("same_head", (head[:, None] == head).float())

    def forward(self, x: Tensor, **_: object) -> Tensor:
        """Tokens (B, N, C) -> what the branch adds."""
        q, k, v = self.q(x), self.k(x), self.v(x)
        sizes = q.abs().sum(1, keepdim=True) * k.abs().sum(1, keepdim=True)
        gain = x.shape[1] / sizes.clamp_min(1e-20)
        added: Tensor = self.proj((q * gain) @ ((k.mT @ v) * self.same_head))
        return added
