"""Where softmax is the faster choice."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab.speed.work import Case

UNITS = {"pixels": " px", "tokens": " tokens", "dim": " channels"}  # what a size is


@dataclass(frozen=True)
class Crossover:
    """The sizes at which one rival (softmax, or XCA's) is faster than ours, in one setting."""

    setting: Mapping[str, Any]
    rival: str
    slower: tuple[int, ...]  # sizes at which ours is the slower one
    sizes: tuple[int, ...]
    at: float | None  # where the two are equal, between the last size that is lost and the next
    unit: str

    @property
    def sentence(self) -> str:
        """In words."""
        word = UNITS[self.unit]
        if not self.slower:
            return f"{self.rival} is faster at no size measured, {_listed(self.sizes)}{word}"
        lost = f"{self.rival} is faster at {_listed(self.slower)}{word}"
        if self.at is None:
            return f"{lost}, the {'largest' if len(self.sizes) > 1 else 'only'} size measured"
        return f"{lost}; ours from about {self.at:,.0f}{word} on"

    def row(self) -> dict[str, Any]:
        """For a CSV file."""
        return {"kind": "crossover", **self.setting, "rival": self.rival, "note": self.sentence}


def crossovers(
    cases: Sequence[Case], own: str, rival: str, unit: str, apart: Sequence[str]
) -> list[Crossover]:
    """One for each setting: the cases that agree in what is kept `apart` (dtype, batch, …).

    `unit` is what the size is.
    """
    groups: dict[tuple[tuple[str, Any], ...], dict[int, float]] = {}
    for case in cases:
        ratio = case.ratio(rival, own)
        if ratio is not None:
            setting = tuple((name, getattr(case.work, name)) for name in apart)
            groups.setdefault(setting, {})[getattr(case.work, unit)] = ratio.median
    return [
        _one(dict(setting), rival, dict(sorted(ratios.items())), unit)
        for setting, ratios in groups.items()
    ]


def _one(
    setting: Mapping[str, Any], rival: str, ratios: Mapping[int, float], unit: str
) -> Crossover:
    sizes = tuple(ratios)
    slower = tuple(size for size in sizes if ratios[size] < 1)
    at = None
    if slower and slower[-1] != sizes[-1]:
        low, high = slower[-1], sizes[sizes.index(slower[-1]) + 1]
        share = math.log(1 / ratios[low]) / math.log(ratios[high] / ratios[low])
        at = low * (high / low) ** share
    return Crossover(setting, rival, slower, sizes, at, unit)


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(f"{size:,}" if size >= 10_000 else str(size) for size in sizes)
