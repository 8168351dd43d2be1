"""OpenVINO: a graph in XML with its weights beside it, for Intel's processors, GPUs and NPUs.

It is made of the ONNX graph: that one has names for input, outputs and layers, and the recorded
program's resizing of position tables has no rule in OpenVINO.
"""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import torch
from torch import Tensor

from softless.errors import DataError
from softless.exporting.formats import onnx
from softless.exporting.formats.format import Format, Runner, Shape
from softless.exporting.graph import Graph, last_sentence
from softless.exporting.metadata import KEY
from softless.exporting.quantized import tools
from softless.exporting.quantized.openvino import INT8
from softless.exporting.silence import muted
from softless.measure.audit import audit
from softless.measure.graphs.limits import Damaged
from softless.measure.graphs.openvino import parsed
from softless.models.digests import of_file
from softless.models.durable import write_bytes

WEIGHTS = f"{KEY}_weights"  # under which the graph keeps the digest of its weights
NO_OPERATORS = ("Const", "Parameter", "Result")


def write(graph: Graph, path: Path, _: int | None) -> None:
    """Convert a module and write it in float32.

    Raises:
        UsageError: the exporter of ONNX cannot record it.
    """
    save(from_onnx(onnx.converted(graph)), path)


def from_onnx(proto: Any) -> Any:
    """A graph of ONNX as a model of OpenVINO.

    It is read by the runtime's own reader. `openvino.convert_model` would note the path of its
    source in the file, and tell its makers of each use.
    """
    model = tools.openvino().Core().read_model(proto.SerializeToString())
    _resized_as_torch(model)
    model.set_friendly_name(KEY)
    return model


def _resized_as_torch(model: Any) -> None:
    """Cubic resizing that averages when it shrinks: OpenVINO's processor plugin has it under
    Pillow's name alone, and leaves the averaging out of the one that it reads from ONNX.
    """
    opset11 = tools.openvino().opset11
    for old in model.get_ops():
        if old.get_type_name() != "Interpolate":
            continue
        attributes = old.get_attributes()
        if attributes["mode"] != "cubic" or not attributes["antialias"]:
            continue
        assert attributes["shape_calculation_mode"] == "sizes"
        axes = opset11.constant(np.array([2, 3]))
        sides = opset11.gather(old.input_value(1), axes, opset11.constant(np.array(0)))
        new = opset11.interpolate(
            old.input_value(0),
            sides,
            "bicubic_pillow",
            "sizes",
            axes=axes,
            cube_coeff=attributes["cube_coeff"],
        )
        new.set_friendly_name(old.get_friendly_name())
        old.output(0).replace(new.output(0))
    model.validate_nodes_and_infer_types()


def save(model: Any, path: Path) -> None:
    """Write a model of OpenVINO, its weights in the precision that they have."""
    _numbered_by_place(model)
    tools.openvino().save_model(model, path, compress_to_fp16=False)


def _numbered_by_place(model: Any) -> None:
    """Names that OpenVINO makes up hold how many it has made in this process: in a file they hold
    the layer's place.
    """
    for number, layer in enumerate(model.get_ordered_ops()):
        kind = layer.get_type_name()
        if re.fullmatch(rf"{kind}_\d+", layer.get_friendly_name()):
            layer.set_friendly_name(f"{kind}_{number}")


def weights_of(path: Path) -> Path:
    """Where the weights of a graph stand."""
    return path.with_suffix(".bin")


def label(path: Path, text: str) -> None:
    """Keep a text in the graph, and the digest of its weights."""
    root = document(path)
    info = root.find("rt_info")
    info = ET.SubElement(root, "rt_info") if info is None else info
    for name, value in ((KEY, text), (WEIGHTS, of_file(weights_of(path)))):
        element = info.find(name)
        element = ET.SubElement(info, name) if element is None else element
        element.set("value", value)
    write_bytes(path, ET.tostring(root, encoding="utf-8", xml_declaration=True))


def document(path: Path) -> ET.Element:
    """The graph as XML.

    Raises:
        DataError: it is no such file, or damaged.
    """
    try:
        root = parsed(path)
    except Damaged as error:
        raise DataError(
            f"{path} is no graph of OpenVINO ({error}): export the model anew"
        ) from error
    if root.tag != "net":
        raise DataError(f"{path} is no graph of OpenVINO, but XML of another kind")
    return root


def text_of(path: Path) -> str:
    """The text that was kept; "" where there is none."""
    return _kept(document(path), KEY)


def _kept(root: ET.Element, name: str) -> str:
    element = root.find(f"rt_info/{name}")
    return "" if element is None else element.get("value", "")


def check_weights(path: Path) -> None:
    """Whether the weights beside a graph are its own.

    Raises:
        DataError: there are none, or those of another graph, or damaged ones.
    """
    weights = weights_of(path)
    if not weights.is_file():
        raise DataError(f"{path} has its weights in {weights.name}, which is not beside it")
    if of_file(weights) != _kept(document(path), WEIGHTS):
        raise DataError(
            f"{weights} is damaged, or belongs to another graph than {path.name}: its digest is "
            "not the one that the graph names; export the model anew"
        )


def run(path: Path) -> Runner:
    """What runs the file on the processor in float32, with as many threads as torch has.

    Raises:
        DataError: its weights are not there or not its own, or the runtime cannot load it.
    """
    openvino = tools.openvino()
    check_weights(path)
    options = {
        "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16, where the processor has it
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    try:
        with muted():
            core = openvino.Core()
            compiled = core.compile_model(core.read_model(path), "CPU", options)
    except RuntimeError as error:
        raise DataError(f"OpenVINO cannot load {path}: {last_sentence(error)}") from error

    def answer(images: Tensor) -> tuple[Tensor, ...]:
        outputs = compiled([images.detach().contiguous().numpy()])
        return tuple(torch.from_numpy(outputs[port]) for port in compiled.outputs)

    return answer


def shape(path: Path) -> Shape:
    """Layers by OpenVINO's names, and the most axes of a tensor."""
    audited = audit(path)
    layers = {kind: number for kind, number in audited.nodes.items() if kind not in NO_OPERATORS}
    return Shape(layers, audited.rank)


FORMAT = Format(
    name="openvino",
    ending=".xml",
    summary="OpenVINO: Intel's processors, GPUs and NPUs",
    writes_with=("openvino", "onnx", "onnxscript"),
    write=write,
    label=label,
    text_of=text_of,
    runs_with=("openvino",),
    open=run,
    dynamic=("batch", "size", "both"),
    int8=INT8,
    quantises_with=("nncf",),
    shape=shape,
    parts=lambda path: [path, weights_of(path)],
)
