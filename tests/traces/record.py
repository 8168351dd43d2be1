"""The whole table of tracers, counted over the families of operators: `python -m tests.traces.record benchmarks/traces.csv`. Exit code 1 if an answer is wrong."""

import sys
from collections import Counter
from pathlib import Path

import torch

from softless.benching.record import write_csv
from softless.data.progress import track
from tests.traces.table import FAMILIES, HOSTS, TRACERS, absent, cell

OUTCOMES = ("right", "refused", "wrong")


def main(path: Path) -> int:
    torch.set_num_threads(1)
    cells = [(tracer, host, op) for tracer in TRACERS if not absent(tracer) for host in HOSTS for op in FAMILIES]
    counts: dict[tuple[str, str], Counter[str]] = {}
    for tracer, host, op in track(cells, len(cells), "tracing"):
        found = cell(tracer, host, op)
        if found.outcome != "right":
            print(f"{found.outcome}: {tracer}, {host}, {op}: {found.told}", file=sys.stderr, flush=True)
        counts.setdefault((tracer, host), Counter())[found.outcome] += 1
    rows = [
        {"tracer": tracer, "host": host, **{name: found[name] for name in OUTCOMES}}
        for (tracer, host), found in counts.items()
    ]
    write_csv(path, rows)
    total = sum(counts.values(), Counter[str]())
    print(", ".join(f"{total[name]} {name}" for name in OUTCOMES))
    return 1 if total["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
