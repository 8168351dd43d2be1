"""Small files of exported models, each by its format's own rules, with one operator planted.

    x (1, 5, 8) -> relu -> the planted operator, in the module blocks.0.mlp.act -> x (1, 5, 8)

The tools that write such files are not needed: `tests/measure/test_graphs_tools.py` has theirs.
"""

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import torch
from torch import Tensor, nn

from softless.measure.graphs import tflite, xnnpack

PLACE = "blocks.0.mlp.act"
SHAPE = (1, 5, 8)
PLANTED = ("gelu", "exp", "softmax")

LONG = "Int8 Uint8 Int32 Uint32 Int64 Uint64 Float32 Float64"
SCALARS = dict(zip("bBiIqQfd", LONG.split(), strict=True))


class Numbers(list[int]):
    """A vector of numbers of one kind."""

    def __init__(self, kind: str, numbers: Sequence[int]) -> None:
        super().__init__(numbers)
        self.kind = kind


Table = Mapping[int, Any]  # field -> a scalar as (kind, number), text, bytes, tables, a table


def flatbuffer(root: Table, identifier: bytes) -> bytes:
    """A FlatBuffer of nested tables."""
    builder = flatbuffers.Builder()
    builder.Finish(_table(builder, root), file_identifier=identifier)
    return bytes(builder.Output())


def _table(builder: Any, fields: Table) -> int:
    held = {
        field: value if isinstance(value, tuple) else _offset(builder, value)
        for field, value in fields.items()
    }
    builder.StartObject(max(fields, default=-1) + 1)
    for field, value in held.items():
        if isinstance(value, tuple):
            kind, number = value
            getattr(builder, f"Prepend{SCALARS[kind]}")(number)
        else:
            builder.PrependUOffsetTRelative(value)
        builder.Slot(field)
    return int(builder.EndObject())


def _offset(builder: Any, value: Any) -> int:
    if isinstance(value, str):
        return int(builder.CreateString(value))
    if isinstance(value, bytes):
        return int(builder.CreateByteVector(value))
    if isinstance(value, Mapping):
        return _table(builder, value)
    if isinstance(value, Numbers):
        size = struct.calcsize(value.kind)
        builder.StartVector(size, len(value), size)
        for number in reversed(value):
            getattr(builder, f"Prepend{SCALARS[value.kind]}")(number)
        return int(builder.EndVector())
    offsets = [_table(builder, each) for each in value]
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def message(*fields: tuple[int, Any]) -> bytes:
    """A protocol buffer: whole numbers, texts and messages by the numbers of their fields."""
    out = b""
    for field, value in fields:
        if isinstance(value, int):
            out += varint(field << 3) + varint(value)
        else:
            part = value.encode() if isinstance(value, str) else value
            out += varint(field << 3 | 2) + varint(len(part)) + part
    return out


def write_onnx(folder: Path, planted: str) -> Path:
    import onnx
    from onnx import TensorProto, helper

    names = {"gelu": "Gelu", "exp": "Exp", "softmax": "Softmax", "relu": "Relu"}
    nodes = [
        helper.make_node("Relu", ["x"], ["before"], name="first"),
        helper.make_node(names[planted], ["before"], ["y"], name=PLACE),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in "xy"]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:])
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


LAYER = """<layer id="{id}" name="{name}" type="{type}" version="opset7">{rest}</layer>"""
PORTS = "".join(
    f"""<{side}><port id="{port}" precision="FP32">"""
    + "".join(f"<dim>{size}</dim>" for size in SHAPE)
    + f"</port></{side}>"
    for port, side in enumerate(("input", "output"))
)


def xml(layers: Sequence[tuple[str, str, str]], *, head: str = "") -> str:
    """A chain of layers: type, name and what stands within each."""
    listed = "".join(
        LAYER.format(id=number, type=kind, name=name, rest=rest)
        for number, (kind, name, rest) in enumerate(layers)
    )
    edges = "".join(
        f'<edge from-layer="{number}" from-port="1" to-layer="{number + 1}" to-port="0"/>'
        for number in range(len(layers) - 1)
    )
    return (
        f'<?xml version="1.0"?>{head}<net name="model" version="11"><layers>{listed}</layers>'
        f"<edges>{edges}</edges></net>"
    )


def write_xml(folder: Path, planted: str) -> Path:
    names = {"gelu": "Gelu", "exp": "Exp", "softmax": "SoftMax", "relu": "ReLU"}
    path = folder / "model.xml"
    planted_name = f"__module.{PLACE}/aten::{planted}/{names[planted]}"
    path.write_text(
        xml([
            ("Parameter", "x", PORTS),
            ("ReLU", "first", PORTS),
            (names[planted], planted_name, PORTS),
            ("Result", "y", PORTS),
        ]),
        encoding="utf-8",
    )
    return path


def tflite_operator(code: int, inputs: Sequence[int], outputs: Sequence[int]) -> dict[int, Any]:
    return {0: ("I", code), 1: Numbers("i", inputs), 2: Numbers("i", outputs)}


def write_tflite(folder: Path, planted: str, *, options: Table | None = None) -> Path:
    names = {"gelu": "GELU", "exp": "EXP", "softmax": "SOFTMAX", "relu": "RELU"}
    number = tflite.NAMES.index(names.get(planted, planted))
    codes = [
        {0: ("b", 19), 3: ("i", 19)},
        {0: ("b", min(number, 127)), 3: ("i", number)},
    ]
    texts = ("x", "first", f"{PLACE}/{planted};other")
    tensors = [{0: Numbers("i", SHAPE), 2: ("I", 0), 3: text} for text in texts]
    second = tflite_operator(1, [1], [2])
    if options is not None:
        second |= {3: ("B", 1), 4: options}
    graph = {
        0: tensors,
        1: Numbers("i", [0]),
        2: Numbers("i", [2]),
        3: [tflite_operator(0, [0], [1]), second],
    }
    model = {0: ("I", 3), 1: codes, 2: [graph], 4: [{}]}
    path = folder / "model.tflite"
    path.write_bytes(flatbuffer(model, b"TFL3"))
    return path


class _Act(nn.Module):
    def __init__(self, planted: str) -> None:
        super().__init__()
        calls: dict[str, Callable[[Tensor], Tensor]] = {
            "gelu": nn.functional.gelu,
            "exp": torch.exp,
            "softmax": lambda x: x.softmax(-1),
            "relu": torch.relu,
        }
        self.call = calls[planted]

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


class Planted(nn.Module):
    """A block whose activation is planted."""

    def __init__(self, planted: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Module()])
        self.blocks[0].mlp = nn.Module()
        self.blocks[0].mlp.act = _Act(planted)

    def forward(self, x: Tensor) -> Tensor:
        act: Any = self.get_submodule(PLACE)
        return act(torch.relu(x))


def write_pt2(folder: Path, planted: str) -> Path:
    path = folder / "model.pt2"
    torch.export.save(torch.export.export(Planted(planted), (torch.zeros(SHAPE),)), path)
    return path


def xnnpack_part(planted: str) -> bytes:
    """What XNNPACK is handed: a header, and a graph of one node."""
    names = {"gelu": "Gelu", "exp": "Exp", "softmax": "Softmax", "relu": "Clamp"}
    number = xnnpack.NAMES.index(names.get(planted, planted)) + 1
    values = [
        {0: ("B", 1), 1: {1: ("I", 3), 2: Numbers("I", SHAPE), 6: ("I", index)}}
        for index in range(2)
    ]
    node = {0: ("B", number), 1: {0: ("I", 0), 1: ("I", 1)}}
    graph = flatbuffer({0: "0", 1: [node], 2: values}, b"XN01")
    return bytes(4) + b"XH00" + struct.pack("<HIIIQ", 30, 32, len(graph), 0, 0) + bytes(2) + graph


def pte(planted: str, *, backend: str = xnnpack.BACKEND, kernel: str = "aten::relu") -> bytes:
    tensor = {0: ("B", 5), 1: {2: Numbers("i", SHAPE), 6: {0: ("I", 1)}}}
    plan = {
        0: "forward",
        2: [tensor] * 3,
        3: Numbers("i", [0]),
        4: Numbers("i", [2]),
        5: [
            {
                2: [
                    {0: ("B", 1), 1: {0: ("i", 0), 1: Numbers("i", [0, 1, 1])}},
                    {0: ("B", 2), 1: {0: ("i", 0), 1: Numbers("i", [1, 2])}},
                ]
            }
        ],
        6: [{0: kernel, 1: "out"}],
        7: [{0: backend, 1: {0: ("b", 0), 1: ("I", 0)}}],
    }
    program = {0: ("I", 0), 1: [plan], 3: [{0: xnnpack_part(planted)}]}
    return flatbuffer(program, b"ET12")


def write_pte(folder: Path, planted: str) -> Path:
    path = folder / "model.pte"
    path.write_bytes(pte(planted))
    return path


def mil_value(name: str) -> bytes:
    """A name with the type of a tensor."""
    sizes = [(3, message((1, message((1, size))))) for size in SHAPE]
    return message((1, name), (2, message((1, message((2, len(SHAPE)), *sizes)))))


def mil_operation(kind: str, taken: str, name: str, *more: tuple[int, Any]) -> bytes:
    argument = message((1, message((1, taken))))
    entry = message((1, "x"), (2, argument))
    return message((1, kind), (2, entry), (3, mil_value(name)), *more)


def mlpackage(
    folder: Path, *operations: bytes, path: str = "com.apple.CoreML/model.mlmodel"
) -> Path:
    block = message(*[(3, operation) for operation in operations])
    function = message(
        (1, mil_value("x")), (2, "CoreML8"), (3, message((1, "CoreML8"), (2, block)))
    )
    program = message((1, 1), (2, message((1, "main"), (2, function))))
    package = folder / "model.mlpackage"
    (package / "Data/com.apple.CoreML").mkdir(parents=True)
    (package / "Data/com.apple.CoreML/model.mlmodel").write_bytes(message((1, 9), (502, program)))
    manifest = {"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": path}}}
    (package / "Manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return package


def write_mlpackage(folder: Path, planted: str) -> Path:
    second = mil_operation(planted, "before", f"{PLACE}_{planted}")
    return mlpackage(folder, mil_operation("relu", "x", "before"), second)


WRITERS: Mapping[str, Callable[[Path, str], Path]] = {
    ".pt2": write_pt2,
    ".onnx": write_onnx,
    ".xml": write_xml,
    ".tflite": write_tflite,
    ".pte": write_pte,
    ".mlpackage": write_mlpackage,
}
