"""Timing several calls fairly: interleaved in one process, medians, and ratios of pairs.

A machine's speed drifts (heat, neighbours, frequency). Calls that take turns meet the same drift.
So the ratio of two calls that ran one after the other is far steadier than the ratio of two
separate timings (design §7).
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import torch
from torch import nn

from softless.errors import UsageError


@dataclass(frozen=True)
class Spread:
    """A median with the quarters of the values around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        return cls(median(values), low, high)


@dataclass(frozen=True)
class Timings:
    """Seconds of each call in each round; round i of every call ran at the same time of the day."""

    seconds: Mapping[str, list[float]]

    def spread(self, name: str) -> Spread:
        return Spread.of(self.seconds[name])

    def ratio(self, name: str, base: str) -> Spread:
        """Time of `name` over time of `base`, from the pairs of each round: below one means that
        `name` is faster.
        """
        return Spread.of([
            a / b for a, b in zip(self.seconds[name], self.seconds[base], strict=True)
        ])

    def rates(self, name: str, items: int) -> Spread:
        """Things per second, where a call handles `items` of them."""
        return Spread.of([items / seconds for seconds in self.seconds[name]])


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 15,
    warmup: int = 3,
    synchronise: Callable[[], Any] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Time the calls in turns: each round runs every call once, starting with another one each
    time.

    Args:
        calls: what to time, by name.
        rounds: how often each is timed.
        warmup: rounds before, whose times are dropped (caches, lazy initialisation, compilation).
        synchronise: waits until the device is done (torch.cuda.synchronize), called before the
            clock is read.
        clock: seconds.

    Returns:
        Seconds by call, one number for each round in the order of the rounds.

    Raises:
        UsageError: no calls, or rounds below one.
    """
    if not calls or rounds < 1:
        raise UsageError(f"nothing to time: {len(calls)} calls, {rounds} rounds")
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warmup, rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            synchronise()
            start = clock()
            calls[name]()
            synchronise()
            elapsed = clock() - start
            if number >= 0:
                seconds[name].append(elapsed)
    return Timings(seconds)


def waiting_for(device: torch.device) -> Callable[[], Any]:
    """What waits until a device has done all it was given; nothing on a processor."""
    return {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(
        device.type, lambda: None
    )


def forward_pass(
    model: nn.Module, shape: tuple[int, ...], device: torch.device
) -> Callable[[], Any]:
    """A call of the model on one batch of noise, always the same, of `shape` (B, C, H, W)."""
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)

    @torch.inference_mode()
    def call() -> Any:
        return model(images)

    return call


@contextmanager
def threads_of(count: int | None) -> Iterator[int]:
    """Torch computes with so many threads within it, or as many as before; yields the number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
