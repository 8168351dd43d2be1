"""How an operator is evaluated over tokens that are never all at hand: summaries that add up, and
what reads them (design §1).
"""

# B batch, H heads, N query tokens, M key tokens, D features of q and k, E features of v

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Summary = dict[str, Tensor]


@dataclass(frozen=True)
class ChunkPosition:
    """Where the tokens of a chunk stand in their sequence.

    `start` and `total` count every token; under a mask, `before` and `counted` (B,) are those that
    count: ahead of the chunk, and in all.
    """

    start: int
    total: int
    before: Tensor | None = None
    counted: Tensor | None = None


@dataclass(frozen=True)
class Tokens:
    """Some of the tokens of a call: q (B,H,n,D), k (B,H,m,D), v (B,H,m,E), masks (B,n) and (B,m),
    True where a token counts.

    An operator with tied q and k reads q alone.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None = None
    query_mask: Tensor | None = None
    keys: ChunkPosition | None = None  # None: these are all
    queries: ChunkPosition | None = None


def no_reason(*_: Any, **__: Any) -> None:
    """The answer of what refuses nothing."""


def add(a: Summary, b: Summary) -> Summary:
    """Summary of two sets of tokens together, where every entry is a plain sum over tokens."""
    return {name: a[name] + b[name] for name in a}


def as_they_are(summary: Summary, **_: Any) -> Summary:
    """The sums themselves, as a reader."""
    return summary


@dataclass(frozen=True)
class Sweep:
    """One pass over all tokens: a summary of each chunk, how two summaries join, and what is made
    of the whole.
    """

    # (tokens, reader of the sweep before or None, **extras) -> summary
    summarise: Callable[..., Summary]
    finish: Callable[..., Any]  # (summary, **extras) -> reader
    merge: Callable[[Summary, Summary], Summary] = add
    # (tokens, **extras) -> summary by the native kernels, where they do not refuse: half precision
    # as it is, and no gradients
    native: Callable[..., Summary] | None = None
    # (summary of a whole, of a part of it) -> of the rest, where entries are no sums: saliency's
    # row of a chunk needs it
    without: Callable[[Summary, Summary], Summary] | None = None


@dataclass(frozen=True)
class Streaming:
    """How an operator is evaluated over tokens that are never all at hand (design §1)."""

    sweeps: tuple[Sweep, ...]
    read: Callable[..., Tensor]  # (tokens, reader, **extras) -> output of these queries
    holds: str  # what the summary is, with its size per head
    merges: str  # how two summaries join
    # (**extras) -> why these options have no streaming form
    refuses: Callable[..., str | None] = no_reason

    @classmethod
    def sums(
        cls,
        summarise: Callable[..., Summary],
        read: Callable[..., Tensor],
        holds: str = "plain sums over the tokens",
    ) -> "Streaming":
        """One sweep whose summary holds plain sums over tokens and is read as it is.

        Args:
            summarise: (tokens, None, **extras) -> the sums over some tokens.
            read: (tokens, the sums over all tokens, **extras) -> the output of these queries
                (B,H,n,E).
            holds: What the sums are, with their size per head.
        """
        return cls((Sweep(summarise, as_they_are),), read, holds, "plain addition")


def at_once(streaming: Streaming) -> Callable[..., Tensor]:
    """The streaming form over all tokens at once, as the function of a backend. It maps q
    (B,H,N,D), k (B,H,M,D), v (B,H,M,E) to (B,H,N,E).
    """

    def eager(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        **extras: Any,
    ) -> Tensor:
        tokens, reader = Tokens(q, k, v, mask, query_mask), None
        for sweep in streaming.sweeps:
            reader = sweep.finish(sweep.summarise(tokens, reader, **extras), **extras)
        return streaming.read(tokens, reader, **extras)

    return eager
