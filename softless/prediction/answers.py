"""What `softless predict` says of every task: how many images it answered, in what precision, and
which it could not read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softless import ranks
from softless.data.findings import SHOWN, Fault
from softless.data.readable import fault_of, unreadable
from softless.data.samples import FileSamples, Samples
from softless.errors import DataError
from softless.words import counted

PARTIAL = 4  # exit code where some images have no answer


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The part of a result that all tasks have."""

    overlays: Path | None  # pictures
    images: int  # with an answer
    precision: str
    unread: tuple[Fault, ...] = ()  # images that cannot be read, and so have none

    @property
    def exit_code(self) -> int:
        """4 where an image has no answer."""
        return PARTIAL if self.unread else 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "overlays": None if self.overlays is None else str(self.overlays),
            "images": self.images,
            "precision": self.precision,
            "unread": [fault.row(annotated=False) for fault in self.unread],
        }

    def head(self, path: Path, pictures: str = "pictures", also: Sequence[str] = ()) -> list[str]:
        """The first lines for people: what was answered, and where it lies."""
        numbers = ", ".join([counted(self.images, "image"), *also, f"computed in {self.precision}"])
        return [
            f"{numbers}: {path}",
            *([] if self.overlays is None else [f"{pictures}: {self.overlays}"]),
        ]

    def foot(self) -> list[str]:
        """The last lines for people: images without an answer."""
        if not self.unread:
            return []
        unlisted = len(self.unread) - SHOWN
        return [
            (
                f"{counted(len(self.unread), 'image')} cannot be read and so "
                f"{'have' if len(self.unread) > 1 else 'has'} no answer:"
            ),
            *(f"  {fault}" for fault in self.unread[:SHOWN]),
            *([f"  … and {unlisted:,} more (--json lists all)"] if unlisted > 0 else []),
        ]


def readable(samples: Samples) -> Samples:
    """The images that can be decoded to their last byte; `left_out` has the others. Those of an
    array are decoded already. Ranks share the decoding.

    Raises:
        DataError: none can.
    """
    if not isinstance(samples, FileSamples):
        return samples
    paths = samples.paths()
    mine = unreadable(
        paths[ranks.rank() :: ranks.size()], samples.channels, samples.scale, samples.page
    )
    bad = {path: error for by_path in ranks.gather(mine) for path, error in by_path.items()}
    if not bad:
        return samples
    if len(bad) == len(paths):
        first = bad[paths[0]]
        message = (
            f"{first}; none of the {len(bad)} images there can be read"
            if len(bad) > 1
            else str(first)
        )
        raise ranks.shared(DataError(message)) from first
    readable_samples = samples.take([index for index, path in enumerate(paths) if path not in bad])
    readable_samples.left_out = tuple(
        fault_of(path, bad[path], samples.root) for path in paths if path in bad
    )
    return readable_samples
