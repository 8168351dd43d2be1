"""What papers bundle with an operator, as parts of the attention module that any operator can
have.
"""

# B batch, H heads, N tokens, D channels of a head, h x w grid

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softless.attention.record import Grid
from softless.errors import UsageError, unknown
from softless.layers.plain import refuse_absent

Filters = Literal["head", "channel", "shared"]
FILTERED: Mapping[str, str] = MappingProxyType({
    "head": "head",
    "channel": "channel",
    "shared": "channel of a head",
})
Gate = Literal["sigmoid", "linear", "silu"]


def _itself(x: Tensor) -> Tensor:
    return x


# what is made of a projection of the input before the output is multiplied by it: timm's; that of
# MALA, RALA and PolaFormer; MILA's
GATES: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType({
    "sigmoid": torch.sigmoid,
    "linear": _itself,
    "silu": F.silu,
})
# what `softless list operators NAME` says of them
COMPANIONS: Mapping[str, str] = MappingProxyType({
    "v_conv": "side of a depthwise convolution of v on the grid, added to the output; "
    "v_conv_filters says who shares a filter",
    "gated": "output times a projection of the input: 'sigmoid' (True), 'linear' or 'silu'",
    "rotary": "q and k turned by row and column before the operator",
})


def kind_of_gate(gated: bool | str) -> str:
    """The name of a gate, empty for none; True is timm's.

    Raises:
        UsageError: an unknown gate.
    """
    if isinstance(gated, bool):
        return "sigmoid" if gated else ""
    if gated not in GATES:
        raise unknown("gate (gated=)", str(gated), GATES)
    return gated


class HeadConv(nn.Module):
    """Depthwise convolution of v over the grid: (B,H,N,D) -> (B,H,N,D).

    `filters` says which channels share one:

    - "head": one filter per head, shared by its channels, as in SOFT's code (arXiv:2110.11945);
    - "channel": one per channel of every head, called lepe by MALA (arXiv:2507.00698), RALA and
      MHLA;
    - "shared": one per channel of a head, shared by the heads, as in FLatten (arXiv:2308.00442) and
      SLAB.

    Without a bias. Prefix tokens have no place on the grid and get 0; masked tokens add nothing and
    get 0.

    Raises:
        UsageError: an even side, whose output would not lie on the grid; unknown filters.
    """

    def __init__(
        self,
        num_heads: int,
        side: int,
        head_dim: int = 1,
        filters: Filters = "head",
        device: object = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if side < 1 or side % 2 == 0:
            raise UsageError(
                f"v_conv={side}: the side of the convolution must be odd, for example 3"
            )
        counts = {"head": num_heads, "channel": num_heads * head_dim, "shared": head_dim}
        if filters not in counts:
            raise unknown("v_conv_filters", str(filters), counts)
        self.filters = filters
        self.weight = nn.Parameter(
            torch.empty(counts[filters], 1, side, side, device=device, dtype=dtype)  # type: ignore[call-overload]
        )
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # as torch.nn.Conv2d starts

    def forward(self, v: Tensor, mask: Tensor | None, grid: Grid) -> Tensor:
        """v (B,H,N,D) convolved on the grid; 0 for prefix tokens and those outside mask (B,N)."""
        refuse_absent(v, v_conv=self)
        prefix, height, width = grid
        if mask is not None:
            v = v.masked_fill(~mask[:, None, :, None], 0)
        B, H, _, D = v.shape
        # filters lie along one axis, and what shares them in the batch: (B, D, H) by head,
        # (B, H, D) by channel of a head
        by_head = self.filters == "head"
        image = v[:, :, prefix:].unflatten(2, (height, width)).permute(0, 4, 1, 2, 3)
        image = image if by_head else image.transpose(1, 2)
        count = len(self.weight)
        out = F.conv2d(
            image.reshape(-1, count, height, width),
            self.weight.to(v.dtype),
            padding=self.weight.shape[-1] // 2,
            groups=count,
        )
        out = (
            out.reshape(B, D, H, height * width)
            if by_head
            else out.reshape(B, H, D, height * width).transpose(1, 2)
        )
        out = F.pad(out.permute(0, 2, 3, 1), (0, 0, prefix, 0))
        return out if mask is None else out.masked_fill(~mask[:, None, :, None], 0)

    @property
    def said(self) -> str:
        """In words."""
        side = self.weight.shape[-1]
        return f"convolution of v ({side} x {side}, filters by {FILTERED[self.filters]})"

    def extra_repr(self) -> str:
        return f"side={self.weight.shape[-1]}, filters={self.filters!r}"


class Reduction(nn.Module):
    """Spatial reduction of the tokens before k and v: Conv2d(dim, dim, r, stride r) and LayerNorm
    on the grid: (B,N,dim) -> (B,M,dim).

    As in PVT (arXiv:2102.12122), which SOFT's Table 2 calls Linformer. Prefix tokens bypass the
    convolution and the norm, and what whole windows leave over at the right and the bottom is not
    read, as in a strided convolution. A masked token is zero in its window; a window in which none
    counts is masked.
    """

    def __init__(
        self, dim: int, side: int, device: object = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.side = side
        self.conv = nn.Conv2d(dim, dim, side, stride=side, device=device, dtype=dtype)
        self.norm = nn.LayerNorm(dim, device=device, dtype=dtype)

    @property
    def said(self) -> str:
        """In words."""
        return f"reduction of k and v ({self.side} x {self.side})"

    def forward(self, x: Tensor, mask: Tensor | None, grid: Grid) -> tuple[Tensor, Tensor | None]:
        """Tokens x (B,N,dim) and mask (B,N) -> (B,M,dim) and (B,M), None where there is no mask.

        Raises:
            UsageError: the grid is smaller than one window.
        """
        refuse_absent(x, conv=self.conv)
        prefix, height, width = grid
        if min(height, width) < self.side:
            raise UsageError(
                f"grid {height} x {width} has no window of {self.side} x {self.side}: choose a "
                "smaller ratio"
            )
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        image = x[:, prefix:].transpose(1, 2).unflatten(2, (height, width))
        reduced = torch.cat(
            [x[:, :prefix], self.norm(self.conv(image).flatten(2).transpose(1, 2)).to(x.dtype)],
            dim=1,
        )
        if mask is None:
            return reduced, None
        cells = mask[:, None, prefix:].unflatten(2, (height, width)).to(torch.float32)
        cell_mask = F.max_pool2d(cells, self.side).flatten(1) > 0
        return reduced, torch.cat([mask[:, :prefix], cell_mask], dim=1)
