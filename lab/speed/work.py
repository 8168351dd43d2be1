"""What is measured, and what was found: one `Case` is one piece of work done by several rivals in
turns.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from softless.compare.timing import Spread, Timings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# what tells one piece of work from another
SETTING = ("host", "dtype", "batch", "dim", "heads", "pixels", "tokens")


@dataclass(frozen=True)
class Work:
    """One piece of work: the same for every rival."""

    dtype: str
    batch: int
    tokens: int
    dim: int = 384
    heads: int = 8
    pixels: int | None = None  # along a side, where it is a whole model
    host: str | None = None

    @property
    def kind(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def columns(self) -> dict[str, Any]:
        """What tells this work from others, for a row."""
        return {name: getattr(self, name) for name in SETTING if getattr(self, name) is not None}

    def __str__(self) -> str:
        size = f"{self.pixels} px" if self.pixels else f"N={self.tokens}"
        return f"{self.dtype} {size} batch {self.batch}"


@dataclass(frozen=True)
class Case:
    """What the rivals took for one piece of work; every mapping is by rival."""

    work: Work
    errors: Mapping[str, float]  # against float64, checked before anything is timed
    paths: Mapping[str, str]  # which way the attention was computed
    timings: Timings | None = None
    # bytes held at most beyond what lay there before
    peaks: Mapping[str, int] = field(default_factory=dict)

    @property
    def rivals(self) -> list[str]:
        return list(self.timings.seconds if self.timings else self.peaks)

    def ratio(self, over: str, under: str, quantity: str = "time") -> Spread | None:
        """Time (or peak memory) of one rival over another's; None where one of them took no
        part.
        """
        if not {over, under} <= set(self.rivals):
            return None
        if quantity == "memory":
            return Spread.of([self.peaks[over] / self.peaks[under]])
        assert self.timings is not None
        return self.timings.ratio(over, under)


def words(setting: Mapping[str, Any]) -> str:
    """A setting for people: "float32, batch 8"."""
    return ", ".join(
        str(value) if name == "dtype" else f"{name} {value}" for name, value in setting.items()
    )
