"""The one attention module: projections around any operator, in place of timm's `Attention`.

It keeps timm's constructor, weight names (`qkv`, `proj`) and forward, so that weights load both
ways, and raises where an operator cannot honour what timm's arguments ask for.
"""

# B batch, H heads, N tokens, D features per head

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, SupportsIndex

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softless.attention import rotary as turning
from softless.attention.attend import attend
from softless.attention.checks import check_options
from softless.attention.record import Grid, Operator
from softless.attention.registry import OPERATORS, get, registered
from softless.attention.streaming import ChunkPosition
from softless.errors import UsageError
from softless.layers.class_docs import docstring
from softless.layers.companions import Filters, Gate, HeadConv, Reduction, kind_of_gate
from softless.layers.grid import SharedGrid
from softless.layers.leaf import leaf
from softless.layers.masks import token_mask
from softless.layers.own_tensors import OwnTensors
from softless.layers.plain import place_of, refuse_absent, weights_of
from softless.layers.routes import Routes


class Attention(Routes):
    """Multi-head self-attention with a named operator: (B, N, dim) -> (B, N, dim_out).

    Args:
        dim: Width of the tokens.
        num_heads: Number of heads; must divide dim unless attn_head_dim is given.
        op: Name in `softless.OPERATORS`, or a record. The classes of one operator (`softless.SimA`,
            …) have it fixed.
        attn_head_dim: Width per head (default dim // num_heads).
        dim_out: Output width (default dim).
        qkv_bias: Bias in the q, k, v projection.
        qk_norm: Normalise q and k per token with norm_layer.
        scale_norm: Normalise the heads' joint output with norm_layer before the projection.
        proj_bias: Bias in the output projection.
        gated: Multiply the output, the convolution of v included, by a further projection of the
            input: "linear" as MALA, RALA and PolaFormer, "silu" as MILA, "sigmoid" or True as timm.
            The last two take a transcendental per output value.
        attn_drop: Dropout on attention weights; an error for operators that have none.
        proj_drop: Dropout after the output projection.
        norm_layer: Layer for qk_norm and scale_norm.
        v_conv: Side of a depthwise convolution of v over the grid, added to the operator's output,
            without a bias. Open to every operator.
        v_conv_filters: Which channels share one of its filters: "head", one per head (SOFT);
            "channel", one per channel (lepe of MALA); "shared", one per channel of a head, shared
            by the heads (FLatten).
        rotary: Turn pairs of channels of q and k by the token's row and column before the operator,
            as SANA does; prefix tokens are not turned. MALA turns its features and has an option of
            its own, `rotate`.
        tokens: Number of tokens, for an operator that learns one tensor row per token;
            `create_model` tells it to its hosts.
        device: Of the parameters.
        dtype: Of the parameters.
        **options: The operator's options, fixed for this module.

    Raises:
        UsageError: unknown operator or option, sizes that do not divide, dropout an operator cannot
            honour.

    Examples:
        >>> attention = softless.Attention(64, num_heads=4, op="sima", token_scale="tokens")
        >>> x = torch.ones(2, 5, 64)
        >>> attention(x).shape
        torch.Size([2, 5, 64])
        >>> attention(x, mask=torch.tensor([[1, 1, 1, 1, 0]] * 2, dtype=torch.bool)).shape
        torch.Size([2, 5, 64])
    """

    fixed_op: ClassVar[str | None] = None
    fixed_options: ClassVar[Mapping[str, Any]] = {}
    rotary: bool = False  # of modules that were pickled before there was this

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
        gated: bool | Gate = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: Any = None,
        v_conv: int | None = None,
        v_conv_filters: Filters = "head",
        rotary: bool = False,
        tokens: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if self.fixed_op and op not in {None, self.fixed_op}:
            raise UsageError(
                f"{type(self).__name__} is '{self.fixed_op}': op={op!r} asks for another; use "
                "softless.Attention(op=…)"
            )
        self.op = get(op or self.fixed_op or "sima")
        self.options = check_options(self.op, options)
        if attn_head_dim is None and dim % num_heads:
            raise UsageError(
                f"dim={dim} does not divide into num_heads={num_heads}: choose a divisor, or pass "
                "attn_head_dim"
            )
        if attn_drop and not self.op.drops_weights:
            raise UsageError(
                f"operator '{self.op.name}' has no attention weights to drop: "
                f"attn_drop={attn_drop} must be 0; proj_drop works"
            )
        if (qk_norm or scale_norm) and norm_layer is None:
            raise UsageError(
                "qk_norm and scale_norm need a norm_layer, for example torch.nn.LayerNorm"
            )
        self.num_heads = num_heads
        self.head_dim = attn_head_dim or dim // num_heads
        self.attn_drop = attn_drop
        inner, factory_kwargs = self.num_heads * self.head_dim, {"device": device, "dtype": dtype}
        tied = self.op.wants("tied_qk", self.options)
        self.parts = ("q", "v") if tied else ("q", "k", "v")
        self.make_projections(dim, inner, qkv_bias, factory_kwargs)
        self.q_norm = norm_layer(self.head_dim, **factory_kwargs) if qk_norm else nn.Identity()
        self.k_norm = (
            norm_layer(self.head_dim, **factory_kwargs) if qk_norm and not tied else nn.Identity()
        )
        self.norm = norm_layer(inner, **factory_kwargs) if scale_norm else nn.Identity()
        self.gate_kind = kind_of_gate(gated)
        self.gate = (
            nn.Linear(dim, inner, bias=qkv_bias, **factory_kwargs) if self.gate_kind else None
        )
        self.proj = nn.Linear(inner, dim_out or dim, bias=proj_bias, **factory_kwargs)
        self.proj_drop = nn.Dropout(proj_drop)
        self.v_conv = (
            HeadConv(num_heads, v_conv, self.head_dim, v_conv_filters, **factory_kwargs)
            if v_conv
            else None
        )
        if v_conv_filters != "head" and self.v_conv is None:
            raise UsageError(
                f"v_conv_filters={v_conv_filters!r} is of the convolution of v, and there is "
                "none: pass v_conv=, for example 5"
            )
        side = self.op.reduces(self.op.filled(self.options)) if self.op.reduces else 1
        self.reduction = Reduction(dim, side, **factory_kwargs) if side > 1 else None
        if self.reduction is not None and self.v_conv is not None:
            raise UsageError(
                f"v_conv={v_conv} convolves v on the grid, and the reduction by {side} leaves v "
                "no grid: choose one of them"
            )
        self.rotary = rotary
        if rotary and (why := self._why_not_rotary()):
            raise UsageError(f"rotary={rotary}: {why}")
        unchanged = type(self).sides is Attention.sides and type(self).project is Attention.project
        alone = self.reduction is None and self.v_conv is None and not rotary
        self._plain = unchanged and len(self.parts) == 3 and alone
        self.shared_grid: SharedGrid | None = None
        if self.op.own_tensors(self.options) and (
            tokens or not self.op.wants("tokens", self.options)
        ):
            self.learned = OwnTensors(
                self.op, num_heads, self.head_dim, self.options, tokens, **factory_kwargs
            )

    def _why_not_rotary(self) -> str | None:
        """Why q and k cannot be turned by their places, as the end of a sentence."""
        if "rotate" in self.op.options:
            return (
                f"operator '{self.op.name}' turns its features itself: pass rotate=True in "
                "place of it"
            )
        if self.reduction is not None:
            return (
                f"the reduction by {self.reduction.side} leaves k another grid than q: choose "
                "one of them"
            )
        return turning.why_not(self.head_dim)

    def make_projections(self, dim: int, inner: int, bias: bool, place: dict[str, Any]) -> None:
        """The linear layer that makes q, k and v of the tokens."""
        self.add_module(
            "".join(self.parts), nn.Linear(dim, len(self.parts) * inner, bias=bias, **place)
        )

    @property
    def looks_at_the_grid(self) -> bool:
        """Whether the host must tell where the tokens stand."""
        companions = self.v_conv is not None or self.reduction is not None or self.rotary
        return companions or self.op.wants("grid", self.options)

    def keys_of(self, prefix: int, height: int, width: int) -> int:
        """How many tokens are attended to where so many stand on a grid behind so many prefix
        tokens.
        """
        rows, columns = self.key_grid(height, width)
        return prefix + rows * columns

    def key_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the keys' grid where the queries' has so many."""
        side = 1 if self.reduction is None else self.reduction.side
        return height // side, width // side

    def called_with(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Grid | None, dict[str, Any]]:
        """Of the arguments of a call: the tokens, the grid where it was passed, and what `sides`
        takes besides. The tokens are (B,N,dim).
        """
        arguments = inspect.signature(self.forward).bind(*args, **kwargs).arguments
        return arguments["x"], arguments.get("grid"), arguments.get("passed", {})

    def set_tokens(self, tokens: int) -> None:
        """Make the operator's tensors for a number of tokens, where it needs one and was not given
        it.
        """
        if self.op.wants("tokens", self.options) and not hasattr(self, "learned"):
            first = place_of(self)
            self.learned = OwnTensors(
                self.op,
                self.num_heads,
                self.head_dim,
                self.options,
                tokens,
                device=first.device,
                dtype=first.dtype,
            )

    def set_grid(self, grid: Grid | SharedGrid | None) -> None:
        """Tell where the tokens of the passes to come stand: (prefix tokens, height, width), or a
        host's `SharedGrid`.
        """
        self.shared_grid = SharedGrid(grid) if isinstance(grid, tuple) else grid

    @classmethod
    def with_options(cls, **options: Any) -> type["Attention"]:
        """A class for timm's `attn_layer=` whose modules have these options:
        `softless.SimA.with_options(token_scale="tokens")`.
        """
        if cls.fixed_op is not None:
            check_options(
                get(cls.fixed_op),
                {
                    name: value
                    for name, value in options.items()
                    if name in get(cls.fixed_op).options
                },
            )

        def build(_: type, *args: Any, **kwargs: Any) -> "Attention":
            return cls(*args, **{**options, **kwargs})

        fixed = {**cls.fixed_options, **options}
        return type(
            cls.__name__, (cls,), {"__new__": build, "__doc__": cls.__doc__, "fixed_options": fixed}
        )

    def project(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """q, k and v of tokens x (B,N,dim), each (B,H,N,D); k is None where it is tied to q."""
        q, *k, v = self._heads(getattr(self, "".join(self.parts))(x), len(self.parts))
        return self.q_norm(q), self.k_norm(k[0]) if k else None, v

    def placed(
        self, x: Tensor, grid: Grid | None, place: ChunkPosition | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """`project`, with q and k turned by where the tokens x (B,N,dim) stand, where the module
        has rotary positions.

        Args:
            x: The tokens.
            grid: Where all of them stand.
            place: Of a chunk of them.

        Raises:
            UsageError: nobody told the grid.
        """
        q, k, v = self.project(x)
        if not self.rotary:
            return q, k, v
        full_grid = self.grid_of(x.shape[1] if place is None else place.total, grid)
        cos, sin = turning.angles(q, full_grid, place)
        return turning.turned(q, cos, sin), None if k is None else turning.turned(k, cos, sin), v

    def sides(
        self, x: Tensor, mask: Tensor | None, grid: Grid | None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """q of the tokens, k, v and the mask of those that are attended to: the same, or the few
        that a reduction leaves. Shapes: q (B,H,N,D), k and v (B,H,M,D), the mask (B,M).
        """
        if self.reduction is None:
            return *self.placed(x, grid), mask
        reduced, key_mask = self.reduction(x, mask, self.grid_of(x.shape[1], grid))
        return *self._project_reduced(x, reduced), key_mask

    def _heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        return (
            x.unflatten(-1, (parts, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        )

    def _project_reduced(self, x: Tensor, reduced: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q of all tokens x, k and v of the few that the reduction left."""
        inner, weights = self.num_heads * self.head_dim, weights_of(self.qkv, x.device)
        if weights is None:
            of_all, of_reduced = self.qkv(x)[..., :inner], self.qkv(reduced)[..., inner:]
        else:
            weight, bias = weights
            q_bias, kv_bias = (None, None) if bias is None else (bias[:inner], bias[inner:])
            of_all, of_reduced = (
                F.linear(x, weight[:inner], q_bias),
                F.linear(reduced, weight[inner:], kv_bias),
            )
        (q,), (k, v) = self._heads(of_all, 1), self._heads(of_reduced, 2)
        return self.q_norm(q), self.k_norm(k), v

    def extras(self, tokens: int, grid: Grid | None = None) -> dict[str, Any]:
        """What `attend` takes beside q, k, v and masks: options, own tensors, and the grid where
        the operator needs it.

        Args:
            tokens: How many there are.
            grid: Where they stand; what the host told by default.

        Raises:
            UsageError: the grid or the number of tokens was never told, or does not fit.
        """
        settings = dict(self.options)
        if self.op.wants("grid", self.options):
            settings["grid"] = self.grid_of(tokens, grid)
        if self.op.learned and self.op.own_tensors(self.options):
            if not hasattr(self, "learned"):
                raise UsageError(
                    f"operator '{self.op.name}' learns a row per token and was not told how many "
                    "there are: build the model with "
                    "softless.create_model, or pass tokens=, for example through "
                    "with_options(tokens=197)"
                )
            settings["learned"] = self.learned()
        return settings

    @leaf
    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        mask: Tensor | None = None,
        grid: Grid | None = None,
        **passed: Any,
    ) -> Tensor:
        """Attention over the tokens: (B, N, dim) -> (B, N, dim_out).

        Args:
            x: Tokens (B, N, dim).
            attn_mask: timm's mask, boolean or additive; it must be constant over queries unless the
                operator takes pairwise masks.
            is_causal: Only for operators that take causal masks.
            mask: (B, N) boolean, True where a token counts, for keys and queries alike; masked rows
                come out as the projection's bias.
            grid: (prefix tokens, height, width), where the operator or a companion needs it; the
                host's by default.
            **passed: What a module of another host is given besides, for its `sides` (rotary
                positions).

        Raises:
            UsageError: a mask the operator cannot honour, no grid where one is needed, a number of
                tokens that was never told.
        """
        refuse_absent(x, qkv=self._modules.get("qkv"), qv=self._modules.get("qv"), proj=self.proj)
        mask, mask_options = token_mask(self.op, x, attn_mask, is_causal, mask)
        grid = self.standing(x, grid)
        extras = self.extras(x.shape[1], grid) | mask_options
        if self.attn_drop and self.training:
            extras["dropout"] = self.attn_drop
        if self.reads_the_buffer:
            return self._self_attention(x, mask, extras)
        q, k, v, key_mask = self.sides(x, mask, grid, **passed)
        in_float32 = self._needs_more_than_half(q.transpose(1, 2))
        o = attend(
            q,
            k,
            v,
            op=self.op,
            mask=key_mask,
            query_mask=mask,
            out_dtype=torch.float32 if in_float32 else None,
            **extras,
        )
        if self.v_conv is not None:
            o = o + self.v_conv(v, mask, self.grid_of(x.shape[1], grid))
        return self._project_out(x, o.transpose(1, 2).flatten(2), in_float32)

    def standing(self, x: Tensor, given: Grid | None = None) -> Grid | None:
        """Where the tokens x (B,N,dim) of a pass stand, as passed or as the host told; None where
        nobody looks.
        """
        if given is not None or self.shared_grid is None or not self.looks_at_the_grid:
            return given
        return self.shared_grid.of(x)

    def grid_of(self, tokens: int, given: Grid | None = None) -> Grid:
        """Where so many tokens stand, as passed or as the host told.

        Raises:
            UsageError: nobody told, or what was told has another number of tokens.
        """
        grid = given or (self.shared_grid.value if self.shared_grid else None)
        who = (
            "v_conv"
            if self.v_conv is not None
            else "rotary"
            if self.rotary
            else f"operator '{self.op.name}'"
        )
        if grid is None:
            raise UsageError(
                f"{who} needs the grid of the tokens, and timm's blocks pass only tokens: build "
                "the model with softless.create_model, "
                "call set_grid((prefix_tokens, height, width)) on this module, or pass grid= to "
                "its forward"
            )
        prefix, height, width = grid
        if prefix + height * width != tokens:
            raise UsageError(
                f"{who}: the grid told is {prefix} + {height} x {width} tokens, and {tokens} "
                "came: tell the grid of this image"
            )
        return grid

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """A module of an operator's own class is pickled by the operator, so that another process
        can say which one it lacks.
        """
        if type(self) is CLASSES.get(self.op.title):
            return _blank, (registered(self.op),), self.__dict__
        return super().__reduce_ex__(protocol)

    @property
    def companions(self) -> tuple[str, ...]:
        """What the module adds to the operator, in words: for counts and tables."""
        present = {
            f"gate ({self.gate_kind})": self.gate is not None,
            "rotary positions": self.rotary,
            "norms of q and k": type(self.q_norm) is not nn.Identity,
            "norm of the output": type(self.norm) is not nn.Identity,
        }
        parts = [
            companion.said for companion in (self.v_conv, self.reduction) if companion is not None
        ]
        return (*parts, *(name for name, has in present.items() if has))

    def extra_repr(self) -> str:
        settings = "".join(f", {name}={value!r}" for name, value in self.options.items())
        settings += "".join(f", {companion}" for companion in self.companions)
        return f"op={self.op.name!r}, num_heads={self.num_heads}{settings}"


def _blank(record: Operator) -> Attention:
    """A module of an operator's class, whose state comes from a pickle."""
    cls = operator_class(record)
    return cls.__new__(cls)


def operator_class(op: str | Operator) -> type[Attention]:
    """The module class with the operator fixed: a real class, as timm's `attn_layer=` asks for (it
    checks issubclass).

    Raises:
        UsageError: no operator of that name, or a record that is not registered.
    """
    return CLASSES[registered(op).title]


def _class(record: Operator) -> type[Attention]:
    members = {"fixed_op": record.name, "__doc__": docstring(record), "__module__": __name__}
    return type(record.title, (Attention,), members)


CLASSES: dict[str, type[Attention]] = {}


def add_class(record: Operator) -> None:
    """Make the module class of a record, under its title."""
    CLASSES[record.title] = _class(record)
    # importable by name: pickles refer to classes so
    globals()[record.title] = CLASSES[record.title]


for _record in OPERATORS.values():
    add_class(_record)
