"""The one attention module: projections around any operator, in place of timm's `Attention`.

It keeps timm's constructor, weight names (`qkv`, `proj`) and forward, so that weights load both ways, and raises where an operator
cannot honour what timm's arguments ask for.
"""

# B batch, H heads, N tokens, D features per head

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, SupportsIndex

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softless.attention import OPERATORS, Operator, attend, attend_packed, attend_projected, get, output_matrix
from softless.attention.call import autocast_off
from softless.attention.checks import check_options
from softless.attention.choose import backend_of
from softless.attention.kernels import native
from softless.attention.packed import absorbed, product, unpacked
from softless.attention.record import Dims, Grid
from softless.attention.recording import recording
from softless.attention.registry import registered
from softless.errors import UsageError
from softless.layers.companions import Filters, HeadConv, Reduction
from softless.layers.grid import SharedGrid
from softless.layers.leaf import leaf
from softless.layers.masks import token_mask
from softless.layers.own_tensors import OwnTensors
from softless.layers.plain import called, is_nothing, place_of, refuse_absent, weights_of, why_changed

MANY = 2**40  # tokens: more than any graph meets


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
        v_conv: Side of a depthwise convolution of v over the grid, added to the operator's output, without a bias. Open to every operator.
        v_conv_filters: Which channels share one of its filters: "head", one per head (SOFT); "channel", one per channel (lepe of MALA);
            "shared", one per channel of a head, shared by the heads (FLatten).
        tokens: Number of tokens, for an operator that learns one tensor row per token; `create_model` tells it to its hosts.
        device: Of the parameters.
        dtype: Of the parameters.
        **options: The operator's options, fixed for this module.

    Raises:
        UsageError: unknown operator or option, sizes that do not divide, dropout an operator cannot honour.
    """

    fixed_op: ClassVar[str | None] = None
    fixed_options: ClassVar[Mapping[str, Any]] = {}
    # tokens, in widths of the tokens, from which the output projection is merged: softless bench speed --figure merging
    merged_from: ClassVar[float] = 12
    # tokens from which both projections are taken into one node in training: softless bench speed --figure projected
    projected_from: ClassVar[float] = 6144
    qkv: nn.Linear  # "qv" where q and k are tied

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
        v_conv: int | None = None,
        v_conv_filters: Filters = "head",
        tokens: int | None = None,
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
        tied = self.op.wants("tied_qk", self.options)
        self.parts = ("q", "v") if tied else ("q", "k", "v")
        self.make_projections(dim, inner, qkv_bias, place)
        self.q_norm = norm_layer(self.head_dim, **place) if qk_norm else nn.Identity()
        self.k_norm = norm_layer(self.head_dim, **place) if qk_norm and not tied else nn.Identity()
        self.norm = norm_layer(inner, **place) if scale_norm else nn.Identity()
        self.gate = nn.Linear(dim, inner, bias=qkv_bias, **place) if gated else None
        self.proj = nn.Linear(inner, dim_out or dim, bias=proj_bias, **place)
        self.proj_drop = nn.Dropout(proj_drop)
        self.v_conv = HeadConv(num_heads, v_conv, self.head_dim, v_conv_filters, **place) if v_conv else None
        if v_conv_filters != "head" and self.v_conv is None:
            raise UsageError(
                f"v_conv_filters={v_conv_filters!r} is of the convolution of v, and there is none: pass v_conv=, for example 5"
            )
        side = self.op.reduces(self.op.filled(self.options)) if self.op.reduces else 1
        self.reduction = Reduction(dim, side, **place) if side > 1 else None
        if self.reduction is not None and self.v_conv is not None:
            raise UsageError(
                f"v_conv={v_conv} convolves v on the grid, and the reduction by {side} leaves v no grid: choose one of them"
            )
        ours = type(self).sides is Attention.sides and type(self).project is Attention.project
        self._plain = ours and len(self.parts) == 3 and self.reduction is None and self.v_conv is None
        self.shared_grid: SharedGrid | None = None
        if self.op.own_tensors(self.options) and (tokens or not self.op.wants("tokens", self.options)):
            self.learned = OwnTensors(self.op, num_heads, self.head_dim, self.options, tokens, **place)

    def make_projections(self, dim: int, inner: int, bias: bool, place: dict[str, Any]) -> None:
        """The linear layer that makes q, k and v of the tokens."""
        self.add_module("".join(self.parts), nn.Linear(dim, len(self.parts) * inner, bias=bias, **place))

    @property
    def looks_at_the_grid(self) -> bool:
        """Whether the host must tell where the tokens stand."""
        return self.op.wants("grid", self.options) or self.v_conv is not None or self.reduction is not None

    def keys_of(self, prefix: int, height: int, width: int) -> int:
        """How many tokens are attended to where so many stand on a grid behind so many prefix tokens."""
        rows, columns = self.key_grid(height, width)
        return prefix + rows * columns

    def key_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the keys' grid where the queries' has so many."""
        side = 1 if self.reduction is None else self.reduction.side
        return height // side, width // side

    def called_with(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Grid | None, dict[str, Any]]:
        """Of the arguments of a call: the tokens, the grid where it was passed, and what `sides` takes besides."""
        given = inspect.signature(self.forward).bind(*args, **kwargs).arguments
        return given["x"], given.get("grid"), given.get("passed", {})

    def set_tokens(self, tokens: int) -> None:
        """Make the operator's tensors for a number of tokens, where it needs one and was not given it."""
        if self.op.wants("tokens", self.options) and not hasattr(self, "learned"):
            first = place_of(self)
            self.learned = OwnTensors(
                self.op, self.num_heads, self.head_dim, self.options, tokens, device=first.device, dtype=first.dtype
            )

    def set_grid(self, grid: Grid | SharedGrid | None) -> None:
        """Tell where the tokens of the passes to come stand: (prefix tokens, height, width), or a host's `SharedGrid`."""
        self.shared_grid = SharedGrid(grid) if isinstance(grid, tuple) else grid

    @classmethod
    def with_options(cls, **options: Any) -> type["Attention"]:
        """A class for timm's `attn_layer=` whose modules have these options: `softless.SimA.with_options(token_scale="tokens")`."""
        if cls.fixed_op is not None:
            check_options(
                get(cls.fixed_op), {name: value for name, value in options.items() if name in get(cls.fixed_op).options}
            )

        def build(_: type, *args: Any, **kwargs: Any) -> "Attention":
            return cls(*args, **{**options, **kwargs})

        fixed = {**cls.fixed_options, **options}
        return type(cls.__name__, (cls,), {"__new__": build, "__doc__": cls.__doc__, "fixed_options": fixed})

    def project(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """q, k and v of tokens x (B,N,dim), each (B,H,N,D); k is None where it is tied to q."""
        q, *k, v = self._heads(getattr(self, "".join(self.parts))(x), len(self.parts))
        return self.q_norm(q), self.k_norm(k[0]) if k else None, v

    def sides(
        self, x: Tensor, mask: Tensor | None, grid: Grid | None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """q of the tokens, k, v and the mask of those that are attended to: the same, or the few that a reduction leaves."""
        if self.reduction is None:
            return *self.project(x), mask
        few, key_mask = self.reduction(x, mask, self.grid_of(x.shape[1], grid))
        return *self._project_reduced(x, few), key_mask

    def _heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        return x.unflatten(-1, (parts, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)

    def _project_reduced(self, x: Tensor, few: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q of all tokens x, k and v of the few that the reduction left."""
        inner, found = self.num_heads * self.head_dim, weights_of(self.qkv, x.device)
        if found is None:
            of_all, of_few = self.qkv(x)[..., :inner], self.qkv(few)[..., inner:]
        else:
            weight, bias = found
            ours, theirs = (None, None) if bias is None else (bias[:inner], bias[inner:])
            of_all, of_few = F.linear(x, weight[:inner], ours), F.linear(few, weight[inner:], theirs)
        (q,), (k, v) = self._heads(of_all, 1), self._heads(of_few, 2)
        return self.q_norm(q), self.k_norm(k), v

    def extras(self, tokens: int, grid: Grid | None = None) -> dict[str, Any]:
        """What `attend` takes beside q, k, v and masks: options, own tensors, and the grid where the operator needs it.

        Args:
            tokens: How many there are.
            grid: Where they stand; what the host told by default.

        Raises:
            UsageError: the grid or the number of tokens was never told, or does not fit.
        """
        found = dict(self.options)
        if self.op.wants("grid", self.options):
            found["grid"] = self.grid_of(tokens, grid)
        if self.op.learned and self.op.own_tensors(self.options):
            if not hasattr(self, "learned"):
                raise UsageError(
                    f"operator '{self.op.name}' learns a row per token and was not told how many there are: build the model with "
                    "softless.create_model, or pass tokens=, for example through with_options(tokens=197)"
                )
            found["learned"] = self.learned()
        return found

    @leaf
    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, mask: Tensor | None = None, grid: Grid | None = None, **passed: Any
    ) -> Tensor:  # fmt: skip
        """Attention over the tokens x (B,N,dim).

        Args:
            x: Tokens.
            attn_mask: timm's mask, boolean or additive; it must be constant over queries unless the operator takes pairwise masks.
            is_causal: Only for operators that take causal masks.
            mask: (B, N) boolean, True where a token counts, for keys and queries alike; masked rows come out as the projection's bias.
            grid: (prefix tokens, height, width), where the operator or a companion needs it; the host's by default.
            **passed: What a module of another host is given besides, for its `sides` (rotary positions).

        Raises:
            UsageError: a mask the operator cannot honour, no grid where one is needed, a number of tokens that was never told.
        """
        refuse_absent(x, qkv=self._modules.get("qkv"), qv=self._modules.get("qv"), proj=self.proj)
        mask, taken = token_mask(self.op, x, attn_mask, is_causal, mask)
        grid = self.standing(x, grid)
        extras = self.extras(x.shape[1], grid) | taken
        if self.attn_drop and self.training:
            extras["dropout"] = self.attn_drop
        if self.reads_the_buffer:
            return self._self_attention(x, mask, extras)
        q, k, v, key_mask = self.sides(x, mask, grid, **passed)
        wide = self._needs_more_than_half(q.transpose(1, 2))
        o = attend(
            q, k, v, op=self.op, mask=key_mask, query_mask=mask, out_dtype=torch.float32 if wide else None, **extras
        )
        if self.v_conv is not None:
            o = o + self.v_conv(v, mask, self.grid_of(x.shape[1], grid))
        return self._project_out(x, o.transpose(1, 2).flatten(2), wide)

    def _project_out(self, x: Tensor, o: Tensor, wide: bool) -> Tensor:
        """Past the norm, the gate and the output projection: joined heads (B,N,H D) -> (B,N,dim_out); a wide o is float32."""
        lift = self.op.half_lift(self._dims(x)) if wide and self.op.half_lift and not recording() else None
        o = self.norm((o * lift).to(torch.float16) if lift else o)
        if self.gate is not None:
            o = o * self.gate(x).sigmoid()
        if lift:
            return self.proj_drop(lowered(self.proj, o, lift, x.dtype))
        return self.proj_drop(widened(self.proj, o).to(x.dtype) if wide else self.proj(o))

    @property
    def reads_the_buffer(self) -> bool:
        """Whether nothing comes between the projection to q, k and v, the operator, and the joined heads."""
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
        wide = self._needs_more_than_half(qkv)
        o = attend_packed(qkv, self.num_heads, self.op, mask, out_dtype=torch.float32 if wide else None, **extras)
        return self._project_out(x, o, wide)

    def _merges(self, qkv: Tensor, mask: Tensor | None) -> bool:
        """Whether the output projection takes the operator's matrix into its own: in inference, where the tokens are many."""
        if recording() or torch.is_grad_enabled() or qkv.dtype == torch.float16:
            return False
        return bool(qkv.shape[1] >= self.merged_from * self.num_heads * self.head_dim) and self._is_all(mask)

    def _projects(self, x: Tensor, mask: Tensor | None) -> bool:
        """Whether both projections become part of the attention: in training, where the tokens are many."""
        if recording() or not torch.is_grad_enabled() or x.shape[1] < self.projected_from:
            return False
        return dtype_of_products(x) != torch.float16 and self._is_all(mask)

    def _is_all(self, mask: Tensor | None) -> bool:
        """Whether nothing stands between the operator and the projections."""
        return mask is None and self.gate is None and is_nothing(self.norm)

    def _projected(self, x: Tensor, extras: dict[str, Any]) -> Tensor | None:
        """`attend_projected` of the module's own weights, in autocast's dtype where that is on; None where a projection must be called."""
        qkv, proj = weights_of(self.qkv, x.device), weights_of(self.proj, x.device)
        if qkv is None or proj is None:
            return None
        dtype = dtype_of_products(x)
        if dtype != x.dtype:
            x, qkv, proj = x.to(dtype), qkv.to(dtype), proj.to(dtype)
        return attend_projected(x, qkv, proj, self.num_heads, self.op, **extras)

    def path(self, x: Tensor) -> str:
        """How tokens x (B,N,dim) would go now: the operator's backend, and where the output projection stands."""
        qkv = torch.empty(*x.shape[:2], 3 * self.num_heads * self.head_dim, dtype=x.dtype, device=x.device)
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

    def standing(self, x: Tensor, given: Grid | None = None) -> Grid | None:
        """Where the tokens x (B,N,dim) of a pass stand, as passed or as the host told; None where nobody looks."""
        if given is not None or self.shared_grid is None or not self.looks_at_the_grid:
            return given
        return self.shared_grid.of(x)

    def grid_of(self, tokens: int, given: Grid | None = None) -> Grid:
        """Where so many tokens stand, as passed or as the host told.

        Raises:
            UsageError: nobody told, or what was told has another number of tokens.
        """
        grid = given or (self.shared_grid.value if self.shared_grid else None)
        who = "v_conv" if self.v_conv is not None else f"operator '{self.op.name}'"
        if grid is None:
            raise UsageError(
                f"{who} needs the grid of the tokens, and timm's blocks pass only tokens: build the model with softless.create_model, "
                "call set_grid((prefix_tokens, height, width)) on this module, or pass grid= to its forward"
            )
        prefix, height, width = grid
        if prefix + height * width != tokens:
            raise UsageError(
                f"{who}: the grid told is {prefix} + {height} x {width} tokens, and {tokens} came: tell the grid of this image"
            )
        return grid

    def _needs_more_than_half(self, x: Tensor) -> bool:
        """Whether float16 cannot hold the operator's output on projected tokens (B,N,·): it then stays float32 until it is past `proj`."""
        if x.dtype != torch.float16 or type(self.norm) is not nn.Identity or why_changed(self.norm):
            return False
        return beyond_half(self.op, self._dims(x), self.options)

    def _dims(self, x: Tensor) -> Dims:
        return Dims(x.shape[0], self.num_heads, x.shape[1], x.shape[1], self.head_dim, self.head_dim)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """A module of an operator's own class is pickled by the operator, so that another process can say which one it lacks."""
        if type(self) is CLASSES.get(self.op.title):
            return _blank, (registered(self.op),), self.__dict__
        return super().__reduce_ex__(protocol)

    def extra_repr(self) -> str:
        told = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"op={self.op.name!r}, num_heads={self.num_heads}{told}"


def dtype_of_products(x: Tensor) -> torch.dtype:
    """What a linear layer computes x in: autocast's dtype where that is on."""
    kind = x.device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if on else x.dtype


def beyond_half(op: Operator, dims: Dims, options: Mapping[str, Any]) -> bool:
    """Whether float16 cannot hold the operator's output at these sizes; in a graph, which holds for any number of tokens, at some."""
    if op.half_refusal is None:
        return False
    sizes = replace(dims, N=MANY, M=MANY) if recording() else dims
    return op.half_refusal(sizes, **op.filled(options)) is not None


def merged(qkv: Tensor, matrix: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """q (A W) + b for the queries of a buffer (B,N,3 H D) and the operator's matrix A (B,H,D,D): the projection's product without q A."""
    whole = absorbed(matrix, weight)
    q = qkv[..., : whole.shape[1]]
    made = [product(one, theirs) for one, theirs in zip(q, whole, strict=True)]
    y = made[0][None] if len(made) == 1 else torch.stack(made)
    return y if bias is None else y.add_(bias)


def widened(proj: nn.Module, o: Tensor) -> Tensor:
    """`proj` in float32, of a float32 o that its own dtype cannot hold."""
    found = weights_of(proj, o.device)
    if found is None:
        most = o.abs().amax((1, 2), keepdim=True).clamp_min(torch.finfo(o.dtype).tiny)
        lift = torch.exp2(-most.log2().ceil())  # the largest becomes about one: float16 holds a long way below
        return called(proj, (o * lift).to(torch.float16), lift)
    with autocast_off(o.device.type):
        return F.linear(o.float(), found.W.float(), None if found.b is None else found.b.float())


def lowered(proj: nn.Module, o: Tensor, lift: float, dtype: torch.dtype) -> Tensor:
    """`proj` of o / lift, where o / lift itself is too small for its dtype: the scale comes down in float32, before the bias."""
    found = weights_of(proj, o.device)
    if found is None:
        return called(proj, o, lift).to(dtype)
    y = F.linear(o, found.W).float() / lift
    return (y if found.b is None else y + found.b).to(dtype)


def _blank(record: Operator) -> Attention:
    """A module of an operator's class, whose state comes from a pickle."""
    cls = operator_class(record)
    return cls.__new__(cls)


def operator_class(op: str | Operator) -> type[Attention]:
    """The module class with the operator fixed: a real class, as timm's `attn_layer=` asks for (it checks issubclass).

    Raises:
        UsageError: no operator of that name, or a record that is not registered.
    """
    return CLASSES[registered(op).title]


def _class(record: Operator) -> type[Attention]:
    source = f" ({record.paper})" if record.paper else ""
    lines = [
        f"`softless.Attention` with op='{record.name}': {record.summary}{source}.",
        "",
        f"    {record.formula}",
        "",
        "Options:",
    ]
    lines += [f"    {name} = {one.default!r}: {one.says}; {one.values}." for name, one in record.options.items()]
    lines += [] if record.options else ["    none of the operator's own."]
    doc = "\n".join([*lines, "", "The other arguments are those of `softless.Attention`."])
    return type(record.title, (Attention,), {"fixed_op": record.name, "__doc__": doc, "__module__": __name__})


CLASSES: dict[str, type[Attention]] = {}


def add_class(record: Operator) -> None:
    """Make the module class of a record, under its title."""
    CLASSES[record.title] = _class(record)
    globals()[record.title] = CLASSES[record.title]  # importable by name: pickles refer to classes so


for _record in OPERATORS.values():
    add_class(_record)
