"""Answers that took long, each in a file: what is there is read, what is not is measured. And tables
of them.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from softless.errors import UsageError
from softless.models.durable import make_folder, write_text
from softless.words import table

Answer = TypeVar("Answer")


def answer_in(
    path: Path, kind: Callable[..., Answer], measure: Callable[[], Any], *, resume: bool
) -> Answer:
    """The answer of a file, or a new one, which is written there.

    Args:
        path: the file.
        kind: the dataclass of the answer.
        measure: makes a new one.
        resume: read the file where it is there.

    Raises:
        UsageError: it is there, and nobody said that it may be.
    """
    if path.exists():
        if not resume:
            raise UsageError(f"{path} is there already: choose another --out, or --resume")
        return kind(**json.loads(path.read_text(encoding="utf-8")))
    answer: Answer = measure()
    make_folder(path.parent)
    write_text(path, json.dumps(asdict(answer)))  # type: ignore[call-overload]
    return answer


@dataclass(frozen=True)
class Recorded:
    """Rows of one kind, and where they were recorded."""

    rows: tuple[Any, ...]
    recorded: Path | None = None

    def to_dict(self) -> list[dict[str, Any]]:
        return [asdict(row) for row in self.rows]

    def __str__(self) -> str:
        rows = self.to_dict()
        footer = f"\n\nrecorded: {self.recorded}" if self.recorded else ""
        return table(list(rows[0]), [list(row.values()) for row in rows]) + footer
