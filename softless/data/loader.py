"""Batches whose content depends on (seed, epoch, index) alone: not on workers, ranks, or what ran
before.

An epoch is a sequence of *positions*: position p stands for image p % n in its copy p // n, so that
each copy of repeated augmentation draws its own randomness.
"""

import random
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from softless import ranks
from softless.data.samples import Samples
from softless.data.transforms import Pipeline
from softless.errors import UsageError

CACHE_BYTES = 512 * 2**20  # decoded images are kept up to this size, over all workers of a loader
LEFT_OVER = 30  # seconds that a loader's process outlives a SIGTERM, if its parent does not end it
_MASK = 2**64 - 1


class TransformedSamples(Dataset[tuple[Any, Any]]):
    """(tensor, target) of each position, its randomness drawn from (seed, epoch, position) alone.

    Python's, numpy's and torch's generators are seeded for the call and restored after it.

    What the pipeline does alike in every epoch (decoding; resizing where no random crop follows;
    everything in evaluation) is kept in memory until `cache_bytes` are full. Images beyond are
    decoded each time. The values are the same either way: nothing is kept in a reduced form that
    the uncached path would not also use.
    """

    def __init__(
        self,
        samples: Samples,
        transform: Pipeline,
        seed: int = 0,
        *,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.samples, self.transform, self.seed = samples, transform, seed
        # seen by workers that outlive an epoch
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._room = 0 if samples.varies else cache_bytes
        self._cache: dict[int, Any] = {}

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the randomness derives from, in this process and its workers."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> tuple[Any, Any]:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[tuple[Any, Any]]:
        if self.transform.fixed and not self.samples.varies:
            return [self._item(position) for position in positions]
        epoch = int(self._epoch)
        items = []
        with generators_restored():
            for position in positions:
                seed_generators(self.seed, epoch, position)
                items.append(self._item(position))
        return items

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}  # a worker started afresh decodes for itself

    def _item(self, position: int) -> tuple[Any, Any]:
        index = position % len(self.samples)
        prepared, cached = self._prepared(index)
        finished = self.transform.finish(prepared, cached=cached)
        if self.transform.joint:
            sample: tuple[Any, Any] = finished
            return sample
        return finished, self.samples.target(index)

    def _prepared(self, index: int) -> tuple[Any, bool]:
        """What is the same in every epoch, and whether it is kept."""
        if index in self._cache:
            return self._cache[index], True
        image = self.samples.image(index)
        prepared = self.transform.prepare(
            (image, self.samples.target(index)) if self.transform.joint else image
        )
        size = _bytes(prepared)
        cached = size <= self._room
        if cached:
            self._room -= size
            self._cache[index] = prepared
        return prepared, cached


class EpochOrder(Sampler[list[int]]):
    """Batches of positions for one rank; the order derives from (seed, epoch).

    The global order is a permutation of the images, each `repeats` times in a row, cut to the n //
    batch whole batches of an epoch of n images. Rank r takes every world-th position of each global
    batch, so copies of an image land on different ranks, and any number of ranks sees the same
    global batches. With one rank and `repeats=3` this is DeiT's RASampler; that one also rounds n
    down to a multiple of 256 before batches are formed.

    Args:
        batch: images of a batch over all ranks.
        parts: batches of a step, which are drawn together.
        whole_batches: rank r takes every world-th batch as it is instead: ranks that compute for
            one that trains.

    Raises:
        UsageError: fewer images than a step takes, or a batch that does not divide among the ranks.
    """

    def __init__(
        self,
        n: int,
        batch: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        repeats: int = 1,
        *,
        whole_batches: bool = False,
        parts: int = 1,
    ) -> None:
        if batch < 1 or repeats < 1:
            raise UsageError(
                f"batch_size={batch}, augment.repeats={repeats}: both must be at least 1"
            )
        if batch % world and not whole_batches:
            raise UsageError(
                f"batch_size={batch} does not divide among {world} processes: choose a multiple "
                f"of {world}"
            )
        if n < batch:
            raise UsageError(
                f"batch_size={batch} is more than the {n} training images: set batch_size={n} or "
                "less"
            )
        step = batch * parts
        if n < step:
            raise UsageError(
                f"batch_size={batch} x accumulate={parts} is a step of {step} images, and there "
                f"are {n} for training: "
                f"set accumulate={n // batch} or less"
            )
        self.n, self.batch, self.seed, self.rank, self.world, self.repeats = (
            n,
            step,
            seed,
            rank,
            world,
            repeats,
        )
        self.whole_batches = whole_batches
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """The epoch that the order derives from, and the step at which the next pass starts: a
        resumed epoch has done some.
        """
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return self.n // self.batch

    def __iter__(self) -> Iterator[list[int]]:
        order = self.positions()
        starts = range(self.start * self.batch, len(self) * self.batch, self.batch)
        if self.whole_batches:
            yield from (
                order[start : start + self.batch].tolist()
                for start in starts[self.rank :: self.world]
            )
            return
        for start in starts:
            yield order[start + self.rank : start + self.batch : self.world].tolist()

    def positions(self) -> np.ndarray:
        """The global order of this epoch, (L,) of len(self) * batch: positions index + n * copy."""
        images = np.random.default_rng((self.seed, self.epoch)).permutation(self.n)
        length = len(self) * self.batch
        first = images[: -(-length // self.repeats)]
        copies = first[:, None] + self.n * np.arange(self.repeats)
        return copies.reshape(-1)[:length]


class EpochLoader(DataLoader[Any]):
    """A DataLoader of (images, targets) that is told the epoch before each pass: (B, C, S, S) and
    (B,), or lists of a joint pipeline.

    `positions` are the places in the data set of the images this loader yields in evaluation, in
    order.
    """

    positions: Sequence[int] | np.ndarray = ()
    # batches of the rank that has most, where ranks share the images: they walk abreast
    rounds: int | None = None

    def __iter__(self) -> Any:
        return (
            super().__iter__()
            if self.rounds is None
            else ranks.abreast(super().__iter__(), self.rounds)
        )

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Set the epoch of the order and of the augmentations, and the step at which the next pass
        starts.
        """
        if isinstance(self.batch_sampler, EpochOrder):
            self.batch_sampler.set_epoch(epoch, start)
        if isinstance(self.dataset, TransformedSamples):
            self.dataset.set_epoch(epoch)


def train_loader(
    samples: Samples,
    transform: Pipeline,
    *,
    batch: int,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
    repeats: int = 1,
    workers: int = 0,
    whole_batches: bool = False,
    parts: int = 1,
) -> EpochLoader:
    """Batches for training: this rank's share of each `parts` global batches, or with
    `whole_batches` every world-th of those.

    Call `set_epoch` before each pass.
    """
    order = EpochOrder(
        len(samples), batch, seed, rank, world, repeats, whole_batches=whole_batches, parts=parts
    )
    return _loader(samples, transform, order, seed, workers)


def eval_loader(
    samples: Samples,
    transform: Pipeline,
    *,
    batch: int,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    keep: bool = True,
) -> EpochLoader:
    """Batches for evaluation: every image once and in order; nothing is padded.

    Of several ranks each has every world-th batch of one process, so a batch has the same mates
    whoever computes it.

    Args:
        samples: the images.
        transform: what happens to each.
        batch: images at once.
        workers: processes that load images; 0 loads in this one.
        rank: which of the ranks this is.
        world: how many share the images; those of torch's group, which all walk through their
            loaders.
        keep: whether images are kept in memory for the next pass.
    """
    batches = [
        range(start, min(start + batch, len(samples))) for start in range(0, len(samples), batch)
    ]
    mine = batches[rank::world]
    loader = _loader(samples, transform, mine, 0, workers, keep=keep)
    loader.positions = range(len(samples)) if world == 1 else np.concatenate([np.arange(0), *mine])
    loader.rounds = None if world == 1 else -(-len(batches) // world)
    return loader


def shared_loader(
    samples: Samples, transform: Pipeline, *, batch: int, workers: int = 0
) -> EpochLoader:
    """An `eval_loader` of one pass, whose batches all ranks of torch's group share."""
    world = {"rank": ranks.rank(), "world": ranks.size()}
    return eval_loader(samples, transform, batch=batch, workers=workers, keep=False, **world)


def seed_generators(*key: int) -> None:
    """Seed Python's, numpy's and torch's global generators from a key of whole numbers."""
    mixed = mix(*key)
    random.seed(mixed)
    np.random.seed(mixed & 0xFFFFFFFF)  # noqa: NPY002 (timm draws from numpy's global generator)
    torch.default_generator.manual_seed(mixed >> 1)


@contextmanager
def generators_restored() -> Iterator[None]:
    """Give the caller's generators back as they were."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.default_generator.set_state(states[2])


def mix(*key: int) -> int:
    """64 bits from whole numbers by splitmix64's finaliser (Steele, Lea, Flood 2014): neighbours
    get unrelated values.
    """
    state = 0x9E3779B97F4A7C15
    for number in key:
        state = (state ^ number) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
        state = (state ^ (state >> 31)) + 0x9E3779B97F4A7C15 & _MASK
    return state


def _loader(
    samples: Samples, transform: Pipeline, order: Any, seed: int, workers: int, *, keep: bool = True
) -> EpochLoader:
    if workers < 0:
        raise UsageError(
            f"data.workers={workers}: 0 loads in the training process, 1 or more in others"
        )
    return EpochLoader(
        TransformedSamples(
            samples, transform, seed, cache_bytes=CACHE_BYTES // max(workers, 1) if keep else 0
        ),
        batch_sampler=order,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        # a loader otherwise draws from the caller's generator
        generator=torch.Generator().manual_seed(seed),
        worker_init_fn=_outlive_signals,
        collate_fn=lists if transform.joint else None,
    )


def lists(items: Sequence[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    """(images, targets) of a batch, each a list: images (C, h, w) of several sizes, and targets of
    several lengths, make no tensor.
    """
    return [image for image, _ in items], [target for _, target in items]


def _outlive_signals(_: int) -> None:
    """A signal to the whole group of processes is the parent's: it saves its state and ends its
    loaders. One that is left over ends by itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(LEFT_OVER))


def _bytes(prepared: Any) -> int:
    if isinstance(prepared, torch.Tensor | np.ndarray):
        return prepared.nbytes
    if isinstance(prepared, Mapping):
        return sum(map(_bytes, prepared.values()))
    if isinstance(prepared, tuple | list):
        return sum(map(_bytes, prepared))
    # Pillow stores RGB in four bytes per pixel
    if hasattr(prepared, "size") and hasattr(prepared, "getbands"):
        width, height = prepared.size
        return width * height * (1 if len(prepared.getbands()) == 1 else 4)
    return sys.getsizeof(prepared)
