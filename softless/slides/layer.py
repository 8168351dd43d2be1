"""One layer over tokens in chunks: what a chunk adds to the summary of its attention, and what the
finished summary does to a chunk.

Where nothing stands between the projections and an operator whose last reader is a matrix A (the
SimA family), what the summary does to a normalised token is one D x D matrix (reference:
performance.md §5):

    x += norm1(x) G + b',    P = blockdiag(A) W_o,    G = W_q P s,    b' = (b_o + b_q P) s

Every other operator with a streaming form takes the general way: project, `summarise`, `merge`,
`finish`, `read`. Sums are native where they can be.
"""

# n tokens of a chunk, N of all, D width, H heads, d width of a head

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from softless.attention import weights
from softless.attention.call import HALF, widen
from softless.attention.chunks import summed, wide
from softless.attention.norms import EPS, TokenNorm, keep, root
from softless.attention.packed import product
from softless.attention.record import Grid
from softless.attention.streaming import ChunkPosition, Summary, Tokens
from softless.errors import PrecisionError
from softless.inference.packed import PackedLinear
from softless.layers.streamed import StreamedAttention
from softless.slides.hosts import Parts

LINEARS = (nn.Linear, PackedLinear)


@dataclass
class TokenSequence:
    """All tokens of an image: how many there are, where they stand, and which count (None: all)."""

    tokens: int
    grid: Grid
    mask: Tensor | None = None  # (N,)
    # how many count ahead of a token, for those that were asked for
    ahead: dict[int, Tensor] = field(default_factory=dict)

    def know(self, mask: Tensor) -> None:
        """Which tokens count: mask (N,), True where one does."""
        self.mask, self.ahead = mask, {}

    def part(self, span: slice) -> tuple[Tensor | None, ChunkPosition]:
        """The mask of a chunk (1, n), and its place."""
        if self.mask is None:
            return None, ChunkPosition(span.start, self.tokens)
        return self.mask[None, span], ChunkPosition(
            span.start, self.tokens, self._count(span.start), self._count(self.tokens)
        )

    def _count(self, stop: int) -> Tensor:
        # over millions of tokens a count takes a millisecond, and every pass asks for the same ones
        if stop not in self.ahead:
            assert self.mask is not None
            self.ahead[stop] = self.mask[:stop].sum()[None]
        return self.ahead[stop]


def joined(a: Summary, b: Summary, merge: Any) -> Summary:
    """Both summaries together, in float64: so joined, the size of the chunks and their order do not
    show.
    """
    return merge(
        {name: _precise(x) for name, x in a.items()}, {name: _precise(x) for name, x in b.items()}
    )


def _precise(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


class Layer:
    """The attention, the local patch interaction and the MLP of one layer.

    Raises:
        UsageError: the operator has no streaming form (the reason is given), or not for this image.
        PrecisionError: a model in float16.
    """

    def __init__(self, parts: Parts, sequence: TokenSequence) -> None:
        self.parts, self.attention, self.sequence = parts, parts.attention, sequence
        self.record, self.name = parts.attention.op, parts.name
        weight = _number_of(parts)
        if self.record.streaming is not None and weight.dtype == torch.float16:
            raise PrecisionError(
                f"{self.name}: float16 cannot hold the output of many tokens: stream the model in "
                "bfloat16 or float32"
            )
        self.streamed = StreamedAttention(
            parts.attention, parts.name, weight, sequence.tokens, sequence.grid, LINEARS
        )
        self.streaming, self.sweeps = self.streamed.streaming, self.streamed.streaming.sweeps
        self.extras: dict[str, Any] = {
            name: widen(value) for name, value in self.streamed.extras.items()
        }

    # Sums over tokens

    def summarise(self, x: Tensor, span: slice, sweep: int = 0, reader: Any = None) -> Summary:
        """What the tokens x (n,D) of a chunk add to a sweep's summary."""
        return summed(
            self.sweeps[sweep], self._tokens(self.parts.norm1(x)[None], span), reader, **self.extras
        )

    def _tokens(self, h: Tensor, span: slice) -> Tokens:
        """q, k and v of normalised tokens (1,n,D), told where they stand."""
        mask, position = self.sequence.part(span)
        q, k, v = self.attention.placed(h, self.sequence.grid, position)
        return Tokens(q, q if k is None else k, v, mask, mask, position, position)

    def finish(self, total: Summary, sweep: int = 0) -> Any:
        """The reader of a sweep."""
        return self.sweeps[sweep].finish(total, **self.extras)

    # What the summary does to a chunk

    def reads(self, total: Summary) -> Any:
        """What `attend` needs of the last sweep's summary: the matrix and its bias, or the
        operator's reader.
        """
        reader = self.finish(total, len(self.sweeps) - 1)
        if self.streamed.weights is None:
            return reader
        G, bias = self.streamed.matrix(reader, self.parts.scale1)
        return G[0], None if bias is None else bias[0, 0]

    def attend(self, x: Tensor, span: slice, reader: Any) -> Tensor:
        """Add the attention of the tokens x (n,D) of a chunk to them, in place."""
        h = self.parts.norm1(x)
        if self.streamed.weights is not None:
            matrix, bias = reader
            x += product(h, matrix)
            # after the product: a sum that starts from a large bias loses a small product
            return x if bias is None else x.add_(bias)
        o = self.streaming.read(wide(self._tokens(h[None], span)), reader, **self.extras)
        if x.dtype in HALF:
            o = o.to(x.dtype)
        branch = self.attention._project_out(
            h[None], o.transpose(1, 2).flatten(2), in_float32=False
        )[0]
        return x.add_(branch if self.parts.scale1 is None else branch * self.parts.scale1)

    def interact(self, x: Tensor, width: int, mask: Tensor | None) -> Tensor:
        """The local patch interaction of whole rows of tokens x (n,D), whose first and last rows
        lack what lies beyond them.

        A masked token (mask (n,), True where one counts) is to its neighbours what lies outside of
        the image: zero ahead of both convolutions.
        """
        lpi, norm = self.parts.lpi, self.parts.norm3
        assert lpi is not None
        assert norm is not None
        grid = norm(x)[None].unflatten(1, (len(x) // width, width)).permute(0, 3, 1, 2)
        away = None if mask is None else ~mask.view(1, 1, -1, width)
        for convolution in lpi:
            grid = convolution(grid if away is None else grid.masked_fill(away, 0))
        branch = grid[0].permute(1, 2, 0).flatten(0, 1)
        return branch if self.parts.scale3 is None else branch * self.parts.scale3

    def transform(self, x: Tensor) -> Tensor:
        """Add the MLP of the tokens x (n,D) to them, in place."""
        branch = self.parts.mlp(self.parts.norm2(x))
        return x.add_(branch if self.parts.scale2 is None else branch * self.parts.scale2)

    # Where queries and keys are large

    def sizes(self, x: Tensor, span: slice, total: Summary) -> tuple[Tensor, Tensor]:
        """Norms over the channels of q^ and k^ of the tokens x (n,D): (n,) each, as
        `softless.explain` draws them.
        """
        mask, position = self.sequence.part(span)
        q, k, _ = self.attention.placed(self.parts.norm1(x)[None], self.sequence.grid, position)
        sides = {"q": q, "k": q if k is None else k}
        if self.record.hat is not None:
            sides = {side: self._under_its_hat(y, total.get(side)) for side, y in sides.items()}
        first, second = (
            keep(y, mask).double().square().sum((0, 1, 3)).sqrt() for y in sides.values()
        )
        return first, second

    def _under_its_hat(self, y: Tensor, total: Tensor | None) -> Tensor:
        """q^ of some queries, or k^ of some keys; `total` is what the sweep summed of all, where
        the hat is a norm over tokens.
        """
        hat = self.record.hat
        if not isinstance(hat, TokenNorm):
            return hat(y)  # of each token alone: the contract measures it
        assert total is not None, (
            "the summary of an operator whose hat is a norm holds it as q and k"
        )
        return y / root(total, hat.norm).clamp_min(EPS).to(y.dtype)

    @property
    def has_class_row(self) -> bool:
        """Whether the first token's row of the attention matrix is drawn: o = A(q, k) v, and there
        is a token ahead of the patches.
        """
        return self.record.implied_matrix and self.sequence.grid[0] > 0

    def pull(self, first: Tensor, total: Summary) -> Summary:
        """How the first token's output depends on each entry of the last sweep's summary.

        `first` is the token (1,D) as it enters the layer.
        """
        tokens = wide(self._tokens(self.parts.norm1(first)[None].detach(), slice(0, 1)))
        return weights.pull(self.streaming, tokens, total, self.extras)

    def row(self, x: Tensor, span: slice, total: Summary, pull: Summary, reader: Any) -> Tensor:
        """The first token's weights over the tokens x (n,D) of a chunk: (n,), signed, mean over
        heads.
        """
        tokens = wide(self._tokens(self.parts.norm1(x)[None], span))
        return weights.row(self.streaming, tokens, total, pull, reader, self.extras)[0].mean(0)


def _number_of(parts: Parts) -> Tensor:
    """A tensor of the dtype and device that a layer computes in, whatever became of its
    projections.
    """
    own = (
        x
        for module in (parts.norm1, parts.attention)
        for x in (*module.parameters(), *module.buffers())
    )
    packed = (
        torch.empty(0, dtype=module.dtype)
        for module in parts.attention.modules()
        if isinstance(module, PackedLinear)
    )
    return next((x for x in (*own, *packed) if x.is_floating_point()), torch.empty(0))
