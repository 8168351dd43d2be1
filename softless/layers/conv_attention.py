"""CvT's attention: depthwise convolutions on the grid before the projections, of stride 1 for q and
stride 2 for k and v.

    q = W_q conv_q(x),   k = W_k conv_k(x),   v = W_v conv_v(x)       conv: 3 x 3, one filter per channel, then BatchNorm

So N_q queries attend to N_kv = ceil(h/2) ceil(w/2) keys. A class token takes no part in the
convolutions and stands first in all three. The softmax is scaled by the full width, 1 / sqrt(dim),
not by that of a head. Wu et al., "CvT: Introducing Convolutions to Vision Transformers", ICCV 2021,
arXiv:2103.15808, and its code.
"""

# B batch, N tokens, M keys and values

from typing import Any

import torch
from torch import Tensor, nn

from softless.attention.record import Grid, Operator
from softless.errors import UsageError
from softless.layers.attention import Attention
from softless.layers.plain import refuse_absent


class ConvProjection(nn.Module):
    """Depthwise convolution without bias, then BatchNorm: (B,N,dim) on a grid -> (B,M,dim); prefix
    tokens pass by.
    """

    def __init__(self, dim: int, kernel: int, stride: int, **factory_kwargs: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            dim, dim, kernel, stride, kernel // 2, groups=dim, bias=False, **factory_kwargs
        )
        self.bn = nn.BatchNorm2d(dim, **factory_kwargs)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Tokens x (B,N,dim) on a grid -> (B,M,dim)."""
        refuse_absent(x, conv=self.conv)
        prefix, height, width = grid
        image = x[:, prefix:].transpose(1, 2).unflatten(2, (height, width))
        return torch.cat(
            [x[:, :prefix], self.bn(self.conv(image)).flatten(2).transpose(1, 2)], dim=1
        )


class ConvAttention(Attention):
    """(B, N, dim) -> (B, N, dim), the host telling the grid (`set_grid`).

    Args:
        dim: Width of the tokens.
        num_heads: Number of heads.
        op: An operator whose queries may be more than its keys.
        kernel: Side of the convolutions.
        key_stride: Stride of those of k and v.
        **kwargs: What `Attention` takes.

    Raises:
        UsageError: an operator that ties q to k or needs as many queries as keys, or needs its own
            grid; v_conv, rotary.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        op: str | Operator | None = None,
        *,
        kernel: int = 3,
        key_stride: int = 2,
        **kwargs: Any,
    ) -> None:
        self.kernel, self.key_stride = kernel, key_stride
        super().__init__(dim, num_heads, op, **kwargs)
        name = self.op.name
        if (
            not self.op.cross
            or len(self.parts) < 3
            or self.op.wants("grid", self.options)
            or self.reduction is not None
        ):
            raise UsageError(
                f"operator '{name}' has no place in CvT, where many queries attend to few keys of "
                "another grid: choose one that takes them, "
                "for example sima, softmax or efficient"
            )
        if self.v_conv is not None:
            raise UsageError(
                "v_conv has no place in CvT, whose v lies on a coarser grid than its tokens: "
                "leave it out"
            )
        if self.rotary:
            raise UsageError(
                "rotary has no place in CvT, whose k lies on a coarser grid than its q: leave it "
                "out"
            )
        if "scale" in self.op.options:
            self.options = {"scale": dim**-0.5, **self.options}

    def make_projections(self, dim: int, inner: int, bias: bool, place: dict[str, Any]) -> None:
        for part in self.parts:
            setattr(
                self,
                f"conv_proj_{part}",
                ConvProjection(dim, self.kernel, 1 if part == "q" else self.key_stride, **place),
            )
            setattr(self, f"proj_{part}", nn.Linear(dim, inner, bias=bias, **place))

    @property
    def looks_at_the_grid(self) -> bool:
        """It always does."""
        return True

    def project(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """q (B,H,N,D), k and v (B,H,M,D) of tokens on the grid that the host told."""
        return self._project(x, self.grid_of(x.shape[1]))

    def sides(
        self, x: Tensor, mask: Tensor | None, grid: Grid | None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """As `project`, q (B,H,N,D), k and v (B,H,M,D); masks are refused, since the convolutions
        have already mixed a token with its neighbours.

        Raises:
            UsageError: a mask.
        """
        if mask is not None:
            raise UsageError(
                "CvT's convolutions mix every token with its neighbours, so no mask can take one "
                "out: cut the image instead"
            )
        return *self._project(x, self.grid_of(x.shape[1], grid)), None

    def _project(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (
            self._heads(
                getattr(self, f"proj_{part}")(getattr(self, f"conv_proj_{part}")(x, grid)), 1
            )[0]
            for part in self.parts
        )
        return self.q_norm(q), self.k_norm(k), v

    def key_grid(self, height: int, width: int) -> tuple[int, int]:
        """The coarser grid of k and v."""
        return -(-height // self.key_stride), -(-width // self.key_stride)
