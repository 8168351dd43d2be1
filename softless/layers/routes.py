"""Which way tokens go through an attention module: through the buffer, the merged projection or
both projections inside; in which precision.
"""

# B batch, H heads, N tokens, D features per head

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softless.attention.attend import attend_packed, attend_projected, output_matrix
from softless.attention.call import autocast_off
from softless.attention.choose import backend_of
from softless.attention.kernels import native
from softless.attention.packed import absorbed, product, unpacked
from softless.attention.record import Dims, Operator
from softless.attention.recording import recording
from softless.layers.companions import GATES
from softless.layers.plain import called, is_nothing, weights_of, why_changed

MANY = 2**40  # tokens: more than any graph meets


class Routes(nn.Module):
    """The routes of `Attention`, which makes the parts: what stands between the projections
    decides, and the number of tokens.
    """

    # tokens, in widths of the tokens, from which the output projection is merged: softless bench
    # speed --figure merging
    merged_from: ClassVar[float] = 12
    # tokens from which both projections are taken into one node in training: python -m lab speed
    # --figure projected
    projected_from: ClassVar[float] = 6144
    op: Operator
    options: dict[str, Any]
    num_heads: int
    head_dim: int
    qkv: nn.Linear  # "qv" where q and k are tied
    q_norm: nn.Module
    k_norm: nn.Module
    norm: nn.Module
    gate: nn.Linear | None
    gate_kind: str = "sigmoid"  # of modules that were pickled before there was this
    proj: nn.Linear
    proj_drop: nn.Dropout
    _plain: bool

    def extras(self, tokens: int, grid: Any = None) -> dict[str, Any]:
        """What `attend` takes beside q, k, v and masks."""
        raise NotImplementedError

    def _project_out(self, x: Tensor, o: Tensor, in_float32: bool) -> Tensor:
        """Past the norm, the gate and the output projection: joined heads (B,N,H D) ->
        (B,N,dim_out); `in_float32` says that o is.
        """
        lift = (
            self.op.half_lift(self._dims(x))
            if in_float32 and self.op.half_lift and not recording()
            else None
        )
        o = self.norm((o * lift).to(torch.float16) if lift else o)
        if self.gate is not None:
            o = o * GATES[self.gate_kind](self.gate(x))
        if lift:
            return self.proj_drop(lowered(self.proj, o, lift, x.dtype))
        return self.proj_drop(widened(self.proj, o).to(x.dtype) if in_float32 else self.proj(o))

    @property
    def reads_the_buffer(self) -> bool:
        """Whether nothing comes between the projection to q, k and v, the operator, and the joined
        heads.
        """
        return self._plain and is_nothing(self.q_norm) and is_nothing(self.k_norm)

    def _self_attention(self, x: Tensor, mask: Tensor | None, extras: dict[str, Any]) -> Tensor:
        """`forward` where q, k and v are read from the buffer that their projection wrote."""
        if self._projects(x, mask) and (y := self._projected(x, extras)) is not None:
            return self.proj_drop(y)
        qkv = self.qkv(x)
        if self._merges(qkv, mask) and (proj := weights_of(self.proj, qkv.device)) is not None:
            matrix = output_matrix(qkv, self.num_heads, self.op, **extras)
            if matrix is not None:
                return self.proj_drop(merged(qkv, matrix, proj.W, proj.b))
        in_float32 = self._needs_more_than_half(qkv)
        o = attend_packed(
            qkv,
            self.num_heads,
            self.op,
            mask,
            out_dtype=torch.float32 if in_float32 else None,
            **extras,
        )
        return self._project_out(x, o, in_float32)

    def _merges(self, qkv: Tensor, mask: Tensor | None) -> bool:
        """Whether the output projection takes the operator's matrix into its own: in inference,
        where the tokens are many.
        """
        if recording() or torch.is_grad_enabled() or qkv.dtype == torch.float16:
            return False
        return bool(
            qkv.shape[1] >= self.merged_from * self.num_heads * self.head_dim
        ) and self._is_all(mask)

    def _projects(self, x: Tensor, mask: Tensor | None) -> bool:
        """Whether both projections become part of the attention: in training, where the tokens are
        many.
        """
        if recording() or not torch.is_grad_enabled() or x.shape[1] < self.projected_from:
            return False
        return dtype_of_products(x) != torch.float16 and self._is_all(mask)

    def _is_all(self, mask: Tensor | None) -> bool:
        """Whether nothing stands between the operator and the projections."""
        return mask is None and self.gate is None and is_nothing(self.norm)

    def _projected(self, x: Tensor, extras: dict[str, Any]) -> Tensor | None:
        """`attend_projected` of the module's own weights, in autocast's dtype where that is on;
        None where a projection must be called.
        """
        qkv, proj = weights_of(self.qkv, x.device), weights_of(self.proj, x.device)
        if qkv is None or proj is None:
            return None
        dtype = dtype_of_products(x)
        if dtype != x.dtype:
            x, qkv, proj = x.to(dtype), qkv.to(dtype), proj.to(dtype)
        return attend_projected(x, qkv, proj, self.num_heads, self.op, **extras)

    def path(self, x: Tensor) -> str:
        """How tokens x (B,N,dim) would go now: the operator's backend, and where the output
        projection stands.
        """
        qkv = torch.empty(
            *x.shape[:2], 3 * self.num_heads * self.head_dim, dtype=x.dtype, device=x.device
        )
        q, k, v = unpacked(qkv, self.num_heads)
        backend = backend_of(q, k, v, self.op, **self.extras(x.shape[1]))
        chosen = backend.name
        if chosen == "native":
            chosen += f" {native.path_of(q.dtype, q.shape[-1], v.shape[-1])}"
        takes = self.reads_the_buffer and weights_of(self.proj, x.device) is not None
        inside = takes and self._projects(x, None) and weights_of(self.qkv, x.device) is not None
        if inside and backend.projected is not None:
            return f"{chosen}, both projections inside"
        merges = takes and self._merges(qkv, None) and self.op.has_matrix
        return f"{chosen}, {'merged projection' if merges else 'projection apart'}"

    def _needs_more_than_half(self, x: Tensor) -> bool:
        """Whether float16 cannot hold the operator's output on projected tokens (B,N,·): it then
        stays float32 until it is past `proj`.
        """
        if x.dtype != torch.float16 or type(self.norm) is not nn.Identity or why_changed(self.norm):
            return False
        return beyond_half(self.op, self._dims(x), self.options)

    def _dims(self, x: Tensor) -> Dims:
        return Dims(
            x.shape[0], self.num_heads, x.shape[1], x.shape[1], self.head_dim, self.head_dim
        )


def dtype_of_products(x: Tensor) -> torch.dtype:
    """What a linear layer computes x in: autocast's dtype where that is on. Any shape will do."""
    kind = x.device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if on else x.dtype


def beyond_half(op: Operator, dims: Dims, options: Mapping[str, Any]) -> bool:
    """Whether float16 cannot hold the operator's output at these sizes; in a graph, which holds for
    any number of tokens, at some.
    """
    if op.half_refusal is None:
        return False
    sizes = replace(dims, N=MANY, M=MANY) if recording() else dims
    return op.half_refusal(sizes, **op.filled(options)) is not None


def merged(qkv: Tensor, matrix: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """q (A W) + b for the queries of a buffer (B,N,3 H D) and the operator's matrix A (B,H,D,D):
    the projection's product without q A.
    """
    absorbed_weight = absorbed(matrix, weight)
    q = qkv[..., : absorbed_weight.shape[1]]
    outputs = [product(queries, factor) for queries, factor in zip(q, absorbed_weight, strict=True)]
    y = outputs[0][None] if len(outputs) == 1 else torch.stack(outputs)
    return y if bias is None else y.add_(bias)


def widened(proj: nn.Module, o: Tensor) -> Tensor:
    """`proj` in float32, of a float32 o (B,N,C) that its own dtype cannot hold: (B,N,dim_out)."""
    weights = weights_of(proj, o.device)
    if weights is None:
        largest = o.abs().amax((1, 2), keepdim=True).clamp_min(torch.finfo(o.dtype).tiny)
        # the largest becomes about one: float16 holds a long way below
        lift = torch.exp2(-largest.log2().ceil())
        return called(proj, (o * lift).to(torch.float16), lift)
    with autocast_off(o.device.type):
        return F.linear(
            o.float(), weights.W.float(), None if weights.b is None else weights.b.float()
        )


def lowered(proj: nn.Module, o: Tensor, lift: float, dtype: torch.dtype) -> Tensor:
    """`proj` of o / lift, where o / lift itself is too small for its dtype: the scale comes down in
    float32, before the bias. Joined heads o (B,N,C) -> (B,N,dim_out).
    """
    weights = weights_of(proj, o.device)
    if weights is None:
        return called(proj, o, lift).to(dtype)
    y = F.linear(o, weights.W).float() / lift
    return (y if weights.b is None else y + weights.b).to(dtype)
