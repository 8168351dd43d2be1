"""A declared range of pixel values: what becomes 0 and what becomes 1, for images of more than 8
bits.

    applied(v) = clip((v - low) / (high - low), 0, 1)

computed in float64 and handed on in float32; nothing on the way has 8 bits. A window and a level
are the range level - window / 2 .. level + window / 2, as DICOM's function LINEAR_EXACT has it.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from softless.errors import UsageError
from softless.words import clipped, counted

FIELD = "data.range"
WAY = (
    f"declare the range that is meant, as --set {FIELD}=0..4095 or --set "
    f"{FIELD}=window=400,level=40"
)
_NUMBER = r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
_ENDS = re.compile(rf"\s*({_NUMBER})\s*\.\.\s*({_NUMBER})\s*")
_WINDOW = re.compile(rf"\s*window\s*=\s*({_NUMBER})\s*,\s*level\s*=\s*({_NUMBER})\s*")


@dataclass(frozen=True)
class Range:
    """The values from `low` to `high`, which become 0 to 1; `text` is how it was declared."""

    low: float
    high: float
    text: str

    @classmethod
    def parse(cls, text: str) -> "Range":
        """A range from `0..4095` or `window=400,level=40`.

        Raises:
            UsageError: it is neither, or no value lies in it.
        """
        ends, window = _ENDS.fullmatch(text), _WINDOW.fullmatch(text)
        if ends:
            low, high = map(float, ends.groups())
        elif window:
            width, level = map(float, window.groups())
            low, high = level - width / 2, level + width / 2
        else:
            raise UsageError(
                f"{FIELD}={clipped(text)} is no range: give the lowest and the highest value, as "
                "0..4095 or -1000..400, or a window and "
                "its level, as window=400,level=40"
            )
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UsageError(
                f"{FIELD}={clipped(text)}: the range is from {low:g} to {high:g}, and must rise "
                "and be finite"
            )
        return cls(low, high, text.strip())

    @classmethod
    def of(cls, text: str | None) -> "Range | None":
        """`parse`, where a range is declared."""
        return None if text is None else cls.parse(text)

    @property
    def beyond_bytes(self) -> bool:
        """Whether it reaches beyond what 8-bit images can hold."""
        return self.low < 0 or self.high > 255

    def applied(self, values: Any) -> np.ndarray:
        """Stored values of any shape, (h, w, C) say, and of any kind, as float32 in 0..1 of that
        shape.
        """
        scaled = np.array(values, dtype=np.float64)
        scaled -= self.low
        scaled /= self.high - self.low
        return np.clip(scaled, 0, 1, out=scaled).astype(np.float32)

    def outside(self, values: np.ndarray) -> tuple[int, int]:
        """How many values, of an array of any shape, lie below the range, and how many above."""
        return int((values < self.low).sum()), int((values > self.high).sum())

    def __str__(self) -> str:
        return f"{FIELD}={self.text}"


@dataclass
class Outside:
    """How many images have values outside the range, and how many those are."""

    images: int = 0
    below: int = 0
    above: int = 0

    def add(self, counts: tuple[int, int]) -> None:
        """Count one image's values below and above."""
        self.images += any(counts)
        self.below += counts[0]
        self.above += counts[1]

    def sentence(self, part: str, scale: Range) -> str:
        """What is said of them; nothing where there are none."""
        if not self.images:
            return ""
        return (
            f"{counted(self.images, 'image')} of {part} with values outside {scale}, cut to "
            f"its ends: {self.below:,} below and {self.above:,} above"
        )
