"""What it costs to read a slide: tile by tile through tifffile, beside openslide's regions, in
processor time.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from softless.compare.record import record_path, write_csv
from softless.compare.timing import interleaved
from softless.errors import UsageError, located
from softless.words import table

SQUARE = 512  # pixels along a side of what is read at once: a chunk of tokens
PLAIN = "openslide"


@dataclass(frozen=True)
class Reading:
    """A slide read once by one reader."""

    slide: str
    reader: str
    pixels: str
    milliseconds: float  # of the processor
    low: float  # quarters
    high: float
    ratio: float | None  # to openslide, from the pairs of each round; None where it is that


@dataclass(frozen=True)
class Readings:
    """All of them."""

    rows: tuple[Reading, ...]
    recorded: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"rows": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        cells = [
            [
                row.slide,
                row.reader,
                row.pixels,
                f"{row.milliseconds:.1f}",
                f"{row.low:.1f} to {row.high:.1f}",
                "" if row.ratio is None else f"{row.ratio:.3f}",
            ]
            for row in self.rows
        ]
        footer = f"\n\nrecorded: {self.recorded}" if self.recorded else ""
        return (
            table(
                ["slide", "reader", "pixels", "ms of the processor", "quarters", "to openslide"],
                cells,
            )
            + footer
        )


def slides(*, data: str | Path | None = None, rounds: int = 15, record: bool = False) -> Readings:
    """Read level 0 of slides in squares of 512 pixels, through tifffile and through openslide, in
    turns.

    Args:
        data: a slide that both read (SVS or tiled TIFF), or a folder with such.
        rounds: how often each is timed.
        record: also write benchmarks/slides.csv of the repository.

    Raises:
        UsageError: no such slide.
    """
    target = record_path("slides") if record else None
    if data is None:
        raise UsageError(
            "bench slides reads slides: name one, or a folder of SVS files and tiled TIFFs, with "
            "--data"
        )
    source = located(data)
    files = (
        sorted(source.glob("*.svs")) + sorted(source.glob("*.tif*"))
        if source.is_dir()
        else [source]
    )
    rows = tuple(row for path in files for row in _readings(path, rounds))
    if not rows:
        raise UsageError(
            f"{data} holds no SVS and no tiled TIFF: name a slide, or a folder with one"
        )
    if target is not None:
        write_csv(target, [asdict(row) for row in rows])
    return Readings(rows, target)


def _readings(path: Path, rounds: int) -> list[Reading]:
    from softless.slides.files import Slide, StoredLevel

    readers: dict[str, Callable[[], Any]] = {
        PLAIN: lambda: _read(Slide(path, 0, 3)),
        "tifffile": lambda: _read(StoredLevel(path, 0, 3)),
    }
    size = readers[PLAIN]()
    timed = interleaved(readers, rounds=rounds, warmup=1, clock=time.process_time)
    readings = []
    for name in readers:
        spread = timed.spread(name)
        milliseconds, low, high = (
            round(1e3 * value, 2) for value in (spread.median, spread.low, spread.high)
        )
        ratio = None if name == PLAIN else round(timed.ratio(name, PLAIN).median, 3)
        readings.append(
            Reading(path.name, name, f"{size[1]} x {size[0]}", milliseconds, low, high, ratio)
        )
    return readings


def _read(slide: Any) -> tuple[int, int]:
    """Open, read all and close."""
    height, width = slide.size
    for top in range(0, height, SQUARE):
        for left in range(0, width, SQUARE):
            slide.read(top, left, min(SQUARE, height - top), min(SQUARE, width - left))
    slide.close()
    return height, width
