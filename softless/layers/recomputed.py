"""A function of all tokens that works on a chunk of them at once, with exact gradients: nothing of a
chunk is kept, and the backward pass computes it again.

    sweeps:  summary of each chunk, all merged, finished to what the next sweep or the last step reads
    read:    the output of a chunk, from its tokens and what the last sweep was finished to

The backward pass goes the same way back. Each chunk's output gives gradients of its tokens and of
the reader; the reader's go through `finish` and `merge` to the summary of each chunk; a summary's to
its tokens. What is held beside the input is a chunk and the small summaries.
"""

# B batch, N tokens, n of a chunk, W width

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils import _pytree as pytree

from softless.attention.streaming import Summary, add
from softless.errors import UsageError

Merge = Callable[[Summary, Summary], Summary]


@dataclass(frozen=True)
class ChunkSweep:
    """One pass over the chunks: what each adds, how two of them join, what is made of all."""

    # (tokens (B,n,W), where they stand, reader of the sweep before) -> summary
    summarise: Callable[[Tensor, slice, Any], Summary]
    finish: Callable[[Summary], Any]
    merge: Merge = add


@dataclass(frozen=True)
class ChunkedFunction:
    """Tokens (B,N,W) -> tokens (B,N,W'), or without `read` what the last sweep is finished to, a
    tensor.

    Its values hang on the tokens, on `parameters`, and on nothing else that has a gradient.
    """

    sweeps: Sequence[ChunkSweep]
    # (tokens (B,n,W), where they stand, reader) -> (B,n,W')
    read: Callable[[Tensor, slice, Any], Tensor] | None
    # asked again in the backward pass: who exchanged them in between is told
    parameters: Callable[[], Iterable[Tensor]]
    # of a last reader: (tokens (B,n,W), where they stand) -> (B,n,W'), a shorter way than `read` to
    # the same where no gradient is wanted
    ready: Callable[[Any], Callable[[Tensor, slice], Tensor]] | None = None

    def reading(self, reader: Any) -> Callable[[Tensor, slice], Tensor]:
        """What makes the output of a chunk, without gradients: (B,n,W) -> (B,n,W')."""
        read = self.read
        assert read is not None
        if self.ready is not None:
            return self.ready(reader)
        return lambda x, span: read(x, span, reader)

    def __call__(self, x: Tensor, spans: Sequence[slice]) -> Tensor:
        """The output of all tokens x (B,N,W), chunk by chunk."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        if torch.is_grad_enabled() and (x.requires_grad or parameters):
            return _Recomputed.apply(self, spans, x, *parameters)
        with torch.no_grad():
            return self.forwards(x, spans)[0]

    def forwards(self, x: Tensor, spans: Sequence[slice]) -> tuple[Tensor, list[list[Summary]]]:
        """The output, and the summaries of each sweep's chunks."""
        reader, kept = None, []
        for sweep in self.sweeps:
            summaries = side_by_side(
                (sweep.summarise(x[:, span], span, reader) for span in spans), len(spans)
            )
            reader = sweep.finish(merged(summaries, sweep.merge))
            kept.append(summaries)
        if self.read is None:
            assert isinstance(reader, Tensor)
            return reader, kept
        y: Tensor | None = None
        read = self.reading(reader)
        for span in spans:
            part = read(x[:, span], span)
            if y is None:
                y = part.new_empty(x.shape[0], spans[-1].stop, part.shape[-1])
            y[:, span] = part
        assert y is not None
        return y, kept


def spans_of(tokens: int, chunk: int) -> list[slice]:
    """Consecutive chunks of so many tokens at most, all of about one size.

    A last chunk of a single token would ask, alone, whether a channel has next to nothing in it
    (`attention.norms.settle`).
    """
    number = -(-tokens // chunk)
    stops = [tokens * (i + 1) // number for i in range(number)]
    return [slice(start, stop) for start, stop in zip([0, *stops], stops, strict=False)]


def side_by_side(summaries: Iterable[Summary], number: int) -> list[Summary]:
    """So many summaries, each entry of all of them in one tensor: what is small and stays would keep
    the memory of the chunks apart that come and go between.
    """
    stacks: dict[str, Tensor] = {}
    for i, summary in enumerate(summaries):
        for name, x in summary.items():
            if name not in stacks:
                stacks[name] = x.new_empty((number, *x.shape))
            stacks[name][i] = x
    return [{name: stack[i] for name, stack in stacks.items()} for i in range(number)]


def merged(summaries: Sequence[Summary], merge: Merge) -> Summary:
    """All chunks together, joined in float64 and in the dtype of each: so joined, neither the size
    of the chunks nor their order shows.
    """
    if len(summaries) == 1:
        return summaries[0]
    kinds = {name: x.dtype for name, x in summaries[0].items()}
    total = _precise(summaries[0])
    for summary in summaries[1:]:
        total = merge(total, _precise(summary))
    return {name: x.to(kinds[name]) for name, x in total.items()}


def _precise(summary: Summary) -> Summary:
    return {
        name: x.double() if x.is_floating_point() and x.device.type != "mps" else x
        for name, x in summary.items()
    }


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, function: ChunkedFunction, spans: Sequence[slice], x: Tensor, *parameters: Tensor
    ) -> Tensor:
        y, kept = function.forwards(x, spans)
        ctx.function, ctx.spans, ctx.kept = function, spans, kept
        ctx.autocast = _autocast(x.device.type)
        ctx.save_for_backward(x, *parameters)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        now = [p for p in ctx.function.parameters() if p.requires_grad]
        if len(now) != len(parameters) or any(
            a is not b for a, b in zip(now, parameters, strict=True)
        ):
            raise UsageError(
                "the parameters of a model that works in chunks were exchanged between its forward "
                "and its backward pass, and both compute with them: build it with chunk=0"
            )
        with ctx.autocast():
            way = _Back(ctx.function, ctx.spans, x, parameters, wants_x=ctx.needs_input_grad[2])
            way.go(ctx.kept, grad)
        return (None, None, way.of_x, *way.of_parameters)


class _Back:
    """The gradients of one backward pass, as they add up."""

    def __init__(
        self,
        function: ChunkedFunction,
        spans: Sequence[slice],
        x: Tensor,
        parameters: Sequence[Tensor],
        *,
        wants_x: bool,
    ) -> None:
        self.function, self.spans, self.x, self.parameters = function, spans, x, parameters
        self.of_x = torch.zeros_like(x) if wants_x else None
        self.of_parameters = [
            torch.zeros_like(p, memory_format=torch.contiguous_format) for p in parameters
        ]

    def go(self, kept: Sequence[Sequence[Summary]], grad: Tensor) -> None:
        """From the gradient of the output to those of tokens and parameters."""
        stages = self._stages(kept)
        last = stages[-1] if stages else None
        gradients: list[Tensor | None]
        if self.function.read is None:
            gradients = [grad]
        else:
            gradients = self._read(last, grad)
        for number in reversed(range(len(stages))):
            ahead = stages[number - 1] if number else None
            gradients = self._sweep(number, stages[number], ahead, gradients)

    def _stages(self, kept: Sequence[Sequence[Summary]]) -> list["_Stage"]:
        """Each sweep's way from its chunks' summaries to its reader, with a graph."""
        stages = []
        for sweep, summaries in zip(self.function.sweeps, kept, strict=True):
            leaves = [{name: _leaf(x) for name, x in summary.items()} for summary in summaries]
            with torch.enable_grad():
                reader = sweep.finish(merged(leaves, sweep.merge))
            stages.append(_Stage(leaves, reader))
        return stages

    def _read(self, last: "_Stage | None", grad: Tensor) -> list[Tensor | None]:
        """Back through the outputs of all chunks: the gradients of the reader's tensors."""
        read = self.function.read
        assert read is not None
        gradients: list[Tensor | None] = [None] * (0 if last is None else len(last.inputs))
        for span in self.spans:
            tokens = self._tokens(span)
            with torch.enable_grad():
                y = read(tokens, span, None if last is None else last.handed_on)
            self._spread([y], [grad[:, span]], span, tokens, last, gradients)
        return gradients

    def _sweep(
        self,
        number: int,
        stage: "_Stage",
        ahead: "_Stage | None",
        gradients: Sequence[Tensor | None],
    ) -> list[Tensor | None]:
        """Back through one sweep: the gradients of the tensors of the reader ahead of it."""
        names = [(i, name) for i, leaf in enumerate(stage.leaves) for name in leaf]
        leaves = [stage.leaves[i][name] for i, name in names]
        outputs, weights = _with_gradients(stage.outputs, gradients)
        differentiable = [x for x in leaves if x.requires_grad]
        of_leaves: dict[int, Tensor | None] = {}
        if outputs:
            got = torch.autograd.grad(
                outputs, [*differentiable, *self.parameters], weights, allow_unused=True
            )
            of_leaves = {id(x): g for x, g in zip(differentiable, got, strict=False)}
            self._add_parameters(got[len(differentiable) :])
        of_ahead: list[Tensor | None] = [None] * (0 if ahead is None else len(ahead.inputs))
        summarise = self.function.sweeps[number].summarise
        for span, leaf in zip(self.spans, stage.leaves, strict=True):
            wanted = {name: of_leaves.get(id(x)) for name, x in leaf.items()}
            if all(g is None for g in wanted.values()):
                continue
            tokens = self._tokens(span)
            with torch.enable_grad():
                summary = summarise(tokens, span, None if ahead is None else ahead.handed_on)
            entries = [summary[name] for name in wanted]
            outputs, weights = _with_gradients(entries, list(wanted.values()))
            self._spread(outputs, weights, span, tokens, ahead, of_ahead)
        return of_ahead

    def _tokens(self, span: slice) -> Tensor:
        return self.x[:, span].detach().requires_grad_(self.of_x is not None)

    def _spread(
        self,
        outputs: Sequence[Tensor],
        weights: Sequence[Tensor],
        span: slice,
        tokens: Tensor,
        stage: "_Stage | None",
        of_stage: list[Tensor | None],
    ) -> None:
        """Add what the gradients of a chunk's outputs make of its tokens, the parameters and the
        tensors of a reader.
        """
        if not any(y.requires_grad for y in outputs):
            return
        own = [tokens] if self.of_x is not None else []
        read = [] if stage is None else stage.inputs
        asked = [x for x in read if x.requires_grad]
        got = torch.autograd.grad(
            outputs, [*own, *asked, *self.parameters], weights, allow_unused=True
        )
        if self.of_x is not None and got[0] is not None:
            self.of_x[:, span] += got[0]
        of_asked = {id(x): g for x, g in zip(asked, got[len(own) :], strict=False)}
        for i, x in enumerate(read):
            of_stage[i] = _sum(of_stage[i], of_asked.get(id(x)))
        self._add_parameters(got[len(own) + len(asked) :])

    def _add_parameters(self, gradients: Sequence[Tensor | None]) -> None:
        for total, gradient in zip(self.of_parameters, gradients, strict=True):
            if gradient is not None:
                total.add_(gradient)


class _Stage:
    """The finished summary of a sweep: its tensors with a graph behind them, and the same cut off
    from it, which the chunks read.
    """

    def __init__(self, leaves: Sequence[Summary], reader: Any) -> None:
        self.leaves = leaves
        flat, structure = pytree.tree_flatten(reader)
        # a reader may name a tensor twice, and its gradient counts once
        self.outputs = [*{id(x): x for x in flat if isinstance(x, Tensor)}.values()]
        cut = {id(x): _leaf(x) for x in self.outputs}
        self.inputs = [cut[id(x)] for x in self.outputs]
        self.handed_on = pytree.tree_unflatten([cut.get(id(x), x) for x in flat], structure)


def _leaf(x: Tensor) -> Tensor:
    """The same numbers, at which a gradient stops."""
    return x.detach().requires_grad_(x.is_floating_point())


def _with_gradients(
    outputs: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> tuple[list[Tensor], list[Tensor]]:
    pairs = [
        (y, g) for y, g in zip(outputs, gradients, strict=True) if g is not None and y.requires_grad
    ]
    return [y for y, _ in pairs], [g for _, g in pairs]


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if b is None:
        return a
    return b.clone() if a is None else a.add_(b)


def _autocast(kind: str) -> Callable[[], AbstractContextManager[Any]]:
    """What autocast was in the forward pass, for the backward pass."""
    if not torch.amp.is_autocast_available(kind):
        return torch.enable_grad  # there is none to switch
    on, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return lambda: torch.autocast(kind, dtype=dtype, enabled=on, cache_enabled=False)
