"""Every registered model, whole, in every format that is installed: `python -m tests.exporting.record
benchmarks/exports.csv [MODEL ...] [FORMAT ...]`.

Weights are random and such that every branch counts. A row is written when it is measured; rows of
the same commit and versions are kept, so that a run that was stopped goes on. Exit code 1 if a file
answers otherwise than the model, or cannot be written.
"""

import csv
import gc
import importlib.metadata
import io
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from softless.compare.record import provenance
from softless.data.progress import track
from softless.errors import SoftlessError, need, unknown
from softless.exporting.formats.table import FORMATS
from softless.models import ENTRIES
from softless.models.durable import write_text
from tests.exporting.written import living, reference, written
from tests.models.lively import zeroed

NEAR = 1e-5  # of the largest logit, in float32
TOOLS = ("onnx", "onnxscript", "onnxruntime", "openvino", "executorch", "coremltools")
NAMES = [name for name, entry in ENTRIES.items() if entry.alias_of is None]
SAME = ("commit", "machine", "versions")  # of rows that are kept
COLUMNS = ("parity", "control", "form", "nodes", "rank", "delegated", "outside", "bytes", "seconds")
Rows = dict[tuple[str, str], dict[str, str]]


def installed(name: str) -> bool:
    """Whether a format can be written and run here."""
    record = FORMATS[name]
    try:
        need(*record.writes_with, *(record.runs_with or ()))
    except SoftlessError:
        return False
    return True


def measured(model: nn.Module, name: str, size: tuple[int, int]) -> dict[str, str]:
    """What is told of a model in a format: its outcome, and numbers."""
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(7))
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = written(model, name, Path(folder), size, images=images)
        except Exception as error:  # noqa: BLE001 - an outcome of the table
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            return {"outcome": "failed"}
        seconds = time.process_time() - start
        shape = file.shape
        row = {
            "outcome": "converted",
            "form": file.module.form,
            "nodes": f"{sum(shape.nodes.values())}",
            "rank": f"{shape.rank}",
            "bytes": f"{file.bytes}",
            "seconds": f"{seconds:.1f}",
        }
        if shape.delegated is not None:
            row |= {"delegated": f"{shape.delegated}", "outside": f"{shape.outside}"}
        if file.answer is None:
            return row
        apart = file.apart(reference(model, size, images), images)
        weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        without = file.apart(reference(zeroed(model), size, images), images)
        model.load_state_dict(weights)
        right = apart <= NEAR < without / 100
        return row | {
            "outcome": "right" if right else "wrong",
            "parity": f"{apart:.1e}",
            "control": f"{without:.1e}",
        }


def held(path: Path) -> Rows:
    """The rows of the file as it is."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {(row["model"], row["format"]): row for row in csv.DictReader(file)}


def keep(path: Path, rows: Rows) -> None:
    """Write all rows in the order of the models."""
    order = [(name, format) for name in NAMES for format in FORMATS if (name, format) in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[order[0]]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[key] for key in order)
    write_text(path, text.getvalue())


def about() -> dict[str, str]:
    """The columns of every benchmark, with the versions of the tools."""
    where = {name: str(value) for name, value in provenance().items()}
    versions = [where["versions"]]
    for tool in TOOLS:
        try:
            versions.append(f"{tool} {importlib.metadata.version(tool)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return where | {"versions": ", ".join(versions)}


def main(path: Path, words: list[str]) -> int:
    torch.set_num_threads(1)
    for word in words:
        if word not in FORMATS and word not in NAMES:
            raise unknown("model or format", word, [*FORMATS, *NAMES])
    where = about()
    formats = [name for name in FORMATS if name in words or not {*words} & FORMATS.keys()]
    names = [name for name in NAMES if name in words or not {*words} & {*NAMES}]
    for name in track(names, len(names), "exporting"):
        rows = held(path)
        wanted = [
            format
            for format in formats
            if installed(format)
            and any(rows.get((name, format), {}).get(key) != where[key] for key in SAME)
        ]
        if not wanted:
            continue
        size = (224, 224)
        model = living(name, size)
        for format in wanted:
            row = {"model": name, "format": format, "outcome": "", **dict.fromkeys(COLUMNS, "")}
            row |= measured(model, format, size) | where
            rows = {**held(path), (name, format): row}  # another process may measure others
            keep(path, rows)
        del model
        gc.collect()
    rows = held(path)
    bad = [key for key, row in rows.items() if row["outcome"] not in {"right", "converted"}]
    print(f"{len(rows)} rows, {len(bad)} of them wrong or failed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
