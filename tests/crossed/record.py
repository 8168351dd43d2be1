"""The whole crossed table, counted over all operators:
`python -m tests.crossed.record benchmarks/crossed.csv`.

Every row is an adapter and a use. Rows whose package is not installed here stay as they were
recorded elsewhere. Exit code 1 if an answer is wrong.
"""

import csv
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import torch
import torch.distributed as dist

from softless.attention import OPERATORS, get
from softless.compare.record import provenance
from softless.data.progress import track
from tests.crossed.adapters import ADAPTERS, absent
from tests.crossed.table import cell
from tests.crossed.uses import USES, uses_of

# "softmax too": the same call with softmax is refused, or fails in torch, as well
ALL = "all"
OUTCOMES = ("right", "refused", "softmax too", "wrong")


def _column(name: str) -> str:
    return name.replace(" ", "_")


def outcome(row: str, column: str, op: str) -> str:
    """What became of a cell, a refusal held against that of softmax."""
    found = cell(row, column, get(op)).outcome
    if found == "refused" and column in uses_of(get("softmax")):
        found = (
            "none" if cell(row, column, get("softmax")).outcome in {"refused", "none"} else found
        )
    return "softmax too" if found == "none" else found


def counted() -> dict[tuple[str, str], Counter[str]]:
    """Outcomes by adapter and use."""
    cells = [
        (row, use, op)
        for row in ADAPTERS
        if not absent(ADAPTERS[row])
        for use in USES
        for op in OPERATORS
    ]
    counts: dict[tuple[str, str], Counter[str]] = {}
    for row, use, op in track(cells, len(cells), "cells"):
        if use in uses_of(get(op)):
            counts.setdefault((row, use), Counter())[outcome(row, use, op)] += 1
    return counts


def main(path: Path) -> int:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            "gloo", init_method=f"file://{Path(folder) / 'store'}", rank=0, world_size=1
        )
        counts = counted()
        dist.destroy_process_group()
    held: dict[tuple[str, str], dict[str, str]] = {}
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            held = {(row["adapter"], row["use"]): row for row in csv.DictReader(file)}
    where = {name: str(value) for name, value in provenance().items()}
    for (adapter, use), found in counts.items():
        numbers = {_column(name): str(found[name]) for name in OUTCOMES}
        held[adapter, use] = {"adapter": adapter, "use": use, **numbers, **where}
    for adapter in {adapter for adapter, _ in counts}:
        cells = [held[adapter, use] for use in USES if (adapter, use) in held]
        sums = {name: str(sum(int(one[name]) for one in cells)) for name in map(_column, OUTCOMES)}
        held[adapter, ALL] = {"adapter": adapter, "use": ALL, **sums, **where}
    order = [(row, use) for row in ADAPTERS for use in (ALL, *USES) if (row, use) in held]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(held[order[0]]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(held[key] for key in order)
    total = Counter[str]()
    for key in order:
        if key[1] == ALL:
            total.update({name: int(held[key][_column(name)]) for name in OUTCOMES})
    print(", ".join(f"{total[name]} {name}" for name in OUTCOMES))
    return 1 if total["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
