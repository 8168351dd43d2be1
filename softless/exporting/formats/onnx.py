"""ONNX: a file that ONNX Runtime, TensorRT, OpenVINO, browsers and tract read."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softless.errors import DataError, UsageError, need
from softless.exporting.formats.format import Format, Runner, Shape
from softless.exporting.graph import Graph, last_sentence, quiet
from softless.exporting.metadata import KEY
from softless.exporting.quantized.onnx import INT8
from softless.modes import in_evaluation
from softless.words import clipped

OPSET = 20  # the first with Gelu as one operator
OPSETS = (18, 23)  # that the exporter writes
LARGEST = (1 << 31) - (1 << 20)  # bytes that one file of protobuf holds


def write(graph: Graph, path: Path, opset: int | None) -> None:
    """Record a module and write it, without what the exporter notes of this machine.

    Raises:
        UsageError: the exporter cannot, or an opset that it does not write.
    """
    import onnx

    onnx.save_model(converted(graph, opset), path)


def converted(graph: Graph, opset: int | None = None) -> Any:
    """A module as the protobuf of ONNX, without what the exporter notes of this machine.

    Raises:
        UsageError: the exporter cannot, or an opset that it does not write.
    """
    number = OPSET if opset is None else opset
    if not OPSETS[0] <= number <= OPSETS[1]:
        raise UsageError(f"opset={number}: from {OPSETS[0]} to {OPSETS[1]} are written")
    shapes = graph.shapes
    with in_evaluation(graph.module), torch.no_grad(), quiet():
        try:
            program = torch.onnx.export(
                graph.module,
                (graph.example,),
                dynamo=True,
                dynamic_shapes=None if shapes is None else (shapes,),
                input_names=[graph.takes],
                output_names=list(graph.outputs),
                opset_version=number,
                external_data=False,
                verbose=False,
            )
        except Exception as error:
            raise UsageError(
                f"torch.onnx cannot write this {type(graph.module).__name__}: "
                f"{last_sentence(error)}"
            ) from error
    assert program is not None
    model = program.model_proto
    if model.ByteSize() > LARGEST:
        raise UsageError(
            f"the graph has {model.ByteSize():,} bytes, and one protobuf of ONNX holds "
            f"{LARGEST:,}: choose --format pt2"
        )
    _strip(model)
    return model


def _strip(model: Any) -> None:
    """Take out what names files of this machine; the names of nodes and values stay."""
    model.doc_string = ""
    del model.metadata_props[:]
    for part in (model.graph, *model.functions):
        part.doc_string = ""
        for holder in _holders(part):
            # where a module stood in the model is worth keeping: it is no path of a machine
            scopes = [entry.value for entry in holder.metadata_props if entry.key == SCOPES]
            del holder.metadata_props[:]
            for scope in scopes:
                holder.metadata_props.add(key=SCOPES, value=scope)
            holder.doc_string = ""


SCOPES = "pkg.torch.onnx.name_scopes"


def _holders(part: Any) -> Iterator[Any]:
    """Nodes, values and weights of a graph or function, those of its inner graphs too."""
    yield from getattr(part, "initializer", ())
    yield from getattr(part, "input", ()) if hasattr(part, "initializer") else ()
    yield from getattr(part, "output", ()) if hasattr(part, "initializer") else ()
    yield from part.value_info
    for node in part.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _holders(inner)


def label(path: Path, text: str) -> None:
    """Keep a text in the file's own metadata."""
    import onnx

    model = onnx.load_model(path)
    del model.metadata_props[:]
    model.metadata_props.add(key=KEY, value=text)
    model.producer_name, model.producer_version = "softless", ""
    onnx.save_model(model, path)


def read(path: Path) -> Any:
    """The file as protobuf; weights that lie beside it are not looked for.

    Raises:
        DataError: it is no ONNX file, or a damaged one.
    """
    need("onnx")
    import onnx

    try:
        return onnx.load_model(path, load_external_data=False)
    except Exception as error:
        raise DataError(
            f"{path} is no ONNX file, or a damaged one "
            f"({(str(error).splitlines() or [''])[0][:120]}): export the model anew"
        ) from error


def text_of(path: Path) -> str:
    """The text that was kept; "" where there is none."""
    texts = [entry.value for entry in read(path).metadata_props if entry.key == KEY]
    return texts[0] if texts else ""


def run(path: Path) -> Runner:
    """What runs the file on the processor, with as many threads as torch has.

    Raises:
        DataError: weights of it stand in other files, or the runtime cannot load it.
    """
    need("onnx", "onnxruntime")
    import onnxruntime

    _check_whole(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise DataError(f"ONNX Runtime cannot load {path}: {last_sentence(error)}") from error
    name = session.get_inputs()[0].name

    def answer(images: Tensor) -> tuple[Tensor, ...]:
        outputs = session.run(None, {name: images.detach().contiguous().numpy()})
        return tuple(map(torch.from_numpy, outputs))

    return answer


def _check_whole(path: Path) -> None:
    """Whether all weights stand in the file: one of somebody else could name any file that this
    process can read.

    Raises:
        DataError: it names other files.
    """
    for tensor in _tensors(read(path).graph):
        if tensor.external_data or tensor.data_location:
            names = [entry.value for entry in tensor.external_data if entry.key == "location"]
            raise DataError(
                f"{path} has weights in another file ({clipped(names[0] if names else '')}), and "
                "files of `softless export` hold their own: it is not opened; export the model anew"
            )


def _tensors(graph: Any) -> Iterator[Any]:
    """Weights and constants of a graph, those of its inner graphs too."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def shape(path: Path) -> Shape:
    """Operators by ONNX's names, and the most axes of a tensor."""
    import onnx

    model = read(path)
    nodes = Counter(node.op_type for node in model.graph.node)
    inferred = onnx.shape_inference.infer_shapes(model) if model.ByteSize() < LARGEST else model
    rank = max(
        (len(value.type.tensor_type.shape.dim) for value in inferred.graph.value_info), default=0
    )
    return Shape(dict(nodes.most_common()), rank)


FORMAT = Format(
    name="onnx",
    ending=".onnx",
    summary="ONNX Runtime, TensorRT, OpenVINO, browsers, tract",
    writes_with=("onnx", "onnxscript"),
    write=write,
    label=label,
    text_of=text_of,
    runs_with=("onnxruntime",),
    open=run,
    dynamic=("batch", "size", "both"),
    int8=INT8,
    quantises_with=("onnxruntime",),
    shape=shape,
    takes_opset=True,
)
