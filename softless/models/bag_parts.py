"""The parts of a model of bags: blocks of tiles, positions in micrometres, and pools that join over
chunks.

A part has two ways: all tiles at once, and in chunks that the backward pass computes again
(`layers/recomputed.py`).
"""

# B bags, N tiles, n of a chunk, W width, K wavelengths

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import LayerScale, Mlp
from torch import Tensor, nn

from softless.attention import exponents
from softless.attention.norms import keep
from softless.attention.packed import product
from softless.attention.streaming import ChunkPosition, Summary, add
from softless.errors import UsageError
from softless.layers.attention import Attention
from softless.layers.plain import place_of, watched, why_called
from softless.layers.recomputed import ChunkedFunction, ChunkSweep
from softless.layers.streamed import StreamedAttention
from softless.models.options import activation

SHORTEST, LONGEST = 256.0, 65536.0  # micrometres: two tiles of 128, and the length of a slide
WAVES = 16


def part(mask: Tensor | None, span: slice, tokens: int) -> tuple[Tensor | None, ChunkPosition]:
    """The mask of a chunk (B,n) and its place, under the mask of all (B,N)."""
    if mask is None:
        return None, ChunkPosition(span.start, tokens)
    position = ChunkPosition(span.start, tokens, mask[:, : span.start].sum(-1), mask.sum(-1))
    return mask[:, span], position


class FourierPosition(nn.Module):
    """Where tiles stand, in micrometres: sines and cosines of both coordinates, projected to the
    width.

    Wavelengths lie between two tiles and a slide, each longer than the one before by the same
    factor. Angles are float64, since a slide is long beside its shortest wave. They are counted from
    the smallest coordinates of the bag, so that where the slide begins does not matter.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        steps = (wave / (WAVES - 1) for wave in range(WAVES))
        self.wavelengths = tuple(SHORTEST * (LONGEST / SHORTEST) ** step for step in steps)
        self.proj = nn.Linear(4 * WAVES, width)

    def forward(self, coords: Tensor) -> Tensor:
        """Coordinates (B,n,2) float64, counted from the bag's smallest -> (B,n,W)."""
        lengths = torch.tensor(self.wavelengths, dtype=torch.float64, device=coords.device)
        angles = (coords.double()[..., None] * (2 * math.pi / lengths)).flatten(-2)
        waves = torch.cat([angles.sin(), angles.cos()], -1)
        return self.proj(waves.to(place_of(self.proj).dtype))


def from_smallest(coords: Tensor, mask: Tensor | None) -> Tensor:
    """Coordinates (B,N,2) counted from the smallest of the tiles that count; those of others are
    0.
    """
    coords = coords.double()
    if mask is None:
        return coords - coords.amin(1, keepdim=True)
    shut = ~mask[..., None]
    smallest = coords.masked_fill(shut, math.inf).amin(1, keepdim=True)
    return (coords - smallest).masked_fill(shut, 0)


class BagBlock(nn.Module):
    """A block of a transformer over tiles: x += s1 attention(norm1 x); x += s2 mlp(norm2 x)."""

    def __init__(
        self,
        width: int,
        heads: int,
        op: str,
        options: dict[str, Any],
        *,
        mlp_ratio: float,
        act: str,
        init_values: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, op, qkv_bias=True, **options)
        self.ls1 = LayerScale(width, init_values)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio), act_layer=activation(act))
        self.ls2 = LayerScale(width, init_values)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (B,N,W) -> (B,N,W), masked (B,N) where some do not count."""
        x = x + self.ls1(self.attn(self.norm1(x), mask=mask))
        return self.transform(x)

    def transform(self, x: Tensor) -> Tensor:
        """The branch of single tokens: (B,n,W) -> (B,n,W)."""
        return x + self.ls2(self.mlp(self.norm2(x)))

    @property
    def streams(self) -> bool:
        """Whether the operator can work in chunks, in this precision, and nobody would miss that
        the whole is called.
        """
        halved = place_of(self.norm1).dtype == torch.float16
        return not (self.attn.op.streaming is None or halved or self.why_called())

    def why_called(self) -> str:
        """Who would miss that the block or its attention is called, as the end of a sentence."""
        return why_called(self) or why_called(self.attn)

    def in_chunks(self, x: Tensor, mask: Tensor | None, spans: Sequence[slice]) -> Tensor:
        """`forward` by chunks of tokens x (B,N,W)."""
        return self.chunked("attn", mask, x.shape[1])(x, spans)

    def chunked(self, name: str, mask: Tensor | None, total: int) -> ChunkedFunction:
        """`forward` of so many tokens as sweeps over chunks, masked (B,N) where some do not count.

        Raises:
            UsageError: the operator cannot work in chunks; the block is named.
        """
        if why := self.why_called():
            raise UsageError(f"{name} cannot be streamed: {why}; take it off")
        streamed = StreamedAttention(self.attn, name, place_of(self.norm1), total, affine=True)

        def sweep(number: int) -> ChunkSweep:
            def summarise(tokens: Tensor, span: slice, reader: Any) -> Summary:
                place = part(mask, span, total)
                return streamed.summarise(self.norm1(tokens), *place, number, reader)

            return ChunkSweep(
                summarise,
                lambda summary: streamed.finish(summary, number),
                streamed.streaming.sweeps[number].merge,
            )

        def read(tokens: Tensor, span: slice, reader: Any) -> Tensor:
            branch = streamed.read(self.norm1(tokens), *part(mask, span, total), reader)
            return self.transform(tokens + self.ls1(branch))

        def ready(reader: Any) -> Callable[[Tensor, slice], Tensor]:
            if streamed.weights is None or watched(self.ls1):
                return lambda tokens, span: read(tokens, span, reader)
            matrix, bias = streamed.matrix(reader, self.ls1.gamma)

            def absorbed(tokens: Tensor, _: slice) -> Tensor:
                h = self.norm1(tokens)
                branch = torch.stack([product(*pair) for pair in zip(h, matrix, strict=True)])
                # after the product: a sum that starts from a large bias loses a small product
                y = tokens + branch if bias is None else tokens + branch + bias
                return self.transform(y)

            return absorbed

        sweeps = [sweep(number) for number in range(len(streamed.streaming.sweeps))]
        return ChunkedFunction(sweeps, read, self.parameters, ready)


class Pool(nn.Module):
    """What a bag becomes of its tiles (B,N,W) -> (B,W): a sum over tiles of some kind, behind a
    norm of each.
    """

    merge: Callable[[Summary, Summary], Summary] = staticmethod(add)

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tiles (B,N,W) -> (B,W), masked (B,N) where some do not count."""
        return self.finish(self.summarise(x, mask))

    def summarise(self, x: Tensor, mask: Tensor | None) -> Summary:
        """What some tiles (B,n,W) add."""
        raise NotImplementedError

    def finish(self, summary: Summary) -> Tensor:
        """The bag (B,W)."""
        raise NotImplementedError

    def in_chunks(self, x: Tensor, mask: Tensor | None, spans: Sequence[slice]) -> Tensor:
        """`forward` by chunks of tiles x (B,N,W)."""

        def summarise(tokens: Tensor, span: slice, _: Any) -> Summary:
            return self.summarise(tokens, None if mask is None else mask[:, span])

        sweep = ChunkSweep(summarise, self.finish, self.merge)
        return ChunkedFunction([sweep], None, self.parameters)(x, spans)


class GatedPool(Pool):
    """Gated attention over tiles: weights softmax(w (tanh(V h) * sigmoid(U h))).

    Ilse et al., "Attention-based Deep Multiple Instance Learning", ICML 2018, arXiv:1802.04712,
    equation 9.
    """

    merge = staticmethod(exponents.merge)

    def __init__(self, norm: nn.Module, width: int, hidden: int) -> None:
        super().__init__(norm)
        self.tanh, self.sigmoid = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.weight = nn.Linear(hidden, 1, bias=False)

    def scores(self, h: Tensor) -> Tensor:
        """Of normed tiles (B,n,W): (B,n,1), whose exponentials are the weights."""
        scores: Tensor = self.weight(self.tanh(h).tanh() * self.sigmoid(h).sigmoid())
        return scores

    def summarise(self, x: Tensor, mask: Tensor | None) -> Summary:
        """Of tiles (B,n,W) the largest score, the sum of weights and that of weighted tiles."""
        h = self.norm(x)
        return self.weighed(h, self.scores(h), mask)

    @staticmethod
    def weighed(h: Tensor, scores: Tensor, mask: Tensor | None) -> Summary:
        """The same of normed tiles h (B,n,W) and their scores (B,n,1)."""
        scores = scores if scores.dtype == torch.float64 else scores.float()
        return exponents.weigh(scores[:, None], h[:, None].to(scores.dtype), mask)

    def finish(self, summary: Summary) -> Tensor:
        """The weighted mean of the tiles (B,W)."""
        return exponents.averages(summary)[:, 0, 0].to(place_of(self.weight).dtype)


class MeanPool(Pool):
    """The mean of the tiles."""

    def summarise(self, x: Tensor, mask: Tensor | None) -> Summary:
        """Sum and number of tiles (B,n,W)."""
        h = self.norm(x)[:, None]
        h = h if h.dtype == torch.float64 else h.float()
        number = (
            h.new_tensor(h.shape[2]) if mask is None else mask.sum(-1, keepdim=True).to(h.dtype)
        )
        return {"sum": keep(h, mask).sum(2)[:, 0], "number": number}

    def finish(self, summary: Summary) -> Tensor:
        """(B,W)."""
        return summary["sum"] / summary["number"]


class MaxPool(Pool):
    """The largest number of each channel over the tiles."""

    @staticmethod
    def merge(a: Summary, b: Summary) -> Summary:
        """The larger of both."""
        return {"top": torch.maximum(a["top"], b["top"])}

    def summarise(self, x: Tensor, mask: Tensor | None) -> Summary:
        """The largest of some tiles (B,n,W)."""
        h = self.norm(x)
        if mask is not None:
            h = h.masked_fill(~mask[..., None], -math.inf)
        return {"top": h.amax(1)}

    def finish(self, summary: Summary) -> Tensor:
        """(B,W)."""
        return summary["top"]


class ClassPool(Pool):
    """The class token, which stands ahead of the tiles."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Tokens (B,1+N,W) -> (B,W)."""
        return self.norm(x[:, 0])

    def in_chunks(self, x: Tensor, mask: Tensor | None, spans: Sequence[slice]) -> Tensor:  # noqa: ARG002
        """`forward` of tokens x (B,N,W): one token is no chunk."""
        return self.norm(x[:, 0])
