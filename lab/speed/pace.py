"""As many rounds as fit into a few seconds: short calls need many, long ones would take the day."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from softless.compare.timing import Timings, interleaved

# rounds: odd, so that the median is one of them, and so many that their quarters are not the
# extremes
LEAST, MOST = 7, 101


def paced(
    calls: Mapping[str, Callable[[], Any]],
    seconds: float,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Time the calls in turns for about so many seconds, at least seven rounds and at most 101; a
    round or two before are dropped.

    Args:
        calls: what to time, by name.
        seconds: about how long all rounds take together.
        clock: seconds.
    """
    elapsed = _round(calls, clock)  # pays for what happens once: packing weights, first allocations
    if elapsed < seconds / MOST:
        elapsed = _round(calls, clock)
    rounds = max(LEAST, min(MOST, int(seconds / max(elapsed, 1e-9))))
    return interleaved(
        calls, rounds=rounds - (rounds + 1) % 2, warmup=1 if elapsed < seconds else 0, clock=clock
    )


def _round(calls: Mapping[str, Callable[[], Any]], clock: Callable[[], float]) -> float:
    timed = interleaved(calls, rounds=1, warmup=0, clock=clock)
    return sum(values[0] for values in timed.seconds.values())
