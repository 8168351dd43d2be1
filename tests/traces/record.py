"""The table of tracers, counted over the families of operators: `python -m tests.traces.record
benchmarks/traces.csv [TRACER ...]`.

Each tracer's rows are written when it is through; rows of tracers that were not asked for stay as
they were. Exit code 1 if an answer is wrong.
"""

import csv
import sys
from collections import Counter
from pathlib import Path

import torch

from softless.compare.record import provenance
from softless.data.progress import track
from softless.models.durable import write_text
from tests.traces.table import FAMILIES, HOSTS, TRACERS, absent, cell

OUTCOMES = ("right", "refused", "wrong")
Rows = dict[tuple[str, str], dict[str, str]]


def counted(tracer: str, host: str) -> Counter[str]:
    """Outcomes over the operators; one that has no place in the host counts nowhere."""
    found = Counter[str]()
    for op in FAMILIES:
        one = cell(tracer, host, op)
        found[one.outcome] += 1
        if one.outcome in {"refused", "wrong"}:
            print(f"{one.outcome}: {tracer}, {host}, {op}: {one.told}", file=sys.stderr, flush=True)
    return found


def held(path: Path) -> Rows:
    """The rows of the file as it is."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {(row["tracer"], row["host"]): row for row in csv.DictReader(file)}


def written(path: Path, rows: Rows) -> None:
    order = [(tracer, host) for tracer in TRACERS for host in HOSTS if (tracer, host) in rows]
    columns = list(rows[order[0]])
    lines = [columns, *([rows[key][name] for name in columns] for key in order)]
    text = "\n".join(
        ",".join(f'"{cell}"' if "," in cell else cell for cell in line) for line in lines
    )
    write_text(path, text + "\n")


def main(path: Path, tracers: list[str]) -> int:
    torch.set_num_threads(1)
    where = {name: str(value) for name, value in provenance().items()}
    rows = held(path)
    asked = [
        (tracer, host) for tracer in tracers or TRACERS if not absent(tracer) for host in HOSTS
    ]
    for tracer, host in track(asked, len(asked), "tracing"):
        found = counted(tracer, host)
        row = {
            "tracer": tracer,
            "host": host,
            **{name: str(found[name]) for name in OUTCOMES},
            **where,
        }
        rows = {**held(path), (tracer, host): row}  # another process may count other tracers
        written(path, rows)
    wrong = sum(int(row["wrong"]) for row in rows.values())
    print(f"{len(rows)} rows, {wrong} answers wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
