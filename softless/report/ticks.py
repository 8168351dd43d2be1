"""Where an axis puts its numbers."""

import math


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) from `low` or below to `high` or above, about `count` of them."""
    if not high > low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= min((m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= count), default=10)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def whole_ticks(high: int, count: int = 6) -> list[int]:
    """Round whole numbers from 0 up to `high` at most: the epochs under a curve."""
    steps = [m * 10**e for e in range(7) for m in (1, 2, 5)]
    step = next(step for step in steps if high / step <= count)
    return list(range(0, high + 1, step))
