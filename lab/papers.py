"""The papers' tables of sizes, all of them, for the documents."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from softless.compare.papers import TABLES, PaperTable, paper_table
from softless.compare.record import record_path, write_csv


@dataclass(frozen=True)
class Papers:
    """Regenerated tables, one below the other."""

    tables: tuple[PaperTable, ...]
    recorded: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"tables": [paper.to_dict() for paper in self.tables]}

    def __str__(self) -> str:
        footer = [f"recorded: {self.recorded}"] if self.recorded else []
        return "\n\n".join([*map(str, self.tables), *footer])


def papers(names: Sequence[str] = (), *, record: bool = False) -> Papers:
    """Several tables at once.

    Args:
        names: which; all by default.
        record: also write benchmarks/papers.csv of the repository.

    Raises:
        UsageError: an unknown table, or `record` outside of the repository.
    """
    target = record_path("papers") if record else None
    outcome = Papers(tuple(paper_table(name) for name in names or TABLES), target)
    if target is not None:
        write_csv(target, [asdict(row) for paper in outcome.tables for row in paper.rows])
    return outcome
