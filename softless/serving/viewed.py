"""A slide that was named at the start, and what became of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

TILE = 256  # pixels of a tile's side, as the page asks for them
State = Literal["new", "at work", "done", "failed"]


@dataclass(frozen=True)
class Overlay:
    """A map over a slide, as a picture and the rectangle of level 0 that it covers."""

    name: str
    png: bytes
    covers: tuple[float, float, float, float]  # x, y, width, height


@dataclass
class Viewed:
    """A slide, and what became of it."""

    path: Path
    size: tuple[int, int]  # height and width of level 0
    levels: Sequence[tuple[int, int, int]]  # number, height and width of those that can be read
    state: State = "new"
    done: int = 0
    total: int = 0
    words: str = ""
    chances: Mapping[str, float] = field(default_factory=dict)
    overlays: Sequence[Overlay] = ()
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The file's name, without its place."""
        return self.path.name

    @property
    def deepest(self) -> int:
        """How often the slide is halved until it fits into a tile."""
        return max(0, math.ceil(math.log2(max(self.size) / TILE)))


class Shelf(Protocol):
    """All slides of a server (`slide_jobs.Slides`)."""

    all: Sequence[Viewed]

    def at(self, number: int) -> Viewed:
        """A slide by its number, or a Refusal."""

    def start(self, number: int, level: int, tissue: Literal["none", "otsu"]) -> None:
        """Begin to look at a slide as a whole, or a Refusal."""

    def tile(self, number: int, halved: int, row: int, column: int) -> bytes:
        """A tile of a slide as a JPEG file, or a Refusal."""

    def close(self, seconds: float) -> bool:
        """End the job; whether it came to its end in time."""
