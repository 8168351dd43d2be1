"""The residual streams of two models, walked block by block: whatever n images need is two tensors,
one for each.

Between two blocks a model computes what it likes (an embedding of the next stage, a norm). Where the
next block is given the very tensor that the last one answered, nothing is computed. Elsewhere the
model runs once more with its earlier blocks left out.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from softless.convert.refit.structure import BlockCall, Reached
from softless.errors import UsageError

SAME = 1e-3  # relative: a stream that was walked, and the model's own


@dataclass(frozen=True)
class Station:
    """A block of a model on its way, and how the stream comes to it."""

    path: str
    direct: bool  # whether it is given what the station before it answered, and beside it the same
    parts: int  # rows of its stream for each image: windows, patches of a fold
    truth: Tensor  # its stream on one image, (parts, …, C)


@dataclass(frozen=True)
class _Call:
    path: str
    args: tuple[Any, ...]  # with the values of the keywords
    output: Any


def stations(
    model: nn.Module, paths: Sequence[str], images: Tensor
) -> tuple[list[Station], dict[str, str]]:
    """Blocks in the order in which a model calls them, and why others are passed by.

    Args:
        model: in evaluation mode; not yet changed.
        paths: of the blocks.
        images: (2, C, h, w), which differ.
    """
    alone, other, both = (
        _calls(model, paths, images[rows]) for rows in (slice(0, 1), slice(1, 2), slice(0, 2))
    )
    counts = Counter(call.path for call in alone)
    walked: list[Station] = []
    passed = dict.fromkeys((path for path in paths if path not in counts), "it is not called")
    before: _Call | None = None
    for mine, theirs, joint in zip(alone, other, both, strict=True):
        why = "it is called more than once a pass" if counts[mine.path] > 1 else ""
        if why := why or _why_passed(mine, theirs, joint):
            passed[mine.path] = why
            continue
        direct = (
            before is not None
            and mine.args[0] is before.output
            and _same(mine.args[1:], before.args[1:])
        )
        walked.append(Station(mine.path, direct, len(mine.args[0]), mine.args[0].clone()))
        before = mine
    return walked, passed


def _why_passed(mine: _Call, theirs: _Call, joint: _Call) -> str:
    """Why the stream of a block cannot be walked; empty where it can."""
    stream = mine.args[0] if mine.args else None
    if not (isinstance(stream, Tensor) and isinstance(mine.output, Tensor)):
        return "it does not turn one stream into another"
    if stream.shape != mine.output.shape or stream.ndim < 3:
        return "what it answers is no stream as it was given"
    parts = len(stream)
    if len(joint.args[0]) != 2 * parts or not near(joint.args[0][:parts], stream):
        return "its stream is not one image after the other"
    if not (_same(mine.args[1:], theirs.args[1:]) and _same(mine.args[1:], joint.args[1:])):
        return "it is given a second tensor that hangs on the images"
    return ""


def near(x: Tensor, y: Tensor) -> bool:
    """Whether two streams of any shape are the same but for rounding."""
    return x.shape == y.shape and float((x - y).norm()) <= SAME * float(y.norm())


def _calls(model: nn.Module, paths: Sequence[str], images: Tensor) -> list[_Call]:
    seen: list[_Call] = []
    hooks = [
        model.get_submodule(path).register_forward_hook(
            lambda _, args, kwargs, output, path=path: seen.append(
                _Call(path, (*args, *kwargs.values()), output)
            ),
            with_kwargs=True,
        )
        for path in paths
    ]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _same(first: Any, second: Any) -> bool:
    """Whether a block is given the same beside its stream, whatever holds it."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.shape == second.shape and torch.equal(first, second)
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(_same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(_same, first, second))
    return first is second or (not isinstance(first, Tensor) and bool(first == second))


class Walk:
    """One model's stream at one block after the other, for all chunks of images.

    Args:
        model: in evaluation mode.
        images: chunks (b, C, h, w); each is asked for again where the model runs once more.
    """

    def __init__(self, model: nn.Module, images: Sequence[Tensor]) -> None:
        self.model, self.images = model, images
        self.calls: list[BlockCall] = []
        self.behind: list[str] = []  # the blocks that were left

    def enter(self, station: Station) -> None:
        """Come to a block from the stream behind the last, or from the images."""
        if station.direct and self.calls:
            return
        block = self.model.get_submodule(station.path)
        self.calls = [self._reach(block, index) for index in range(len(self.images))]

    def leave(self, path: str, streams: Iterator[Tensor]) -> None:
        """The stream (b, N, C) behind a block, chunk by chunk; the one ahead of it is let go."""
        for index, stream in enumerate(streams):
            call = self.calls[index]
            self.calls[index] = BlockCall(stream, call.args, call.kwargs)
        self.behind.append(path)

    def block(self, path: str) -> nn.Module:
        """The block itself."""
        return self.model.get_submodule(path)

    def _reach(self, block: nn.Module, index: int) -> BlockCall:
        """What a block is given, on one chunk."""
        kept: list[BlockCall] = []

        def reach(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            kept.append(BlockCall(args[0].detach(), args[1:], kwargs))
            raise Reached

        hook = block.register_forward_pre_hook(reach, with_kwargs=True)
        try:
            with ExitStack() as stack:
                for path in self.behind:
                    last = self.calls[index].stream if path == self.behind[-1] else None
                    stack.enter_context(_left_out(self.model.get_submodule(path), last))
                self.model(self.images[index].to(_first(self.model)))
        except Reached:
            return kept[0]
        finally:
            hook.remove()
        raise UsageError(
            f"a {type(block).__name__} of {type(self.model).__name__} is not called on these images"
        )


@contextmanager
def _left_out(block: nn.Module, output: Tensor | None) -> Iterator[None]:
    """A block that answers a stream that is known, or hands its own on."""
    forward = vars(block).get("forward")

    def answer(x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x if output is None else output

    block.forward = answer
    try:
        yield
    finally:
        if forward is None:
            del block.forward
        else:
            block.forward = forward


def _first(model: nn.Module) -> Tensor:
    return next(model.parameters())
