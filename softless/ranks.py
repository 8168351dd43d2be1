"""The ranks that share one piece of work: which of how many this is, what they exchange, and whose
each part is.

They are the processes of torch's group, once `training.world.join` has opened it. Alone every
function is what one process does. All ranks call these functions in the same order.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch.distributed as dist

from softless.errors import SoftlessError, UsageError

T = TypeVar("T")
_END: Any = object()


class Done(Exception):
    """This rank has done its part: what is left is the first one's alone."""


def size() -> int:
    """How many there are; 1 where no group is open."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0 on."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather(mine: T) -> list[T]:
    """What every rank has, by rank."""
    if size() == 1:
        return [mine]
    gathered: list[Any] = [None] * size()
    dist.all_gather_object(gathered, mine)
    return gathered


def first(work: Callable[[], T]) -> T:
    """Let rank 0 do it; every rank returns its result, or raises its error (so that none waits for
    a dead one).
    """
    if size() == 1:
        return work()
    box: list[Any] = [None, None]
    if rank() == 0:
        try:
            box[0] = work()
        except (SoftlessError, OSError) as error:
            box[1] = error
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise shared(box[1])
    return box[0]


def together(work: Callable[[], T]) -> T:
    """Let every rank do it; where one cannot, all raise an error, so that none waits for a dead
    one.

    Raises:
        UsageError: another rank could not; that one raises its own error.
    """
    if size() == 1:
        return work()
    done, error = None, None
    try:
        done = work()
    except (SoftlessError, OSError) as caught:
        error = caught
    messages = gather(None if error is None else str(error))
    if all(text is not None for text in messages):
        raise shared(error)
    if error is not None:
        raise error if rank() == 0 else shared(error)
    for number, text in enumerate(messages):
        if text is not None:
            raise shared(UsageError(f"rank {number} of {size()}: {text}"))
    return done  # type: ignore[return-value]


def shared(error: Any) -> Any:
    """The error as one that all ranks raise, so that the first one says it."""
    if isinstance(error, SoftlessError):
        error.shared = True
    return error


def abreast(mine: Iterable[T], rounds: int) -> Iterator[T]:
    """This rank's items, each once every rank has its own of the same round: an error or a death of
    one is seen by all.

    Args:
        mine: at most one a round.
        rounds: of the rank that has most.

    Raises:
        UsageError: the item of another rank could not be made.
    """
    source = iter(mine)
    for _ in range(rounds):
        yield from together(lambda: [item] if (item := next(source, _END)) is not _END else [])


def interleaved(parts: Sequence[Sequence[T]]) -> list[T]:
    """What the ranks have, by rank, in the order of the whole: rank r has the places r, r + size, r
    + 2 size, …

    >>> interleaved([[1, 4], [2, 5], [3]])
    [1, 2, 3, 4, 5]
    """
    merged: list[Any] = [None] * sum(map(len, parts))
    for number, part in enumerate(parts):
        merged[number :: len(parts)] = part
    return merged


def in_order(mine: Iterable[T], total: int) -> Iterator[T]:
    """What all ranks have in the order of the whole, on the first rank, as it comes; the others get
    nothing.

    Args:
        mine: this rank's items of the whole: rank r has the places r, r + size, r + 2 size, …
        total: items of the whole.
    """
    for round_items in _rounds(mine, total, everywhere=False):
        yield from round_items


def everywhere(mine: Iterable[T], total: int) -> Iterator[T]:
    """What all ranks have in the order of the whole, on every rank, as it comes; the arguments are
    those of `in_order`.
    """
    for round_items in _rounds(mine, total, everywhere=True):
        yield from round_items


def _rounds(mine: Iterable[T], total: int, *, everywhere: bool) -> Iterator[list[T]]:
    if size() == 1:
        for item in mine:
            yield [item]
        return
    rounds = abreast(mine, -(-total // size()))
    for start in range(0, total, size()):
        count = min(size(), total - start)
        item = next(rounds) if rank() < count else next(rounds, None)
        yield _collected(item, everywhere=everywhere)[:count]


def _collected(item: Any, *, everywhere: bool) -> list[Any]:
    """The items of one round by rank; nothing on ranks that do not need them."""
    if everywhere:
        return gather(item)
    gathered: list[Any] | None = [None] * size() if rank() == 0 else None
    dist.gather_object(item, gathered, dst=0)
    return gathered or []
