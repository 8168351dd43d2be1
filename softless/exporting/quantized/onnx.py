"""ONNX in eight bits: quantised and dequantised values beside each product, as ONNX Runtime,
TensorRT and OpenVINO read them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from softless.errors import need
from softless.exporting.graph import IMAGE
from softless.exporting.quantized.candidate import Candidate, Material
from softless.exporting.quantized.tools import own_handler

PRODUCTS = ("Conv", "MatMul", "Gemm")
LEAST_OPSET = 13  # whose DequantizeLinear has a scale for each channel


def products(material: Material, path: Path) -> None:
    """Every product, those of two activations too. What is added to the residual stays float:
    that, and LayerNorm, is where eight bits cost a transformer its answers.
    """
    _static(material, path, only_with_weights=False)


def products_with_weights(material: Material, path: Path) -> None:
    """Products with weights; attention's own stay float."""
    _static(material, path, only_with_weights=True)


def _static(material: Material, path: Path, *, only_with_weights: bool) -> None:
    """Weights int8, a scale for each channel; activations uint8 between the least and the largest
    of the images.
    """
    need("onnx", "onnxruntime")
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        """The images, as ONNX Runtime asks for them."""

        def __init__(self) -> None:
            self.batches = material.batches()

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {IMAGE: batch.numpy()}

    folded = path.with_name(f"folded-{path.name}")
    with own_handler():
        # its shape inference by symbols fails on graphs of torch's exporter
        quant_pre_process(material.float_file, folded, skip_symbolic_shape=True)
        quantize_static(
            folded,
            path,
            Images(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(PRODUCTS),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_exclude=list(_of_activations(folded)) if only_with_weights else [],
        )
    folded.unlink()


def _of_activations(path: Path) -> Iterator[str]:
    """Names of the products of two activations."""
    import onnx

    graph = onnx.load_model(path).graph
    constant = {tensor.name for tensor in graph.initializer}
    constant |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    for node in graph.node:
        if node.op_type in PRODUCTS and not constant & {*node.input[:2]}:
            yield node.name


def weights(material: Material, path: Path) -> None:
    """Weights int8, a scale for each channel, brought back to float32 before each product: a
    quarter of the bytes, the same arithmetic, operators that every runtime has.
    """
    need("onnx")
    import onnx

    model = onnx.load_model(material.float_file)
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    restored: dict[str, str] = {}
    added = []
    for node in graph.node:
        for place, axis in _weight_places(node, tensors):
            name = node.input[place]
            if name not in restored:
                added += _dequantised(graph, tensors[name], axis)
                restored[name] = f"{name}_restored"
            node.input[place] = restored[name]
    used = {name for node in graph.node for name in node.input}
    for name in restored:
        if name not in used:
            graph.initializer.remove(tensors[name])
    for position, node in enumerate(added):
        graph.node.insert(position, node)
    onnx.save_model(model, path)


def _weight_places(node: Any, tensors: dict[str, Any]) -> Iterator[tuple[int, int]]:
    """Inputs of a product that are weights, each with its axis of output channels."""
    if node.op_type not in PRODUCTS:
        return
    for place, name in enumerate(node.input[:2]):
        if name not in tensors or len(tensors[name].dims) < 2:
            continue
        rank = len(tensors[name].dims)
        if node.op_type == "Conv":
            yield place, 0
        elif node.op_type == "Gemm":
            turned = any(
                attribute.name == ("transA", "transB")[place] and attribute.i
                for attribute in node.attribute
            )
            # (K, M) of the first input, (K, N) of the second, unless they are turned
            yield place, int(turned == (place == 0))
        else:
            yield place, rank - 1 if place else rank - 2


def _dequantised(graph: Any, tensor: Any, axis: int) -> list[Any]:
    """Adds int8 values and scales to a graph; the node that multiplies them, with the name
    `NAME_restored`.
    """
    from onnx import helper, numpy_helper

    values = numpy_helper.to_array(tensor)
    others = tuple(other for other in range(values.ndim) if other != axis)
    scale = np.abs(values).max(others) / 127
    scale = np.where(scale == 0, 1, scale).astype(np.float32)
    shape = [-1 if other == axis else 1 for other in range(values.ndim)]
    rounded = np.clip(np.rint(values / scale.reshape(shape)), -127, 127).astype(np.int8)
    names = f"{tensor.name}_int8", f"{tensor.name}_scale"
    graph.initializer.append(numpy_helper.from_array(rounded, names[0]))
    graph.initializer.append(numpy_helper.from_array(scale, names[1]))
    output = f"{tensor.name}_restored"
    return [helper.make_node("DequantizeLinear", names, [output], name=output, axis=axis)]


INT8 = {
    "weights": (Candidate("weights", "weights, a scale for each channel", weights),),
    "static": (
        Candidate("products", "all products, residual float", products),
        Candidate("products-with-weights", "products with weights", products_with_weights),
    ),
}
