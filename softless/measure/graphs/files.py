"""Files of exported models by their endings, and the audit of what a reader finds in one."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from softless.errors import DataError, located
from softless.measure.findings import Audit, Finding
from softless.measure.graphs import coreml, executorch, onnx, openvino, pt2, tflite
from softless.measure.graphs.classes import Node
from softless.measure.graphs.limits import Damaged
from softless.words import clipped


@dataclass(frozen=True)
class Reader:
    """How the files of an ending are read."""

    ending: str
    what: str  # what such a file is, behind "is not"
    read: Callable[[Path], Iterator[Node]]
    folder: bool = False


READERS = (
    Reader(".pt2", "an exported program: make it with torch.export.save", pt2.read),
    Reader(".onnx", "an ONNX model", onnx.read),
    Reader(".xml", "a model of OpenVINO", openvino.read),
    Reader(".tflite", "a model of TensorFlow Lite", tflite.read),
    Reader(".pte", "a program of ExecuTorch", executorch.read),
    Reader(".mlpackage", "a model of Core ML", coreml.read, folder=True),
)
ENDINGS = tuple(reader.ending for reader in READERS)


def has_reader(path: str | Path) -> bool:
    """Whether the ending of a name is that of a file which can be audited."""
    return Path(path).suffix.lower() in ENDINGS


def audit_file(file: str | Path) -> Audit:
    """Every transcendental function in the file of an exported model.

    Raises:
        DataError: no such file, an ending without a reader, or not what its ending says.
    """
    path = located(file)
    reader = next((each for each in READERS if each.ending == path.suffix.lower()), None)
    if reader is None:
        raise DataError(
            f"{clipped(str(file))} is no file that an audit can read, nor a model: name one with "
            f"the ending {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}, or pass a model"
        )
    if not (path.is_dir() if reader.folder else path.is_file()):
        raise DataError(f"no {'folder' if reader.folder else 'file'} {clipped(str(path))}")
    try:
        return audit_nodes(reader.read(path), path.name)
    except Damaged as error:
        raise DataError(f"{path} is not {reader.what} ({error})") from error


def audit_nodes(nodes: Iterable[Node], file: str) -> Audit:
    """What was found among the operators of a file."""
    evaluations: Counter[tuple[str, str, str, bool, bool]] = Counter()
    names: Counter[str] = Counter()
    roots = divisions = rank = 0
    dynamic = False
    for node in nodes:
        names[node.operator] += 1
        roots += node.root
        divisions += node.division
        rank = max(rank, node.rank)
        if node.kind is not None:
            sized = node.evaluations is not None
            dynamic = dynamic or node.dynamic
            evaluations[node.kind, node.where, node.operator, not node.from_input, sized] += (
                1 if node.evaluations is None else node.evaluations
            )
    findings = tuple(Finding(*key[:3], number, *key[3:]) for key, number in evaluations.items())
    return Audit(
        None,
        findings,
        roots,
        divisions,
        dynamic=dynamic,
        file=file,
        nodes=dict(names.most_common()),
        rank=rank or None,
    )
