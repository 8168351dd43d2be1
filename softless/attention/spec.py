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


@dataclass(frozen=True)
class Dims:
    """The sizes of one call."""

    B: int
    H: int
    N: int
    M: int
    D: int
    E: int

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor) -> "Dims":
        return cls(B=q.shape[0], H=q.shape[1], N=q.shape[2], M=k.shape[2], D=q.shape[3], E=v.shape[3])


@dataclass(frozen=True)
class Tokens:
    """Some of the tokens of a call: q (B,H,n,D), k (B,H,m,D), v (B,H,m,E), masks (B,n) and (B,m), True where a token counts.

    `start` is the position of the first token in the whole sequence of `total` tokens.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None = None
    query_mask: Tensor | None = None
    start: int = 0
    total: int | None = None


def add(a: Summary, b: Summary) -> Summary:
    """Summary of two sets of tokens together, where every entry is a plain sum over tokens."""
    return {name: a[name] + b[name] for name in a}


@dataclass(frozen=True)
class Sweep:
    """One pass over all tokens: a summary of each chunk, how two summaries join, and what is made of the whole."""

    summarise: Callable[..., Summary]  # (tokens, reader of the sweep before or None, **extras) -> summary
    finish: Callable[..., Any]  # (summary, **extras) -> reader
    merge: Callable[[Summary, Summary], Summary] = add


@dataclass(frozen=True)
class Streaming:
    """How an operator is evaluated over tokens that are never all at hand (design §1)."""

    sweeps: tuple[Sweep, ...]
    read: Callable[..., Tensor]  # (tokens, reader, **extras) -> output of these queries
    holds: str  # what the summary is, with its size per head
    merges: str  # how two summaries join


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
class Learned:
    """A tensor the operator wants trained: its shape for given heads and features, and its value at the start."""

    shape: Callable[[int, int], tuple[int, ...]]  # (num_heads, head_dim) -> shape
    start: float
    weight_decay: bool = True


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
    native_half: bool = False  # takes float16 and bfloat16 as they are; the others are given float32
    # largest relative error (Frobenius) against the float64 reference
    tolerance: Mapping[torch.dtype, float] = field(default_factory=lambda: TOLERANCE)


@dataclass(frozen=True)
class Operator:
    """An attention operator and what it claims.

    `reference(q, k, v, *, mask, query_mask, **extras)` is the meaning: the paper's formula in the dtype it is given. The extras are
    the options, `learned` where the operator has learned tensors, and `grid` where it needs one.
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
    masks: tuple[str, ...] = ("token",)  # "token" (B, M); "pairwise" and "causal" where a query may choose its keys
    drops_weights: bool = False  # has attention weights that attn_drop can act on
    options: Mapping[str, Option] = field(default_factory=dict)
    learned: Mapping[str, Learned] = field(default_factory=dict)
    needs: tuple[str, ...] = ()  # "grid", "tied_qk"
    hat: Callable[..., Tensor] | None = None  # what is made of q and of k, token by channel, before their product
    class_row: Callable[..., Tensor] | None = (
        None  # (q, k, *, eps) -> weights of the first query over all tokens (B,H,1,N), for class attention
    )
    half_refusal: Callable[..., str | None] | None = None  # (Dims, **options): why float16 cannot hold the output
    own: tuple[Backend, ...] = ()  # fastest first

    def __post_init__(self) -> None:
        assert (self.streaming is None) == bool(self.no_stream), f"{self.name}: a streaming form, or why there is none"

    def __reduce__(self) -> tuple[Callable[[str], "Operator"], tuple[str]]:
        """Copies and pickles of a model refer to the record by name: it holds functions, and there is one of it."""
        return by_name, (self.name,)

    @property
    def backends(self) -> tuple[Backend, ...]:
        """Every backend, the preferred first and the reference last."""
        return (*self.own, Backend(name="reference", fn=self.reference))

    @property
    def sweeps(self) -> int | None:
        """Passes over the tokens that the streaming form takes, or None where there is none."""
        return len(self.streaming.sweeps) if self.streaming else None


def by_name(name: str) -> Operator:
    """The registered record; looked up late, since the registry imports the operators and they import this file."""
    return importlib.import_module("softless.attention.registry").get(name)
