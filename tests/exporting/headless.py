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

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.form, self.why, self.inversion = "head-free", "", None
        for block in model.blocks:  # type: ignore[union-attr]
            block.attn = HeadFreeAttention(block.attn)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


class HeadFreeAttention(nn.Module):
    def __init__(self, attention: Any) -> None:
        super().__init__()
        weight, bias = attention.qkv.weight.data, attention.qkv.bias.data
        channels = weight.shape[1]
        for place, name in enumerate("qkv"):
            layer = nn.Linear(channels, channels)
            layer.weight.data = weight[place * channels : (place + 1) * channels].clone()
            layer.bias.data = bias[place * channels : (place + 1) * channels].clone()
            setattr(self, name, layer)
        self.proj = attention.proj
        head = torch.arange(channels) // (channels // attention.num_heads)
        self.register_buffer("same_head", (head[:, None] == head).float())

    def forward(self, x: Tensor, **_: object) -> Tensor:
        q, k, v = (self.get_submodule(name)(x) for name in "qkv")
        sizes = q.abs().sum(1, keepdim=True) * k.abs().sum(1, keepdim=True)
        gain = x.shape[1] / sizes.clamp_min(1e-20)
        output: Tensor = self.proj((q * gain) @ ((k.mT @ v) * self.get_buffer("same_head")))
        return output
