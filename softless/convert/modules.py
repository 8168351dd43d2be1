"""Attention modules that take the places of foreign ones, with their projections: rotary positions,
reduced keys.
"""

# B batch, H heads, N tokens, M reduced ones, D channels of a head

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn

from softless.attention.record import Grid
from softless.errors import UsageError
from softless.layers.attention import Attention
from softless.layers.leaf import leaf


class Joined(nn.Module):
    """Layers side by side, as one projection: (…, in) -> (…, sum of out).

    For layers whose weights are not read.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        sizes = [features_of(layer) for layer in layers]
        self.in_features, self.out_features = sizes[0][0], sum(out for _, out in sizes)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in) to the outputs of all layers, one after the other."""
        return torch.cat([layer(x) for layer in self.layers], dim=-1)


class Tied(nn.Module):
    """q and v of a projection to q, k and v: the mean of what it makes for q and k, and v: (…, in)
    -> (…, 2 inner).
    """

    def __init__(self, qkv: nn.Module) -> None:
        super().__init__()
        self.qkv = qkv
        self.in_features, qkv_width = features_of(qkv)
        self.out_features = qkv_width // 3 * 2

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in) to (…, 2 inner), the mean of q and k, then v."""
        q, k, v = self.qkv(x).chunk(3, -1)
        return torch.cat([(q + k) / 2, v], dim=-1)


class WithBias(nn.Module):
    """A projection to q, k and v whose biases stand apart, k having none: (…, in) -> (…, 3
    inner).
    """

    def __init__(self, qkv: nn.Module, q_bias: nn.Parameter, v_bias: nn.Parameter) -> None:
        super().__init__()
        self.qkv, self.q_bias, self.v_bias = qkv, q_bias, v_bias
        self.in_features, self.out_features = features_of(qkv)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in) to (…, 3 inner), the biases of q and v added."""
        y: Tensor = self.qkv(x)
        return y + torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias]).to(y.dtype)


class Gained(nn.Module):
    """A projection of inputs that are multiplied channel by channel, its bias not: (…, in) -> (…,
    out).
    """

    gain: Tensor

    def __init__(self, layer: nn.Module, gain: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.in_features, self.out_features = features_of(layer)
        self.register_buffer("gain", gain)

    def __getattr__(self, name: str) -> Any:
        """The layer's bias, which is not multiplied, is this one's too."""
        return getattr(self.layer, name) if name == "bias" else super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in), each channel multiplied by its number, to (…, out)."""
        y: Tensor = self.layer(x * self.gain.to(x.dtype))
        return y


class Reordered(nn.Module):
    """A projection whose inputs come with the channels of each head side by side, and which takes
    first all heads' first channel, then their second: (…, in) -> (…, out).
    """

    def __init__(self, layer: nn.Module, heads: int) -> None:
        super().__init__()
        self.layer, self.heads = layer, heads
        self.in_features, self.out_features = features_of(layer)

    def __getattr__(self, name: str) -> Any:
        """The layer's bias is this one's too."""
        return getattr(self.layer, name) if name == "bias" else super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in), head by head, to (…, out)."""
        y: Tensor = self.layer(x.unflatten(-1, (self.heads, -1)).transpose(-1, -2).flatten(-2))
        return y


def features_of(layer: nn.Module) -> tuple[int, int]:
    """Width of what a projection takes and of what it gives.

    Raises:
        UsageError: it does not say them.
    """
    features = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
    if not (isinstance(features[0], int) and isinstance(features[1], int)):
        raise UsageError(
            f"a projection is a {type(layer).__name__}, which does not say its in_features and "
            "out_features as torch.nn.Linear does: give it both"
        )
    return features[0], features[1]


class RopeAttention(Attention):
    """Attention whose q and k are turned by rotary positions before the operator sees them, as in
    EVA-02 and DINOv3.

    Prefix tokens are not turned. Arguments are those of `Attention`, and the layout of the rotary
    table.
    """

    def __init__(
        self, *args: Any, prefix: int = 1, rotate_half: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.prefix, self.rotate_half = prefix, rotate_half

    def sides(
        self, x: Tensor, mask: Tensor | None, grid: Grid | None, rope: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """As `Attention.sides` for tokens x (B, N, dim), q and k (B, H, N, D) turned.

        `rope` are sines and cosines side by side, (N - prefix, 2 D), or whatever else broadcasts to
        the tokens behind the prefix; None turns nothing.
        """
        q, k, v, key_mask = super().sides(x, mask, grid)
        if rope is None:
            return q, k, v, key_mask
        return (
            self._turned(q, rope, v),
            None if k is None else self._turned(k, rope, v),
            v,
            key_mask,
        )

    def _turned(self, x: Tensor, rope: Tensor, like: Tensor) -> Tensor:
        first, rest = x[:, :, : self.prefix], x[:, :, self.prefix :]
        return torch.cat(
            [first, apply_rot_embed_cat(rest, rope, half=self.rotate_half)], dim=2
        ).type_as(like)


class ReducedAttention(Attention):
    """PVT's and Twins' attention: q of all tokens, k and v of what a convolution or a pooling of
    the grid leaves. Called with the grid's sides, as they do.

    Arguments are those of `Attention`; `take` gives it the foreign module's projections and
    reduction.
    """

    def make_projections(self, dim: int, inner: int, bias: bool, place: dict[str, Any]) -> None:
        self.q = nn.Linear(dim, inner, bias=bias, **place)
        self.kv = nn.Linear(dim, 2 * inner, bias=bias, **place)
        self.pool = self.sr = self.reduced_norm = self.act = None

    def take(self, original: Any) -> "ReducedAttention":
        """The projections and the reduction of an attention of PVT or Twins."""
        self.q, self.kv, self.proj = original.q, original.kv, original.proj
        self.sr, self.reduced_norm = original.sr, original.norm
        self.pool, self.act = getattr(original, "pool", None), getattr(original, "act", None)
        return self

    @leaf
    def forward(self, x: Tensor, feat_size: tuple[int, int]) -> Tensor:  # type: ignore[override]
        """Attention of tokens (B, N, dim) on a grid of feat_size (height, width), row by row."""
        return super().forward(x, grid=(0, feat_size[0], feat_size[1]))

    def called_with(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Grid | None, dict[str, Any]]:
        """As `Attention.called_with`: tokens (B, N, dim) and the grid; PVT's blocks pass the grid's
        sides.
        """
        arguments = inspect.signature(self.forward).bind(*args, **kwargs).arguments
        height, width = arguments["feat_size"]
        return arguments["x"], (0, height, width), {}

    def key_grid(self, height: int, width: int) -> tuple[int, int]:
        """What the pooling or the strided convolution leaves."""
        if self.sr is None:
            return height, width
        if self.pool is not None:
            side = self.pool.output_size
            return (side, side) if isinstance(side, int) else (side[0], side[1])
        down, across = self.sr.stride
        return height // down, width // across

    def sides(
        self, x: Tensor, mask: Tensor | None, grid: Grid | None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """q (B, H, N, D) of all tokens x (B, N, dim), k and v (B, H, M, D) of the reduced ones.

        Raises:
            UsageError: a mask, which the reduction cannot honour.
        """
        if mask is not None:
            raise UsageError(
                "PVT's reduction mixes every token with its neighbours, so no mask can take one "
                "out: cut the image instead"
            )
        assert grid is not None
        (q,) = self._heads(self.q(x), 1)
        reduced = x
        if self.sr is not None and self.reduced_norm is not None:
            image = x.transpose(1, 2).unflatten(2, grid[1:])
            image = image if self.pool is None else self.pool(image)
            reduced = self.reduced_norm(self.sr(image).flatten(2).transpose(1, 2))
            reduced = reduced if self.act is None else self.act(reduced)
        k, v = self._heads(self.kv(reduced), 2)
        return q, k, v, None
