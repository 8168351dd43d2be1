"""Where an axis puts its numbers, and how they are written so that they differ."""

import math
from collections.abc import Callable, Sequence

MOST = 12  # digits that are tried


def ticks(
    low: float, high: float, count: int = 5, within: tuple[float, float] = (-math.inf, math.inf)
) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) from `low` or below to `high` or above,
    about `count` of them.

    Args:
        low: least value.
        high: largest value; where it is the least too, the axis has room on both sides.
        count: of the values, about.
        within: between which the room may lie: 0 and 1 for shares.
    """
    if not high > low:
        room = (abs(low) or 1) / 2
        low, high = max(low - room, within[0]), min(high + room, within[1])
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= min((m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= count), default=10)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def powers(low: float, high: float) -> list[float]:
    """Powers of ten from `low` or below to `high` or above, both above 0."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]


def labels(
    numbers: Sequence[float], write: Callable[[float, int], str], digits: int = 0
) -> list[str]:
    """The numbers with as few digits as tell them apart.

    Args:
        numbers: different ones.
        write: a number with so many digits.
        digits: the fewest.
    """
    for digit_count in range(digits, MOST + 1):
        texts = [write(number, digit_count) for number in numbers]
        if len(set(texts)) == len(set(numbers)):
            break
    return texts


def whole_ticks(high: int, count: int = 6) -> list[int]:
    """Round whole numbers from 0 up to `high` at most: the epochs under a curve."""
    steps = [m * 10**e for e in range(7) for m in (1, 2, 5)]
    step = next(step for step in steps if high / step <= count)
    return list(range(0, high + 1, step))
