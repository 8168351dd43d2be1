"""Class attention without softmax: the class token reads all tokens, by the weights that its
operator gives the first query.

    o = sum_m a_m v_m,    in the SimA family a_m = sum_c q^_0c k^_mc

q^ of the class token needs the queries of all tokens for its norm, so q, k and v stay one
projection of every token. Of the queries nothing else is read: the norms divide the class token's
alone. Koohpayegani and Pirsiavash, arXiv:2206.08898; eps 1e-6 as in the official code.
"""

# B batch, H heads, N tokens (the class token first), D features per head

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from softless.attention.attend import output_matrix
from softless.attention.call import autocast_off
from softless.attention.checks import check_options
from softless.attention.linear import gain
from softless.attention.overflow import in_range
from softless.attention.packed import unpacked
from softless.attention.record import Dims, Operator
from softless.attention.recording import recording
from softless.attention.registry import get
from softless.errors import UsageError
from softless.layers.leaf import leaf
from softless.layers.plain import refuse_absent, why_called
from softless.layers.routes import beyond_half, lowered, widened

EPS = 1e-6
# tokens, in widths of the tokens, from which the class token's output is read from the D x E matrix
# of all
MATRIX_FROM = 2


class ClassAttention(nn.Module):
    """(B, N, dim) -> (B, 1, dim): what the class token, first of the N, takes from all of them.

    Args:
        dim: Width of the tokens.
        num_heads: Number of heads.
        op: An operator with a class row.
        qkv_bias: Bias in the q, k, v projection.
        attn_drop: Dropout on the row of weights.
        proj_drop: Dropout after the output projection.
        token_scale: As in the operator, where it has it; what is counted are the N - 1 tokens
            behind the class token, so that one number of training tokens holds for all attention of
            a host.
        **options: Those of the operator's options that its class row takes (MALA's `feature`).

    Raises:
        UsageError: the operator has no class row, no token_scale, or an option that its class row
            does not take.
    """

    # of modules that were pickled before there was this
    row_options: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        op: str | Operator = "sima",
        *,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        token_scale: str | float | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.op = get(op)
        if self.op.class_row is None:
            raise UsageError(
                f"operator '{self.op.name}' has no form for class attention: keep the host's own"
            )
        if foreign := set(options) - set(self.op.of_row(options)):
            raise UsageError(
                f"class attention by operator '{self.op.name}' takes no option {min(foreign)}: "
                "leave it out"
            )
        scaled = {} if token_scale is None else {"token_scale": token_scale}
        self.options = check_options(self.op, options | scaled)
        self.row_options = self.op.of_row(self.options)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    @leaf
    def forward(self, x: Tensor) -> Tensor:
        """The class token of x (B,N,dim), past attention to all tokens: (B,1,dim)."""
        refuse_absent(x, qkv=self.qkv, proj=self.proj)
        scale = self.options.get("token_scale")
        qkv = self.qkv(x)
        dtype = qkv.dtype
        with autocast_off(qkv.device.type):
            o = self._by_matrix(qkv) if self._takes_matrix(qkv) else self._by_row(qkv)
            o = (o * gain(x.shape[1] - 1, scale)).transpose(1, 2).flatten(2)
        if dtype == torch.float16 and beyond_half(self.op, dims := self._dims(x), self.options):
            if recording() or self.op.half_lift is None:
                return self.proj_drop(widened(self.proj, o).to(x.dtype))
            lift = self.op.half_lift(dims)
            return self.proj_drop(lowered(self.proj, (o * lift).to(dtype), lift, x.dtype))
        return self.proj_drop(self.proj(in_range(o, dtype, self.op.name, qkv)))

    def _dims(self, x: Tensor) -> Dims:
        width = x.shape[2] // self.num_heads
        return Dims(x.shape[0], self.num_heads, x.shape[1], x.shape[1], width, width)

    def _by_row(self, qkv: Tensor) -> Tensor:
        """The class token's weights over all tokens, times v: (B,H,1,D)."""
        q, k, v = unpacked(qkv, self.num_heads)
        dtype = torch.promote_types(qkv.dtype, torch.float32)
        return self.attn_drop(self.row(q.to(dtype), k.to(dtype))) @ v.to(dtype)

    def row(self, q: Tensor, k: Tensor) -> Tensor:
        """The first query's weights over all tokens, before token_scale: (B,H,N,D) twice ->
        (B,H,1,N).
        """
        assert self.op.class_row is not None
        return self.op.class_row(q, k, eps=EPS, **self.row_options)

    def _by_matrix(self, qkv: Tensor) -> Tensor:
        """The same as q^ (k^^T v), all tokens read once: (B,H,1,D)."""
        options: dict[str, Any] = {"eps": EPS} if "eps" in self.op.options else {}
        matrix = output_matrix(qkv, self.num_heads, self.op, **options)
        if matrix is None:  # float32 does not hold its sums
            return self._by_row(qkv.double())
        q, _, _ = unpacked(qkv[:, :1], self.num_heads)
        return q.to(matrix.dtype) @ matrix

    def _takes_matrix(self, qkv: Tensor) -> bool:
        """In inference, where the tokens are many; dropout acts on the row, and an exported graph
        holds it, whatever their number.
        """
        if recording() or torch.is_grad_enabled() or not self.op.has_matrix:
            return False
        drops = (self.training and self.attn_drop.p > 0) or why_called(self.attn_drop)
        return bool(qkv.shape[1] >= MATRIX_FROM * qkv.shape[2] // 3) and not drops
