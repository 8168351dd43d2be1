"""Core ML: a package for Apple's devices. It is written here and runs there."""

import json
import uuid
from pathlib import Path
from typing import Any

from softless.errors import DataError, need
from softless.exporting.formats.format import Format, Shape
from softless.exporting.graph import IMAGE, Graph, recorded
from softless.exporting.metadata import KEY
from softless.exporting.silence import muted
from softless.measure.audit import audit
from softless.models.durable import write_bytes, write_text

MANIFEST = "Manifest.json"
MAPPING = "executorch_debug_handle_mapping.json"  # of a debugger; it names lines of nobody's file
OF_THE_DAY = "com.github.apple.coremltools.conversion_date"


def write(graph: Graph, path: Path, _: int | None) -> None:
    """Convert a module to an ML Program in float32, for iOS 18 and macOS 15 on.

    Raises:
        UsageError: torch cannot record it.
    """
    import coremltools as ct

    program = recorded(graph).run_decompositions({})
    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32,
        inputs=[ct.TensorType(name=IMAGE, shape=tuple(graph.example.shape))],
        outputs=[ct.TensorType(name=name) for name in graph.outputs],
        skip_model_load=True,
    )
    model.save(str(path))
    _without_chance(path)


def _without_chance(path: Path) -> None:
    """Identifiers that follow from the names of the parts, in place of drawn ones; and folders that
    are as open as the package.
    """
    for inner in path.rglob("*"):
        if inner.is_dir():
            inner.chmod(path.stat().st_mode)
    (path / MAPPING).unlink(missing_ok=True)
    manifest = json.loads((path / MANIFEST).read_bytes())
    parts = manifest["itemInfoEntries"]
    fixed = {
        identifier: str(uuid.uuid5(uuid.NAMESPACE_URL, part["path"]))
        for identifier, part in parts.items()
    }
    manifest["itemInfoEntries"] = {fixed[name]: part for name, part in sorted(parts.items())}
    manifest["rootModelIdentifier"] = fixed[manifest["rootModelIdentifier"]]
    write_text(path / MANIFEST, json.dumps(manifest, indent=4, sort_keys=True) + "\n")


def label(path: Path, text: str) -> None:
    """Keep a text in the model's description, and no day."""
    model = specification(path)
    kept = model.description.metadata.userDefined
    kept.pop(OF_THE_DAY, None)
    kept[KEY] = text
    write_bytes(_model_file(path), model.SerializeToString(deterministic=True))


def text_of(path: Path) -> str:
    """The text that was kept; "" where there is none."""
    return str(specification(path).description.metadata.userDefined.get(KEY, ""))


def specification(path: Path) -> Any:
    """The model as protobuf, its weights left where they are.

    Raises:
        DataError: it is no such package, or a damaged one.
    """
    need("coremltools")
    with muted():
        from coremltools.proto import Model_pb2
        from google.protobuf.message import DecodeError

    model = Model_pb2.Model()
    try:
        model.ParseFromString(_model_file(path).read_bytes())
    except (OSError, ValueError, LookupError, TypeError, DecodeError) as error:
        raise DataError(
            f"{path} is no package of Core ML, or a damaged one: export the model anew"
        ) from error
    return model


def _model_file(path: Path) -> Path:
    manifest = json.loads((path / MANIFEST).read_bytes())
    name = str(manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"])
    file = (path / "Data" / name).resolve()
    if not file.is_relative_to(path.resolve()):
        raise ValueError(name)
    return file


def shape(path: Path) -> Shape:
    """Operations by Core ML's names, and the most axes of a tensor."""
    audited = audit(path)
    operations = {kind: number for kind, number in audited.nodes.items() if kind != "const"}
    return Shape(operations, audited.rank)


FORMAT = Format(
    name="coreml",
    ending=".mlpackage",
    summary="Core ML: Apple's devices, from iOS 18 and macOS 15",
    writes_with=("coremltools",),
    write=write,
    label=label,
    text_of=text_of,
    runs_with=None,
    batch=1,
    shape=shape,
)
