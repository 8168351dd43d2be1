"""Where a measured number came from, and the CSV files of the repository that keep them."""

import csv
import io
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import softless
from softless import origin
from softless.errors import UsageError
from softless.models.durable import write_text
from softless.origin import repository


def provenance() -> dict[str, str]:
    """Commit, command, machine and versions: the columns that every row of a benchmark carries."""
    import timm
    import torch

    return {
        "commit": commit(),
        "command": origin.command(),
        "machine": f"{processor()}, {os.cpu_count()} cores"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
        "threads": str(torch.get_num_threads()),
        "versions": f"softless {softless.__version__}, torch {torch.__version__}, timm "
        f"{timm.__version__}, python {platform.python_version()}",
    }


def commit() -> str:
    """The commit, with a mark where the tree held changes; "none" outside a repository."""
    return origin.commit(repository())


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def record_path(name: str) -> Path:
    """`benchmarks/NAME.csv` of the repository.

    Raises:
        UsageError: the package was not imported from its repository.
    """
    root = repository()
    if root is None:
        raise UsageError(
            "--record writes to benchmarks/ of the repository, and this softless is an installed "
            "package: leave it out"
        )
    return root / "benchmarks" / f"{name}.csv"


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Rows with their provenance, whole or not at all; columns in the order in which rows first
    name them.
    """
    origin = provenance()
    columns = list(dict.fromkeys(name for row in rows for name in row)) + list(origin)
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, **origin} for row in rows)
    write_text(path, file.getvalue())
    return path
