"""What an attention operator says of itself: a pure function and a record of claims about it.

Tests, benchmarks, tables, the command line and the model names walk over these records; every claim has a meter in
`tests/ops/test_contract.py`.
"""

# B batch, H heads, N query tokens, M key tokens, D features of q and k, E features of v

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

EPS = 1e-12  # smallest norm anything is divided by, as in torch.nn.functional.normalize

Summary = dict[str, Tensor]
Grid = tuple[int, int, int]  # prefix tokens (class, distillation, registers), height, width
Options = Mapping[str, Any]


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
    options: Options = field(default_factory=dict)  # every option of the operator, defaults filled in

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, grid: Grid | None = None, options: Options | None = None) -> "Dims":
        B, H, N, D = q.shape
        return cls(B=B, H=H, N=N, M=k.shape[2], D=D, E=v.shape[3], grid=grid, options=dict(options or {}))


@dataclass(frozen=True)
class Place:
    """Where the tokens of a chunk stand in their sequence.

    `start` and `total` count every token; under a mask, `before` and `counted` (B,) are those that count: ahead of the chunk, and in
    all.
    """

    start: int
    total: int
    before: Tensor | None = None
    counted: Tensor | None = None


@dataclass(frozen=True)
class Tokens:
    """Some of the tokens of a call: q (B,H,n,D), k (B,H,m,D), v (B,H,m,E), masks (B,n) and (B,m), True where a token counts.

    An operator with tied q and k reads q alone.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None = None
    query_mask: Tensor | None = None
    keys: Place | None = None  # None: these are all
    queries: Place | None = None


def no_reason(*_: Any, **__: Any) -> None:
    """The answer of what refuses nothing."""


def add(a: Summary, b: Summary) -> Summary:
    """Summary of two sets of tokens together, where every entry is a plain sum over tokens."""
    return {name: a[name] + b[name] for name in a}


@dataclass(frozen=True)
class Sweep:
    """One pass over all tokens: a summary of each chunk, how two summaries join, and what is made of the whole."""

    summarise: Callable[..., Summary]  # (tokens, reader of the sweep before or None, **extras) -> summary
    finish: Callable[..., Any]  # (summary, **extras) -> reader
    merge: Callable[[Summary, Summary], Summary] = add
    # (tokens, **extras) -> summary by the native kernels, where they do not refuse: half precision as it is, and no gradients
    native: Callable[..., Summary] | None = None


@dataclass(frozen=True)
class Streaming:
    """How an operator is evaluated over tokens that are never all at hand (design §1)."""

    sweeps: tuple[Sweep, ...]
    read: Callable[..., Tensor]  # (tokens, reader, **extras) -> output of these queries
    holds: str  # what the summary is, with its size per head
    merges: str  # how two summaries join
    refuses: Callable[..., str | None] = no_reason  # (**extras) -> why these options have no streaming form


def at_once(streaming: Streaming) -> Callable[..., Tensor]:
    """The streaming form over all tokens at once, as the function of a backend."""

    def eager(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, query_mask: Tensor | None = None, **extras: Any) -> Tensor:  # fmt: skip
        whole, reader = Tokens(q, k, v, mask, query_mask), None
        for sweep in streaming.sweeps:
            reader = sweep.finish(sweep.summarise(whole, reader, **extras), **extras)
        return streaming.read(whole, reader, **extras)

    return eager


@dataclass(frozen=True)
class Option:
    """A keyword of an operator: its default, the values it takes, what it does."""

    default: Any
    says: str
    accepts: Callable[[Any], bool]
    values: str  # the accepted values in words, for errors and tables


DROPOUT = Option(
    default=0.0,
    says="share of the attention weights dropped",
    accepts=lambda value: isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1,
    values="a number in [0, 1)",
)


@dataclass(frozen=True)
class Sizes:
    """What the shapes of an operator's own tensors depend on; `tokens` is None until the host has told it."""

    heads: int
    head_dim: int
    options: Options
    tokens: int | None = None
    value_dim: int | None = None  # features of v per head, where they are not head_dim

    @property
    def values(self) -> int:
        """Features of v per head."""
        return self.head_dim if self.value_dim is None else self.value_dim


Start = Callable[[tuple[int, ...], torch.Generator | None], Tensor]  # (shape, generator) -> float64 on the CPU


def always(_: Options) -> bool:
    """Whatever the options."""
    return True


@dataclass(frozen=True)
class Learned:
    """A tensor of the operator's own: its shape, its value at the start, and whether it is trained or only drawn."""

    shape: Callable[[Sizes], tuple[int, ...]]
    start: float | Start
    weight_decay: bool = True
    when: Callable[[Options], bool] = always  # the options under which it exists
    trained: bool = True  # False: a buffer that is drawn at the start, such as random features
    redraw_every: str = ""  # the option that says after how many training steps it is drawn anew


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
class Backend:
    """One way to compute an operator; `refuses` answers why not, in sentences, and is empty when it can run."""

    name: str
    fn: Callable[..., Tensor]
    refuses: Callable[..., list[str]] = never
    native_half: bool = False  # takes the half precision it does not refuse as it is; the others are given float32
    differentiable: bool = True  # False: it is refused where a gradient is wanted
    # (qkv, heads, *, mask, **extras) -> (B,N,H D): self-attention read from the buffer (B,N,3 H D) that one projection wrote
    packed: Callable[..., Tensor] | None = None
    # as fn -> (B,H,D,E) float32: the matrix that turns a raw query into its output, for operators that have one; without masks
    matrix: Callable[..., Tensor] | None = None
    # (x, weight, bias, proj, proj_bias, heads, **extras) -> (B,N,dim_out): self-attention of tokens x (B,N,dim) with both its projections,
    # in training, in less memory than one after the other
    projected: Callable[..., Tensor] | None = None
    here: Callable[[], str] | None = None  # what it has on this machine, in words
    # largest relative error (Frobenius) against the float64 reference
    tolerance: Mapping[torch.dtype, float] = field(default_factory=lambda: TOLERANCE)


@dataclass(frozen=True, repr=False, eq=False)  # a record is itself: it holds functions
class Operator:
    """An attention operator and what it claims.

    `reference(q, k, v, *, mask, query_mask, **extras)` is the meaning: the paper's formula in the dtype it is given. The extras are
    the options, `learned` where the operator has tensors of its own, and `grid` where it needs one. With tied q and k the reference
    is given q twice.

    A masked token is gone. Where tokens have no places (`equivariant`, or places along the sequence) that is removal: the same as
    without it. On a grid the others keep their places.
    """

    name: str
    title: str  # of the module class, as in softless.SimA
    summary: str
    formula: str
    paper: str
    reference: Callable[..., Tensor]
    flops: Callable[[Dims], int]  # matrix-product FLOPs of the reference, 2 per multiply-add
    exps: Callable[[Dims], int]  # transcendental evaluations of the reference
    growth: Literal["N", "N^2"]  # of time and memory with the number of tokens
    normalises: Literal["rows", "tokens", "nothing"]  # "rows": with v = 1 each row gives one
    scale_free: bool  # a positive factor on a channel of q or of k changes nothing
    equivariant: bool  # permuting the tokens permutes the output
    implied_matrix: bool  # o = A(q, k) v with A of shape (N, M)
    cross: bool  # the number of queries may differ from the number of keys
    streaming: Streaming | None
    no_stream: str = ""  # why there is no streaming form
    linear_in_v: bool = True  # a factor on v is a factor on the output
    # "any": any number of tokens, in one exported graph too; "grid": any grid, told at each call, an exported graph holds one;
    # "fixed": at most the number of tokens it has learned
    resolution: Literal["any", "grid", "fixed"] = "any"
    exports_from: Callable[[Options], int] = lambda _: 2  # fewest tokens that one exported graph serves
    masks: tuple[str, ...] = ("token",)  # "token" (B, M); "pairwise" and "causal" where a query may choose its keys
    drops_weights: bool = False  # has attention weights that attn_drop can act on
    options: Mapping[str, Option] = field(default_factory=dict)
    learned: Mapping[str, Learned] = field(default_factory=dict)
    # what the caller must provide, and under which options: "grid", "tied_qk" (k is None), "tokens" (a fixed number)
    needs: Mapping[str, Callable[[Options], bool]] = field(default_factory=dict)
    reduces: Callable[[Options], int] | None = (
        None  # side of the windows to which the module reduces its input before k and v
    )
    limits: Callable[..., str | None] = no_reason  # (Dims, **extras) -> why this call has no good answer
    hat: Callable[..., Tensor] | None = None  # what is made of q and of k, token by channel, before their product
    class_row: Callable[..., Tensor] | None = (
        None  # (q, k, *, eps) -> weights of the first query over all tokens (B,H,1,N), for class attention
    )
    half_refusal: Callable[..., str | None] | None = None  # (Dims, **options): why float16 cannot hold the output
    # (Dims): the power of two that brings an output which float16 cannot hold back to the size of v; modules carry it past their projection
    half_lift: Callable[[Dims], float] | None = None
    own: tuple[Backend, ...] = ()  # fastest first
    differs: str = ""  # where ours differs from the published code, for docs/operators.md
    # every backend, the preferred first and the reference last, which is held to no more than the one before it
    backends: tuple[Backend, ...] = field(init=False)

    def __post_init__(self) -> None:
        tolerance = self.own[-1].tolerance if self.own else TOLERANCE
        last = Backend(name="reference", fn=self.reference, tolerance=tolerance)
        object.__setattr__(self, "backends", (*self.own, last))
        assert (self.streaming is None) == bool(self.no_stream), f"{self.name}: a streaming form, or why there is none"

    def __repr__(self) -> str:
        return f"Operator({self.name!r})"

    def __reduce__(self) -> tuple[Callable[[str], "Operator"], tuple[str]]:
        """Copies and pickles of a model refer to the record by name: it holds functions, and there is one of it."""
        return by_name, (self.name,)

    @property
    def has_matrix(self) -> bool:
        """Whether one small matrix turns every raw query into its output, so that a projection can absorb it."""
        return any(backend.matrix for backend in self.own)

    def wants(self, need: str, options: Options) -> bool:
        """Whether the caller must provide "grid", "tokens" or tied q and k ("tied_qk") under these options."""
        return need in self.needs and self.needs[need](self.filled(options))

    def filled(self, options: Options) -> dict[str, Any]:
        """The options with defaults for those that are not given."""
        return {name: option.default for name, option in self.options.items()} | dict(options)

    def own_tensors(self, options: Options) -> dict[str, Learned]:
        """The tensors of its own that the operator has under these options."""
        filled = self.filled(options)
        return {name: claim for name, claim in self.learned.items() if claim.when(filled)}

    @property
    def sweeps(self) -> int | None:
        """Passes over the tokens that the streaming form takes, or None where there is none."""
        return len(self.streaming.sweeps) if self.streaming else None


def by_name(name: str) -> Operator:
    """The registered record; looked up late, since the registry imports the operators and they import this file."""
    return importlib.import_module("softless.attention.registry").get(name)
