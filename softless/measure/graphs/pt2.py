"""Reads .pt2: the graph that torch.export.save writes as JSON.

`torch.export.load` unpickles parts of the archive, which may run whatever it holds. So the graph
is read by itself, and weights stay closed.
"""

import json
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from softless.measure.findings import OPAQUE
from softless.measure.graphs.aten import DIVISIONS, ROOTS, kind_of, plain
from softless.measure.graphs.classes import LONGEST, Node
from softless.measure.graphs.limits import TEXT, Damaged

OLDER = "serialized_exported_program.json"  # of torch before 2.8
# what zipfile raises for an archive that is none
UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
    *(NotImplementedError, RuntimeError, OverflowError, ValueError),
)
# Python's own arithmetic on sizes
SCALAR = ("_operator.", "operator.", "math.", "torch.sym_", "torch._sym_", "builtins.")


def read(path: Path) -> Iterator[Node]:
    """Every operator of a program.

    Raises:
        Damaged: not a program that torch.export.save wrote.
    """
    try:
        for place, document in _documents(path):
            yield from _nodes(document, place)
    except Damaged:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        # whatever JSON holds in place of a graph
        raise Damaged(f"its graph lacks {str(error)[:120]}") from error


def _documents(path: Path) -> Iterator[tuple[str, Any]]:
    """The graphs of the archive; their names where there are several."""
    with path.open("rb") as file:
        try:
            texts = _texts(file)
        except Damaged:
            raise
        except UNREADABLE as error:
            raise Damaged("it is no archive that can be opened") from error
    if not texts:
        raise Damaged("it holds no graph of torch.export.save")
    for name, text in texts.items():
        yield f"{Path(name).stem}/" if len(texts) > 1 else "", _parsed(text)


def _texts(file: BinaryIO) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        entries = [entry for entry in archive.infolist() if _is_graph(entry.filename)]
        if sum(entry.file_size for entry in entries) > TEXT:
            raise Damaged(f"its graph has more than {TEXT:,} bytes")
        texts = {}
        for entry in entries:
            with archive.open(entry) as part:
                texts[entry.filename] = part.read(TEXT + 1)
    return texts


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Damaged("its graph is no JSON") from error


def _is_graph(name: str) -> bool:
    parts = name.split("/")
    return (len(parts) == 3 and parts[1] == "models" and name.endswith(".json")) or name == OLDER


def _nodes(document: Any, place: str) -> Iterator[Node]:
    module = document["graph_module"]
    graph = module["graph"]
    values: Mapping[str, Any] = graph["tensor_values"]
    depends = {
        name
        for spec in module["signature"]["input_specs"]
        if "user_input" in spec
        for name in _names(spec["user_input"])
    }
    for node in graph["nodes"]:
        target = str(node["target"])
        from_input = any(
            name in depends for name in _names([each["arg"] for each in node["inputs"]])
        )
        depends |= set(_names(node["outputs"])) if from_input else set()
        where = f"{place}{_module(node)}"[:LONGEST]
        library, name = _operator(target)
        if library is None:
            if not target.startswith(SCALAR):
                yield Node(target[:LONGEST], where, OPAQUE, 1)
            continue
        sizes = _Sizes(values)
        args = tuple(sizes.argument(each["arg"]) for each in node["inputs"])
        found = kind_of(library, name, args)
        kind, number = found or (None, None)
        yield Node(
            name if library == "aten" else f"{library}::{name}",
            where,
            kind,
            number,
            from_input,
            library in {"aten", "softless"} and plain(name) in ROOTS,
            library in {"aten", "softless"} and plain(name) in DIVISIONS,
            sizes.rank,
            sizes.dynamic,
        )


def _operator(target: str) -> tuple[str | None, str]:
    """Library and name of what `torch.ops.aten.add.Tensor` stands for."""
    parts = target.split(".")
    if parts[:2] != ["torch", "ops"] or len(parts) < 4 or parts[2] == "higher_order":
        return None, target
    return parts[2], parts[3]


def _module(node: Mapping[str, Any]) -> str:
    """The path of the deepest module that a node stands for."""
    stack = str(node.get("metadata", {}).get("nn_module_stack", ""))
    paths = [entry.split(",")[1] for entry in stack.split(";") if entry.count(",") >= 2]
    return next((path for path in reversed(paths) if path), "(model)")


def _names(argument: Any) -> Iterator[str]:
    """Names of the values that an argument refers to."""
    if isinstance(argument, list):
        for part in argument:
            yield from _names(part)
    elif isinstance(argument, dict):
        if isinstance(argument.get("name"), str):
            yield argument["name"]
        if isinstance(argument.get("as_name"), str):
            yield argument["as_name"]
        for key, part in argument.items():
            if key != "graph":
                yield from _names(part)


class _Sizes:
    """Arguments as the counters take them: tensors without storage, of the example's sizes."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.dynamic = False
        self.rank = 0

    def argument(self, argument: Any) -> Any:
        if not isinstance(argument, dict) or len(argument) != 1:
            return None
        ((key, held),) = argument.items()
        if key == "as_tensor":
            return self._tensor(held["name"])
        if key == "as_tensors":
            return [self._tensor(each["name"]) for each in held]
        return held if key in {"as_int", "as_float", "as_bool", "as_string"} else None

    def _tensor(self, name: str) -> torch.Tensor:
        sizes = [self._size(size) for size in self.values[name]["sizes"]]
        self.rank = max(self.rank, len(sizes))
        return (
            torch.empty(1, device="meta").expand(sizes) if sizes else torch.empty((), device="meta")
        )

    def _size(self, size: Mapping[str, Any]) -> int:
        if "as_int" in size:
            return int(size["as_int"])
        self.dynamic = True
        hint = size["as_expr"].get("hint") or {}
        return int(hint.get("as_int", 1))
