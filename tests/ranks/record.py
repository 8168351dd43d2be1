"""The table of ranks, measured: `python -m tests.ranks.record benchmarks/ranks.csv [WHAT ...]`,
WHAT a verb or `differences`.

Rows that were not asked for stay as they were. Exit code 1 if one is wrong.
"""

import csv
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from softless.compare.record import provenance
from softless.models.durable import write_text
from tests.ranks.cases import (
    DIFFERENCES,
    MOST,
    SIGNALS,
    VERBS,
    Seen,
    differing,
    ended,
    is_ended_well,
    is_refused,
    prepared,
)

OTHER = "differences"
WHAT = (*VERBS, OTHER)
Row = dict[str, str]


def row(what: str, case: str, most: float, seen: Seen, outcome: str, place: str) -> Row:
    """One line of the table."""
    print(
        f"{what}, {case}: {outcome}, {seen.codes}, {seen.seconds:.1f} s: {seen.sentence}",
        file=sys.stderr,
        flush=True,
    )
    if outcome == "wrong":
        print(seen.said, file=sys.stderr, flush=True)
    codes = " and ".join(map(str, seen.codes))
    said = seen.sentence.replace(place, "")
    return {
        "what": what,
        "case": case,
        "seconds": f"{seen.seconds:.1f}",
        "most": f"{most:.0f}",
        "codes": codes,
        "outcome": outcome,
        "said": said,
    }


def measured(what: str, root: Path) -> Iterator[Row]:
    """The lines of a verb, or of ranks that differ."""
    if what == OTHER:
        for number, kind in enumerate(DIFFERENCES):
            seen = differing(kind, root, root / f"{what}{number}")
            yield row(
                what, kind, MOST, seen, "refused" if is_refused(kind, seen) else "wrong", f"{root}/"
            )
        return
    for number, (name, most) in enumerate(SIGNALS.items()):
        seen = ended(what, name, root, root / f"{what}{number}")
        yield row(
            what, name, most, seen, "right" if is_ended_well(name, seen) else "wrong", f"{root}/"
        )


def held(path: Path) -> dict[tuple[str, str], Row]:
    """The lines of the file as it is."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {(one["what"], one["case"]): one for one in csv.DictReader(file)}


def written(path: Path, rows: dict[tuple[str, str], Row]) -> None:
    """All lines in the order of WHAT."""
    order = sorted(rows, key=lambda key: WHAT.index(key[0]))
    columns = list(rows[order[0]])
    with tempfile.TemporaryFile("w+", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[key] for key in order)
        file.seek(0)
        write_text(path, file.read())


def main(target: Path, asked: list[str]) -> int:
    where: dict[str, Any] = {name: str(value) for name, value in provenance().items()}
    rows = held(target)
    with tempfile.TemporaryDirectory() as place:
        root = prepared(Path(place))
        for what in asked or WHAT:
            for one in measured(what, root):
                rows[one["what"], one["case"]] = {**one, **where}
                written(target, rows)
    wrong = sum(one["outcome"] == "wrong" for one in rows.values())
    print(f"{len(rows)} cases, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
