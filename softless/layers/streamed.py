"""The streaming form of an attention module: what some of its tokens add to the summaries, and what
the finished summary does to them.
"""

# B batch, H heads, N tokens, n of a chunk, D width of the tokens, d width of a head

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import cache, cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from softless.attention.call import HALF, Call, autocast_off, extras_of, widen
from softless.attention.checks import check_options
from softless.attention.chunks import summed, wide
from softless.attention.packed import absorbed
from softless.attention.record import Dims, Grid, Operator
from softless.attention.streaming import ChunkPosition, Summary, Sweep, Tokens
from softless.errors import UsageError
from softless.layers.attention import Attention
from softless.layers.plain import LINEAR, Weights, is_nothing, weights_of, why_called


class StreamedAttention:
    """An attention module over so many tokens, in chunks.

    Args:
        attention: The module.
        name: What errors call it.
        like: A tensor of the dtype and on the device of its tokens.
        tokens: How many there are in all.
        grid: Where they stand, for an operator that asks.
        kinds: Classes of projections whose weights are read.
        affine: Whether a reader that is affine, and is not written as a matrix, becomes one too.

    Raises:
        UsageError: the operator has no streaming form (the reason is given), or not for these
            tokens.
    """

    def __init__(
        self,
        attention: Attention,
        name: str,
        like: Tensor,
        tokens: int,
        grid: Grid | None = None,
        kinds: Collection[type] = LINEAR,
        *,
        affine: bool = False,
    ) -> None:
        self.kinds, self.affine = kinds, affine
        self.attention, self.record, self.total, self.grid = attention, attention.op, tokens, grid
        if self.record.streaming is None:
            raise UsageError(
                f"{name}: operator '{self.record.name}' cannot be streamed: {self.record.no_stream}"
            )
        self.streaming = self.record.streaming
        # shape and dtype of all keys, and no memory
        long = like.new_zeros(()).expand(1, attention.num_heads, tokens, attention.head_dim)
        settings = attention.extras(
            tokens, grid if self.record.wants("grid", attention.options) else None
        )
        place, learned = settings.pop("grid", None), settings.pop("learned", None)
        options = check_options(self.record, settings)
        call = Call(self.record, long, long, long, options, grid=place, learned=learned)
        self.fixed = extras_of(call)
        self.own = learned is not None
        dims = Dims.of(long, long, long, place, self.record.filled(attention.options))
        if why := self.streaming.refuses(**self.fixed) or self.record.limits(dims, **self.fixed):
            raise UsageError(f"{name}: operator '{self.record.name}' cannot be streamed: {why}")

    @property
    def extras(self) -> dict[str, Any]:
        """What the operator takes beside tokens: its own tensors are read anew, so that a gradient
        reaches them.
        """
        if not self.own:
            return self.fixed
        return self.fixed | {"learned": widen(self.attention.learned())}

    def tokens(
        self, h: Tensor, mask: Tensor | None, position: ChunkPosition, parts: str = "qkv"
    ) -> Tokens:
        """q, k and v of normalised tokens h (B,n,D), told where they stand; of those that nobody
        looks at, the numbers of another.
        """
        q, k, v = self._projected(h, parts)
        return Tokens(q, q if k is None else k, v, mask, mask, position, position)

    def _projected(self, h: Tensor, parts: str) -> tuple[Tensor, Tensor | None, Tensor]:
        attention = self.attention
        weights = None
        if attention.reads_the_buffer and not attention.rotary and parts != "qkv":
            weights = weights_of(attention.qkv, h.device)
        if weights is None:
            return attention.placed(h, self.grid, None)
        inner = attention.num_heads * attention.head_dim
        first, last = "qkv".index(parts[0]), "qkv".index(parts[-1]) + 1
        rows = slice(first * inner, last * inner)
        bias = None if weights.b is None else weights.b[rows]
        projected = attention._heads(F.linear(h, weights.W[rows], bias), last - first)
        by_name = dict(zip("qkv"[first:last], projected, strict=True))
        q, k, v = (by_name.get(name, projected[0]) for name in "qkv")
        return q, k, v

    def summarise(
        self, h: Tensor, mask: Tensor | None, position: ChunkPosition, sweep: int, reader: Any
    ) -> Summary:
        """What normalised tokens h (B,n,D) add to a sweep's summary; natively where no gradient is
        wanted and that can be.
        """
        tokens = self.tokens(h, mask, position, self.looks[sweep])
        stage = self.streaming.sweeps[sweep]
        with autocast_off(h.device.type):
            if not torch.is_grad_enabled():
                return summed(stage, tokens, reader, **self.extras)
            return stage.summarise(wide(tokens), reader, **self.extras)

    def finish(self, summary: Summary, sweep: int) -> Any:
        """The reader of a sweep."""
        with autocast_off(next(iter(summary.values())).device.type):
            return self.streaming.sweeps[sweep].finish(summary, **self.extras)

    def read(self, h: Tensor, mask: Tensor | None, position: ChunkPosition, reader: Any) -> Tensor:
        """The module's output for normalised tokens h (B,n,D)."""
        tokens = self.tokens(h, mask, position, self.looks[-1])
        with autocast_off(h.device.type):
            o = self.streaming.read(wide(tokens), reader, **self.extras)
        if h.dtype in HALF:
            o = o.to(h.dtype)
        return self.attention._project_out(h, o.transpose(1, 2).flatten(2), in_float32=False)

    @cached_property
    def weights(self) -> tuple[Weights, Weights] | None:
        """Those of both projections, where they can absorb the matrix that the operator's last
        reader is.
        """
        attention = self.attention
        known = self.record.has_matrix or (self.affine and self._reads_affinely)
        if not (known and attention.reads_the_buffer):
            return None
        qkv, proj = (
            weights_of(projection, kinds=self.kinds)
            for projection in (attention.qkv, attention.proj)
        )
        skipped = (
            attention.gate is None
            and is_nothing(attention.norm)
            and not why_called(attention.proj_drop)
        )
        return (qkv, proj) if skipped and qkv is not None and proj is not None else None

    def matrix(self, reader: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """G (B,D,D) and b' (B,1,D) of a finished last summary, the operator's matrix (B,H,d,d):

            scale * attention(h) = h G + b',    G = W_q blockdiag(A) W_o scale

        They are in the model's dtype, and their products in float64. An operator that reads values
        has W_v in the place of W_q.
        """
        assert self.weights is not None
        qkv, proj = self.weights
        dtype, inner = proj.W.dtype, self.attention.num_heads * self.attention.head_dim
        qkv, proj = qkv.to(torch.float64), proj.to(torch.float64)
        first = inner * "qkv".index("q" if self.record.has_matrix else self.looks[-1])
        rows = slice(first, first + inner)
        A, offset = (reader.double(), None) if self.record.has_matrix else self._as_matrix(reader)
        P = absorbed(A, proj.W)
        G, bias = qkv.W[rows].T @ P, None
        if qkv.b is not None:
            bias = qkv.b[rows] @ P
        if offset is not None:
            added = offset.flatten(1) @ proj.W.T
            bias = added if bias is None else bias + added
        if proj.b is not None:
            bias = proj.b.expand(len(P), -1) + (0 if bias is None else bias)
        if scale is not None:
            G, bias = G * scale.double(), None if bias is None else bias * scale.double()
        return G.to(dtype), None if bias is None else bias.to(dtype)[:, None]

    @property
    def _reads_affinely(self) -> bool:
        return reads_affinely(self.record, tuple(sorted(self.attention.options.items())))

    def _as_matrix(self, reader: Any) -> tuple[Tensor, Tensor]:
        """A (B,H,d,d) and what is added (B,H,d), in float64, of a reader that is affine: what it
        makes of no token and of each channel alone.
        """
        flat, structure = pytree.tree_flatten((reader, self.extras))
        doubled = [
            x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in flat
        ]
        precise, extras = pytree.tree_unflatten(doubled, structure)
        batch = max(len(x) for x in pytree.tree_leaves(precise) if isinstance(x, Tensor))
        width, heads = self.attention.head_dim, self.attention.num_heads
        device = flat[0].device
        channels = torch.eye(width + 1, width, dtype=torch.float64, device=device)
        x = channels.expand(batch, heads, -1, -1)
        o = self.streaming.read(Tokens(x, x, x), precise, **extras)
        return o[:, :, :-1] - o[:, :, -1:], o[:, :, -1]

    @cached_property
    def looks(self) -> tuple[str, ...]:
        """Which of q, k and v each sweep looks at, and last what reads."""
        return looked_at(self.record, tuple(sorted(self.attention.options.items())))


@cache
def looked_at(record: Operator, options: tuple[tuple[str, Any], ...]) -> tuple[str, ...]:
    """Which of q, k and v each sweep of an operator looks at, and last what reads: found with
    tokens that hold NaN.
    """
    streaming = record.streaming
    assert streaming is not None
    clean, extras = _few(record, options)
    q = clean.q

    def seen(function: Callable[[Tokens], Any]) -> str:
        """The parts without which a function has no numbers."""
        parts = ""
        for name in "qkv":
            holed: dict[str, Any] = {name: torch.full_like(q, torch.nan)}
            flat = pytree.tree_leaves(function(replace(clean, **holed)))
            if not all(bool(x.isfinite().all()) for x in flat if x.is_floating_point()):
                parts += name
        return parts or "q"

    reader: Any = None
    stages = []
    for sweep in streaming.sweeps:

        def summarise(tokens: Tokens, sweep: Sweep = sweep, reader: Any = reader) -> Summary:
            return sweep.summarise(tokens, reader, **extras)

        stages.append(seen(summarise))
        reader = sweep.finish(summarise(clean), **extras)
    return *stages, seen(lambda tokens: streaming.read(tokens, reader, **extras))


@cache
def reads_affinely(record: Operator, options: tuple[tuple[str, Any], ...]) -> bool:
    """Whether what an operator reads, of the one of q, k and v that it reads, is a matrix times it
    and a row added: found on a few tokens.
    """
    streaming, parts = record.streaming, looked_at(record, options)[-1]
    if streaming is None or len(parts) > 1:
        return False
    clean, extras = _few(record, options)
    reader: Any = None
    for sweep in streaming.sweeps:
        reader = sweep.finish(sweep.summarise(clean, reader, **extras), **extras)

    def read(x: Tensor) -> Tensor:
        holding: dict[str, Any] = {parts: x}
        return streaming.read(replace(clean, **holding), reader, **extras)

    a, b = _drawn(2, *clean.q.shape) * 2
    nothing = read(torch.zeros_like(a))
    apart = read(a) + read(b) - nothing
    return bool((read(a + b) - apart).norm() < 1e-9 * apart.norm())


def _few(record: Operator, options: tuple[tuple[str, Any], ...]) -> tuple[Tokens, dict[str, Any]]:
    """Three tokens in float64 on the processor, and what the operator takes beside."""
    q, k, v = _drawn(3, 1, 2, 3, 4)
    extras = extras_of(Call(record, q, k, v, dict(options)))
    return Tokens(q, k, v), extras


def _drawn(*shape: int) -> Tensor:
    """The same normal numbers each time, of no structure that an operator could see."""
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")
