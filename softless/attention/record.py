"""What an attention operator says of itself: a pure function and a record of claims about it, in
groups.

Tests, benchmarks, tables, the command line and the model names walk over these records. Every claim
has a meter in `softless.testing.check_operator`.
"""

# B batch, H heads, N query tokens, M key tokens, D features of q and k, E features of v

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from softless.attention.options import Learned, Option, Options
from softless.attention.streaming import Streaming, no_reason
from softless.errors import UsageError, unknown

Grid = tuple[int, int, int]  # prefix tokens (class, distillation, registers), height, width


@dataclass(frozen=True)
class Dims:
    """The sizes of one call, with what else its cost depends on."""

    B: int
    H: int
    N: int
    M: int
    D: int
    E: int
    grid: Grid | None = None
    # every option of the operator, defaults filled in
    options: Options = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        grid: Grid | None = None,
        options: Options | None = None,
    ) -> "Dims":
        """The sizes of q (B,H,N,D), k (B,H,M,D) and v (B,H,M,E)."""
        B, H, N, D = q.shape
        return cls(
            B=B, H=H, N=N, M=k.shape[2], D=D, E=v.shape[3], grid=grid, options=dict(options or {})
        )


TOLERANCE: Mapping[torch.dtype, float] = MappingProxyType({
    torch.float64: 1e-13,
    torch.float32: 1e-6,
    torch.bfloat16: 4e-3,
    torch.float16: 5e-4,
})


def never(*_: Any, **__: Any) -> list[str]:
    """The refusals of a backend that runs every call."""
    return []


@dataclass(frozen=True)
class Roads:
    """Shorter ways through the whole module that a backend knows; None where it has none."""

    # (qkv, heads, *, mask, **extras) -> (B,N,H D): self-attention read from the buffer (B,N,3 H D)
    # that one projection wrote
    packed: Callable[..., Tensor] | None = None
    # as fn -> (B,H,D,E) float32: the matrix that turns a raw query into its output, for operators
    # that have one; without masks
    matrix: Callable[..., Tensor] | None = None
    # (x, weight, bias, proj, proj_bias, heads, **extras) -> (B,N,dim_out): self-attention of tokens
    # x (B,N,dim) with both its projections, in training, in less memory than one after the other
    projected: Callable[..., Tensor] | None = None


@dataclass(frozen=True)
class Bounds:
    """What a backend takes and how near it comes."""

    # takes the half precision it does not refuse as it is; the others are given float32
    native_half: bool = False
    differentiable: bool = True  # False: it is refused where a gradient is wanted
    # largest relative error (Frobenius) against the float64 reference
    tolerance: Mapping[torch.dtype, float] = field(default_factory=lambda: TOLERANCE)


@dataclass(frozen=True)
class Backend:
    """One way to compute an operator; `refuses` answers why not, in sentences, and is empty when it
    can run.
    """

    name: str
    fn: Callable[..., Tensor]
    refuses: Callable[..., list[str]] = never
    bounds: Bounds = field(default_factory=Bounds)
    roads: Roads = field(default_factory=Roads)
    here: Callable[[], str] | None = None  # what it has on this machine, in words

    def __post_init__(self) -> None:
        # read flat as well: backend.packed is backend.roads.packed
        for group in (self.bounds, self.roads):
            self.__dict__.update(group.__dict__)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """A field of one of the groups."""


@dataclass(frozen=True)
class Identity:
    """Who an operator is: the name in `OPERATORS`, and what tables and documents say of it."""

    name: str = ""
    summary: str = ""  # one line
    formula: str = ""
    paper: str = ""
    # of the module class, as in softless.SimA; the name in capitals where it is left out
    title: str = ""
    differs: str = ""  # where ours differs from the published code, for docs/operators.md

    def __post_init__(self) -> None:
        required(
            self.name,
            "identity.name",
            'Identity(name="mine", summary="what it computes, in one line")',
        )
        of_kind(
            self.name,
            str,
            "identity.name",
            'Identity(name="mine", summary="what it computes, in one line")',
        )
        if not self.title:
            object.__setattr__(
                self, "title", "".join(part[:1].upper() + part[1:] for part in self.name.split("_"))
            )


def nothing(_: "Dims") -> int:
    """No transcendental evaluation."""
    return 0


def two(_: Options) -> int:
    """One exported graph serves two tokens and more."""
    return 2


@dataclass(frozen=True)
class Claims:
    """What an operator says of its reference; `softless.testing.check_operator` measures each, in
    both directions.
    """

    # matrix-product FLOPs of the reference, 2 per multiply-add
    flops: Callable[[Dims], int] = None  # type: ignore[assignment]
    exps: Callable[[Dims], int] = nothing  # transcendental evaluations of the reference
    growth: Literal["N", "N^2"] = "N"  # of time and memory with the number of tokens
    # "rows": with v = 1 each row gives one
    normalises: Literal["rows", "tokens", "nothing"] = "nothing"
    scale_free: bool = False  # a positive factor on a channel of q or of k changes nothing
    equivariant: bool = True  # permuting the tokens permutes the output
    implied_matrix: bool = True  # o = A(q, k) v with A of shape (N, M)
    cross: bool = True  # the number of queries may differ from the number of keys
    linear_in_v: bool = True  # a factor on v is a factor on the output
    # "any": any number of tokens, in one exported graph too; "grid": any grid, told at each call,
    # an exported graph holds one; "fixed": at most the number of tokens it has learned
    resolution: Literal["any", "grid", "fixed"] = "any"
    exports_from: Callable[[Options], int] = two  # fewest tokens that one exported graph serves
    # "token" (B, M); "pairwise" and "causal" where a query may choose its keys
    masks: tuple[str, ...] = ("token",)
    drops_weights: bool = False  # has attention weights that attn_drop can act on
    # (Dims, **extras) -> why this call has no good answer
    limits: Callable[..., str | None] = no_reason

    def __post_init__(self) -> None:
        required(
            self.flops,
            "claims.flops",
            "Claims(flops=lambda d: 2 * d.B * d.H * d.D * d.E * (d.N + d.M))",
        )


@dataclass(frozen=True)
class Half:
    """What float16 does to the output."""

    # (Dims, **options): why float16 cannot hold the output
    half_refusal: Callable[..., str | None] | None = None
    # (Dims): the power of two that brings an output which float16 cannot hold back to the size of
    # v; modules carry it past their projection
    half_lift: Callable[[Dims], float] | None = None


@dataclass(frozen=True)
class HostNeeds:
    """What a host must bring."""

    # what the caller must provide, and under which options: "grid", "tied_qk" (k is None), "tokens"
    # (a fixed number)
    needs: Mapping[str, Callable[[Options], bool]] = field(default_factory=dict)
    # side of the windows to which the module reduces its input before k and v
    reduces: Callable[[Options], int] | None = None


@dataclass(frozen=True)
class Views:
    """What saliency maps and class attention look at."""

    # what is made of q and of k, token by channel, before their product
    hat: Callable[[Tensor], Tensor] | None = None
    # (q, k, *, eps) -> weights of the first query over all tokens (B,H,1,N), for class attention;
    # further keywords are options
    class_row: Callable[..., Tensor] | None = None


NO_STREAM = "its record has no streaming form"


@dataclass(frozen=True, repr=False, eq=False)  # a record is itself: it holds functions
class Operator:
    """An attention operator and what it claims.

    `reference(q, k, v, *, mask, query_mask, **extras)` is the meaning: the paper's formula in the
    dtype it is given. The extras are the options, `learned` where the operator has tensors of its
    own, and `grid` where it needs one. With tied q and k the reference is given q twice.

    A masked token is gone. Where tokens have no places (`equivariant`, or places along the
    sequence) that is removal: the same as without it. On a grid the others keep their places.

    Written in groups, read flat as well: `record.growth` is `record.claims.growth`. Where no
    backend is named "eager", the reference widened to float32 is it.

    Raises:
        UsageError: a field is missing, or two contradict each other; the line to write is shown.
    """

    identity: Identity = None  # type: ignore[assignment]
    reference: Callable[..., Tensor] = None  # type: ignore[assignment]
    claims: Claims = None  # type: ignore[assignment]
    streaming: Streaming | None = None
    no_stream: str = ""  # why there is no streaming form
    options: Mapping[str, Option] = field(default_factory=dict)
    learned: Mapping[str, Learned] = field(default_factory=dict)
    half: Half = field(default_factory=Half)
    host: HostNeeds = field(default_factory=HostNeeds)
    views: Views = field(default_factory=Views)
    own: tuple[Backend, ...] = ()  # fastest first
    # every backend, the preferred first and the reference last, which is held to no more than the
    # one before it
    backends: tuple[Backend, ...] = field(init=False)
    # one small matrix turns every raw query into its output: a projection can absorb it
    has_matrix: bool = field(init=False)

    def __post_init__(self) -> None:
        required(
            self.identity,
            "identity",
            'identity=Identity(name="mine", summary="what it computes, in one line")',
        )
        required(
            self.reference,
            "reference",
            "reference=reference, with def reference(q, k, v, *, mask=None, query_mask=None)",
        )
        required(
            self.claims,
            "claims",
            "claims=Claims(flops=lambda d: 2 * d.B * d.H * d.D * d.E * (d.N + d.M))",
        )
        for name, (kind, line) in KINDS.items():
            of_kind(getattr(self, name), kind, name, line)
        for name, (kind, line) in MEMBERS.items():
            for key, member in getattr(self, name).items():
                of_kind(member, kind, f"{name}[{key!r}]", line)
        for backend in self.own:
            of_kind(backend, Backend, "own", "own=(Backend('eager', function),)")
        if self.streaming is not None and self.no_stream:
            raise UsageError(
                f"operator '{self.identity.name}' has a streaming form and "
                f"no_stream={self.no_stream!r}: leave one of them out"
            )
        if self.streaming is None and not self.no_stream:
            object.__setattr__(self, "no_stream", NO_STREAM)
        tolerance = self.own[-1].bounds.tolerance if self.own else TOLERANCE
        last = Backend(name="reference", fn=self.reference, bounds=Bounds(tolerance=tolerance))
        added = (
            ()
            if any(backend.name == "eager" for backend in self.own)
            else (Backend(name="eager", fn=self.reference, bounds=last.bounds),)
        )
        object.__setattr__(self, "backends", (*self.own, *added, last))
        object.__setattr__(self, "has_matrix", any(backend.roads.matrix for backend in self.own))
        for group in GROUPS:
            self.__dict__.update(getattr(self, group).__dict__)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """A field of one of the groups."""

    def __repr__(self) -> str:
        return f"Operator({self.name!r})"

    def __copy__(self) -> "Operator":
        """There is one of it."""
        return self

    def __deepcopy__(self, _: dict[int, Any]) -> "Operator":
        """There is one of it."""
        return self

    def changed(self, **fields: Any) -> "Operator":
        """The record with these fields changed, whatever group they stand in:
        `record.changed(growth="N^2")`.

        Raises:
            UsageError: it has no such field.
        """
        groups = {name: getattr(self, name) for name in GROUPS}
        for name, value in fields.items():
            home = next(
                (
                    group
                    for group, instance in groups.items()
                    if name in instance.__dataclass_fields__
                ),
                None,
            )
            if home is not None:
                groups[home] = replace(groups[home], **{name: value})
            elif name not in self.__dataclass_fields__ or name in {"backends", "has_matrix"}:
                raise unknown("field of an operator's record", name, field_names())
            else:
                groups[name] = value
        return replace(self, **groups)

    def wants(self, need: str, options: Options) -> bool:
        """Whether the caller must provide "grid", "tokens" or tied q and k ("tied_qk") under these
        options.
        """
        return need in self.needs and self.needs[need](self.filled(options))

    def filled(self, options: Options) -> dict[str, Any]:
        """The options with defaults for those that are not given."""
        return {name: option.default for name, option in self.options.items()} | dict(options)

    def own_tensors(self, options: Options) -> dict[str, Learned]:
        """The tensors of its own that the operator has under these options."""
        filled = self.filled(options)
        return {name: claim for name, claim in self.learned.items() if claim.when(filled)}

    def of_row(self, options: Options) -> dict[str, Any]:
        """Those of the options that the class row takes beside eps."""
        if self.class_row is None:
            return {}
        named = inspect.signature(self.class_row).parameters
        return {name: value for name, value in options.items() if name in named and name != "eps"}

    @property
    def sweeps(self) -> int | None:
        """Passes over the tokens that the streaming form takes, or None where there is none."""
        return len(self.streaming.sweeps) if self.streaming else None


GROUPS = ("identity", "claims", "half", "host", "views")


def field_names() -> list[str]:
    """Every field of a record, those of the groups in place of the groups."""
    kinds = (Identity, Claims, Half, HostNeeds, Views)
    inside = [member.name for kind in kinds for member in fields(kind)]
    return [
        *inside,
        *(member.name for member in fields(Operator) if member.init and member.name not in GROUPS),
    ]


KINDS: Mapping[str, tuple[Any, str]] = MappingProxyType({
    "identity": (
        Identity,
        'identity=Identity(name="mine", summary="what it computes, in one line")',
    ),
    "claims": (Claims, "claims=Claims(flops=lambda d: 2 * d.B * d.H * d.D * d.E * (d.N + d.M))"),
    "streaming": (Streaming | None, "streaming=Streaming.sums(summarise, read), or leave it out"),
    "no_stream": (str, "no_stream='the reason'"),
    "options": (
        Mapping,
        "options={'eps': Option(1e-6, says='…', accepts=lambda value: …, values='…')}",
    ),
    "learned": (Mapping, "learned={'scale': Learned(lambda sizes: (sizes.heads, 1, 1), 1.0)}"),
    "half": (Half, "half=Half(half_refusal=lambda d, **options: None)"),
    "host": (HostNeeds, "host=HostNeeds(needs={'grid': lambda options: True})"),
    "views": (Views, "views=Views(class_row=row), with def row(q, k, *, eps)"),
    "own": (tuple, "own=(Backend('eager', function),), with its comma"),
})
MEMBERS: Mapping[str, tuple[Any, str]] = MappingProxyType({
    "options": (
        Option,
        "options={'eps': Option(1e-6, says='…', accepts=lambda value: …, values='…')}",
    ),
    "learned": (Learned, "learned={'scale': Learned(lambda sizes: (sizes.heads, 1, 1), 1.0)}"),
})


def of_kind(value: Any, kind: Any, name: str, line: str) -> None:
    """Raises where a field holds another kind of thing.

    Raises:
        UsageError: it does; the line to write is shown.
    """
    if not isinstance(value, kind):
        raise UsageError(f"a record of an operator with {name}={value!r:.60}: write {line}")


def required(value: Any, name: str, line: str) -> None:
    """Raises where a field was left out.

    Raises:
        UsageError: it was; the line to write is shown.
    """
    if value is None or value == "":
        raise UsageError(f"a record of an operator without {name}: write {line}")
