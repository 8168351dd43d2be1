"""What follows the last layer: class attention, the final norm, pooling and the head, over tokens
in chunks.

A class attention block of XCiT changes the patch tokens one by one, so nothing of it is written
back: a later sweep repeats it on the way.
"""

# n tokens of a chunk, D width, H heads, d width of a head

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from softless.attention import exponents, linear, weights
from softless.attention.chunks import summed, wide
from softless.attention.norms import root
from softless.attention.packed import unpacked
from softless.attention.streaming import Summary, Tokens, add
from softless.errors import UsageError
from softless.layers.class_attention import EPS, ClassAttention
from softless.slides.hosts import StreamedHost
from softless.slides.layer import Layer, TokenSequence

State = dict[str, Tensor]  # what one job hands to the next


class TailStage(ABC):
    """A sum over all tokens and what is made of it."""

    def begin(self, state: State) -> None:  # noqa: B027  # most stages prepare nothing
        """Prepare what every chunk needs of the state."""

    @abstractmethod
    def part(self, x: Tensor, span: slice, state: State) -> Summary:
        """What the tokens x (n,D) of a chunk add."""

    @abstractmethod
    def close(self, total: Summary, state: State) -> State:
        """What the next job is given."""

    def merge(self, a: Summary, b: Summary) -> Summary:
        """Two sums together."""
        return add(a, b)


class Sweeping(TailStage):
    """One sweep of a layer's attention; the state is its summary."""

    def __init__(self, layer: Layer, sweep: int) -> None:
        self.layer, self.sweep = layer, sweep
        self.reader: Any = None

    def begin(self, state: State) -> None:
        """The reader of the sweep before, whose summary the state is."""
        self.reader = self.layer.finish(state, self.sweep - 1) if self.sweep else None

    def part(self, x: Tensor, span: slice, _: State) -> Summary:
        """What the tokens x (n,D) of a chunk add to the sweep's summary."""
        return self.layer.summarise(x, span, self.sweep, self.reader)

    def merge(self, a: Summary, b: Summary) -> Summary:
        return self.layer.sweeps[self.sweep].merge(a, b)

    def close(self, total: Summary, state: State) -> State:
        return total | ({f"before.{name}": x for name, x in state.items()} if self.sweep else {})


class ClassBlock(TailStage):
    """A class attention block of XCiT: the class token, which alone attends, is the state."""

    def __init__(
        self, block: Any, before: "tuple[ClassBlock, ...]", sequence: TokenSequence
    ) -> None:
        self.block, self.before, self.sequence = block, before, sequence
        self.is_softless = isinstance(block.attn, ClassAttention)
        self.extras: dict[str, Any] = {}
        if self.is_softless:
            self.record = block.attn.op
            if self.record.streaming is None or self.record.sweeps != 1:
                raise UsageError(
                    f"class attention by operator '{self.record.name}' cannot be streamed: its "
                    "summary takes more than one sweep over the tokens"
                )
            self.sweep = self.record.streaming.sweeps[0]
            floor = {"eps": EPS} if "eps" in self.record.options else {}
            self.extras = self.record.filled(self.record.of_row(block.attn.options) | floor)

    def change(self, x: Tensor) -> Tensor:
        """What the block makes of patch tokens (n,D)."""
        x = x + self.block.gamma1 * self.block.norm1(x)
        x = self.block.norm2(x) if self.block.tokens_norm else x
        return x + x

    def entering(self, x: Tensor) -> Tensor:
        """Patch tokens (n,D) of the last layer as they enter this block."""
        for block in self.before:
            x = block.change(x)
        return x

    def part(self, x: Tensor, span: slice, state: State) -> Summary:
        """What the tokens x (n,D) of a chunk add to the sums of the class token."""
        return self._sums(self.entering(x), self.sequence.part(span)[0], state["class"])

    def _sums(self, x: Tensor, mask: Tensor | None, token: Tensor) -> Summary:
        h = self.block.norm1(x)[None]
        if self.is_softless:
            return summed(self.sweep, self._tokens(h, mask), None, **self.extras)
        attention = self.block.attn
        heads = attention.num_heads
        q, k, v = (
            projected.unflatten(-1, (heads, -1)).transpose(0, 1)[None]
            for projected in (
                attention.q(self.block.norm1(token)),
                attention.k(h[0]),
                attention.v(h[0]),
            )
        )
        wider = torch.promote_types(q.dtype, torch.float32)
        return exponents.weigh(k.to(wider) @ q.to(wider).mT * attention.scale, v.to(wider), mask)

    def merge(self, a: Summary, b: Summary) -> Summary:
        return self.sweep.merge(a, b) if self.is_softless else exponents.merge(a, b)

    def close(self, total: Summary, state: State) -> State:
        block, token = self.block, state["class"]
        own = self._sums(token, None, token)
        total = self.merge(total, {name: x.to(total[name].dtype) for name, x in own.items()})
        pulled: State = {}
        if self.is_softless:
            tokens = self._tokens(block.norm1(token)[None], None)
            counted = (
                self.sequence.tokens
                if self.sequence.mask is None
                else int(self.sequence.mask.sum())
            )
            o = self._read(tokens, total) * linear.gain(
                counted, block.attn.options.get("token_scale")
            )
            pulled |= self._pull(tokens, total)
        else:
            o = exponents.averages(total)
        joined = o.transpose(1, 2).flatten(2)[0].to(token.dtype)
        token = token + block.gamma1 * block.attn.proj(joined)
        token = block.norm2(token)
        return pulled | {"class": token + block.gamma2 * block.mlp(token)}

    def _tokens(self, h: Tensor, mask: Tensor | None) -> Tokens:
        """q, k and v of normalised tokens (1,n,D)."""
        q, k, v = unpacked(self.block.attn.qkv(h), self.block.attn.num_heads)
        return Tokens(q, k, v, mask, mask)

    def _read(self, token: Tokens, total: Summary) -> Tensor:
        """The class token's output (1,H,1,d), before token_scale."""
        reader = self.sweep.finish(total, **self.extras)
        if self.record.has_matrix:
            return token.q.to(reader.dtype) @ reader
        return self.record.streaming.read(wide(token), reader, **self.extras)

    def _pull(self, token: Tokens, total: Summary) -> State:
        """What the weights of the tokens are read with.

        By a matrix it is q^ / |k| of the class token, (1,H,1,d): its product with a token's k is
        the weight of that token. Else it is the slope of the class token's output in each entry of
        the summary, and the summary itself.
        """
        if not self.record.has_matrix:
            slopes = weights.pull(self.record.streaming, wide(token), total, self.extras)
            return {
                f"{kind}.{name}": x
                for kind, of in (("pull", slopes), ("total", total))
                for name, x in of.items()
            }
        q = token.q.double()
        for side in ("q", "k") if "q" in total else ():
            q = q / root(total[side].double(), self.record.hat.norm).clamp_min(EPS)
        return {"pull": q}

    def row(self, x: Tensor, span: slice, state: State) -> Tensor:
        """The class token's weights over patch tokens x (n,D) of the last layer: (n,), signed, mean
        over heads.
        """
        tokens = self._tokens(self.block.norm1(self.entering(x))[None], self.sequence.part(span)[0])
        if self.record.has_matrix:
            return (state["pull"] @ tokens.k.double().mT)[0, :, 0].mean(0)
        total, slopes = (
            {name.removeprefix(kind): x for name, x in state.items() if name.startswith(kind)}
            for kind in ("total.", "pull.")
        )
        return weights.row(self.record.streaming, wide(tokens), total, slopes, None, self.extras)[
            0
        ].mean(0)


class Mean(TailStage):
    """The mean of the finished tokens."""

    def __init__(self, tail: "Tail", first: int) -> None:
        self.tail, self.first = tail, first  # tokens ahead of `first` are left out

    def part(self, x: Tensor, span: slice, _: State) -> Summary:
        """The sum (1,D) of those of the tokens x (n,D) that count, and their number, in float64."""
        mask = self.tail.sequence.part(span)[0]
        counted = (
            torch.ones(len(x), dtype=torch.bool, device=x.device)
            if mask is None
            else mask[0].clone()
        )
        counted[: max(0, self.first - span.start)] = False
        finished = self.tail.finished(x).masked_fill(~counted[:, None], 0)
        return {"sum": finished.double().sum(0, keepdim=True), "count": counted.sum().double()}

    def close(self, total: Summary, state: State) -> State:
        return state | {"mean": total["sum"] / total["count"].clamp_min(1)}


class Tail:
    """The stages behind the last layer of a host, and the head."""

    def __init__(self, host: StreamedHost, sequence: TokenSequence) -> None:
        self.host, self.model, self.sequence = host, host.model, sequence
        blocks: tuple[ClassBlock, ...] = ()
        for block in host.class_blocks:
            blocks += (ClassBlock(block, blocks, sequence),)
        self.blocks = blocks
        self.averages = host.averages
        inside = getattr(self.model, "pool_include_prefix", False)
        self.stages: list[TailStage] = [
            *blocks,
            *([Mean(self, 0 if inside else host.prefix)] if self.averages else []),
        ]

    def start(self) -> State:
        """What the first stage is given."""
        return {"class": self.model.cls_token[0]} if self.blocks else {}

    def finished(self, x: Tensor) -> Tensor:
        """Tokens of the last layer (n,D) as `forward_features` gives them."""
        for block in self.blocks:
            x = block.change(x)
        return self.model.norm(x)

    @property
    def row(self) -> ClassBlock | None:
        """The class attention whose row is drawn."""
        return next((block for block in reversed(self.blocks) if block.is_softless), None)

    def head(self, prefix: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Pooled features (1,D) and logits (1,classes) from the tokens ahead of the patches, as
        they leave the last layer, and the state.
        """
        model = self.model
        if self.averages:
            features = state["mean"].to(self.host.dtype)
            features = getattr(model, "fc_norm", torch.nn.Identity())(features)
            return features, model.head(features)
        tokens = model.norm(state["class"] if self.blocks else prefix)[None]
        return model.forward_head(tokens, pre_logits=True), model.forward_head(tokens)
