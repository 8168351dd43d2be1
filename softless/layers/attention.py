"""The one attention module: projections around any operator, in place of timm's `Attention`.

It keeps timm's constructor, weight names (`qkv`, `proj`) and forward, so that weights load both ways, and raises where an operator
cannot honour what timm's arguments ask for.
"""

# B batch, H heads, N tokens, D features per head

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softless.attention import OPERATORS, Operator, attend, get
from softless.attention.attend import check_options
from softless.attention.spec import Dims
from softless.errors import UsageError
from softless.layers.masks import token_mask


class Attention(nn.Module):
    """Multi-head self-attention with a named operator: (B, N, dim) -> (B, N, dim_out).

    Args:
        dim: Width of the tokens.
        num_heads: Number of heads; must divide dim unless attn_head_dim is given.
        op: Name in `softless.OPERATORS`, or a record. The classes of one operator (`softless.SimA`, …) have it fixed.
        attn_head_dim: Width per head (default dim // num_heads).
        dim_out: Output width (default dim).
        qkv_bias: Bias in the q, k, v projection.
        qk_norm: Normalise q and k per token with norm_layer.
        scale_norm: Normalise the heads' joint output with norm_layer before the projection.
        proj_bias: Bias in the output projection.
        gated: Multiply the output by a sigmoid gate of the input (a transcendental per output value).
        attn_drop: Dropout on attention weights; an error for operators that have none.
        proj_drop: Dropout after the output projection.
        norm_layer: Layer for qk_norm and scale_norm.
        device: Of the parameters.
        dtype: Of the parameters.
        **options: The operator's options, fixed for this module.

    Raises:
        UsageError: unknown operator or option, sizes that do not divide, dropout an operator cannot honour.
    """

    fixed_op: ClassVar[str | None] = None

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        op: str | Operator | None = None,
        *,
        attn_head_dim: int | None = None,
        dim_out: int | None = None,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        scale_norm: bool = False,
        proj_bias: bool = True,
        gated: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: Any = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if self.fixed_op and op not in {None, self.fixed_op}:
            raise UsageError(
                f"{type(self).__name__} is '{self.fixed_op}': op={op!r} asks for another; use softless.Attention(op=…)"
            )
        self.op = get(op or self.fixed_op or "sima")
        self.options = check_options(self.op, options)
        if attn_head_dim is None and dim % num_heads:
            raise UsageError(
                f"dim={dim} does not divide into num_heads={num_heads}: choose a divisor, or pass attn_head_dim"
            )
        if attn_drop and not self.op.drops_weights:
            raise UsageError(
                f"operator '{self.op.name}' has no attention weights to drop: attn_drop={attn_drop} must be 0; proj_drop works"
            )
        if (qk_norm or scale_norm) and norm_layer is None:
            raise UsageError("qk_norm and scale_norm need a norm_layer, for example torch.nn.LayerNorm")
        self.num_heads = num_heads
        self.head_dim = attn_head_dim or dim // num_heads
        self.attn_drop = attn_drop
        inner, place = self.num_heads * self.head_dim, {"device": device, "dtype": dtype}
        self.qkv = nn.Linear(dim, 3 * inner, bias=qkv_bias, **place)
        self.q_norm = norm_layer(self.head_dim, **place) if qk_norm else nn.Identity()
        self.k_norm = norm_layer(self.head_dim, **place) if qk_norm else nn.Identity()
        self.norm = norm_layer(inner, **place) if scale_norm else nn.Identity()
        self.gate = nn.Linear(dim, inner, bias=qkv_bias, **place) if gated else None
        self.proj = nn.Linear(inner, dim_out or dim, bias=proj_bias, **place)
        self.proj_drop = nn.Dropout(proj_drop)
        if self.op.learned:
            self.learned = nn.ParameterDict({
                name: nn.Parameter(torch.full(claim.shape(num_heads, self.head_dim), claim.start, **place))
                for name, claim in self.op.learned.items()
            })

    @classmethod
    def with_options(cls, **options: Any) -> type["Attention"]:
        """A class for timm's `attn_layer=` whose modules have these options: `softless.SimA.with_options(token_scale="tokens")`."""
        if cls.fixed_op is not None:
            check_options(
                get(cls.fixed_op), {name: value for name, value in options.items() if name in get(cls.fixed_op).options}
            )

        def build(_: type, *args: Any, **kwargs: Any) -> "Attention":
            return cls(*args, **{**options, **kwargs})

        return type(cls.__name__, (cls,), {"__new__": build, "__doc__": cls.__doc__})

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of tokens x (B,N,dim), each (B,H,N,D)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.q_norm(q), self.k_norm(k), v

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, mask: Tensor | None = None
    ) -> Tensor:
        """Attention over the tokens x (B,N,dim).

        Args:
            x: Tokens.
            attn_mask: timm's mask, boolean or additive; it must be constant over queries unless the operator takes pairwise masks.
            is_causal: Only for operators that take causal masks.
            mask: (B, N) boolean, True where a token counts, for keys and queries alike; masked rows come out as the projection's bias.

        Raises:
            UsageError: a mask the operator cannot honour.
        """
        mask, extras = token_mask(self.op, x, attn_mask, is_causal, mask)
        q, k, v = self.project(x)
        extras |= self.options
        if self.op.learned:
            extras["learned"] = dict(self.learned.items())
        if self.attn_drop and self.training:
            extras["dropout"] = self.attn_drop
        lift = self._lift(q)
        o = attend(q, k, v, op=self.op, mask=mask, query_mask=mask, out_dtype=torch.float32 if lift else None, **extras)
        o = self.norm((o * lift).to(q.dtype).transpose(1, 2).flatten(2) if lift else o.transpose(1, 2).flatten(2))
        if self.gate is not None:
            o = o * self.gate(x).sigmoid()
        return self.proj_drop(lowered(self.proj, o, lift, x.dtype) if lift else self.proj(o))

    def _lift(self, q: Tensor) -> float | None:
        """The power of two that carries float16 past the projection where the operator's own scale would lose it."""
        if q.dtype != torch.float16 or self.op.half_refusal is None or not isinstance(self.norm, nn.Identity):
            return None
        defaults = {name: option.default for name, option in self.op.options.items()}
        refused = self.op.half_refusal(Dims.of(q, q, q), **(defaults | self.options))
        return power_of_two(q.shape[-2]) if refused else None

    def extra_repr(self) -> str:
        told = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"op={self.op.name!r}, num_heads={self.num_heads}{told}"


def power_of_two(tokens: int) -> float:
    """The largest power of two up to the number of tokens: scaling by it is exact."""
    return 2.0 ** (int(tokens).bit_length() - 1)


def lowered(proj: nn.Linear, o: Tensor, lift: float, dtype: torch.dtype) -> Tensor:
    """`proj` of o / lift, where o / lift itself is too small for its dtype: the scale comes down in float32, before the bias."""
    y = F.linear(o, proj.weight).float() / lift
    return (y if proj.bias is None else y + proj.bias).to(dtype)


def operator_class(op: str | Operator) -> type[Attention]:
    """The module class with the operator fixed: a real class, as timm's `attn_layer=` asks for (it checks issubclass).

    Raises:
        UsageError: no operator of that name.
    """
    return CLASSES[get(op).title]


def _class(record: Operator) -> type[Attention]:
    doc = f"`softless.Attention` with op='{record.name}': {record.summary} ({record.paper})."
    return type(record.title, (Attention,), {"fixed_op": record.name, "__doc__": doc, "__module__": __name__})


CLASSES = {record.title: _class(record) for record in OPERATORS.values()}
globals().update(CLASSES)  # importable by name, so that whole modules can be pickled
