"""Reads what ExecuTorch hands to XNNPACK: a graph of its own inside a .pte.

The header and the schema are those of executorch/backends/xnnpack/serialization.
"""

import math
from collections.abc import Iterator
from mmap import mmap

from softless.measure.findings import OPAQUE
from softless.measure.graphs.classes import Node, operators
from softless.measure.graphs.flatbuffer import Flat, Table
from softless.measure.graphs.limits import Budget, Damaged

BACKEND = "XnnpackBackend"
HEADER = b"XH00"
SCHEMAS = frozenset({b"XN00", b"XN01"})
# XNodeUnion, from 1
LISTED = """
    Add FullyConnected Softmax Sigmoid StaticTranspose Clamp Conv2d Div StaticResizeBilinear2D
    StaticConstantPad AvgPooling2d Minimum DepthwiseConv2d MaxPooling2d Multiply Subtract Floor
    Convert GlobalAvgPooling2d StaticReshape ArgMaxPooling2d SquareRoot Ceiling Hardswish LeakyReLU
    Maximum Negate Square ELU Abs PReLU Concatenate2 Concatenate3 Concatenate4 StaticSlice
    ScaledDotProductAttention BatchMatrixMultiply Concatenate5 ConvTranspose2d ReciprocalSquareRoot
    Log Gelu Tanh Exp Sin Copy Cos
"""
NAMES = tuple(LISTED.split())
OPERATORS = operators(
    exp="Exp",
    softmax="Softmax ScaledDotProductAttention",
    gelu="Gelu",
    sigmoid="Sigmoid",
    tanh="Tanh",
    elu="ELU",
    log="Log",
    trigonometric="Sin Cos",
    roots="SquareRoot ReciprocalSquareRoot",
    divisions="Div ReciprocalSquareRoot GlobalAvgPooling2d",
    plain="""
        Abs Add ArgMaxPooling2d AvgPooling2d BatchMatrixMultiply Ceiling Clamp Concatenate2
        Concatenate3 Concatenate4 Concatenate5 Conv2d ConvTranspose2d Convert Copy DepthwiseConv2d
        Floor FullyConnected Hardswish LeakyReLU MaxPooling2d Maximum Minimum Multiply Negate PReLU
        Square StaticConstantPad StaticReshape StaticResizeBilinear2D StaticSlice StaticTranspose
        Subtract
    """,
)


def nodes(view: mmap | bytes, start: int, size: int, where: str, budget: Budget) -> Iterator[Node]:
    """Every node of a payload; one that has another form is opaque."""
    end = start + size
    if size < 8 or end > len(view):
        raise Damaged("a delegate's part is cut short")
    if bytes(view[start + 4 : start + 8]) == HEADER:
        head = Flat(view, start, end, budget)
        offset, length = head.read("I", start + 10), head.read("I", start + 14)
        if offset + length > size:
            raise Damaged("a delegate's part is cut short")
        start, end = start + offset, start + offset + length
    flat = Flat(view, start, end, budget)
    if flat.identifier not in SCHEMAS:
        yield Node(BACKEND, where, OPAQUE, 1)
        return
    graph = flat.root()
    shapes = dict(_shape(value) for value in graph.tables(2))
    for node in graph.tables(1):
        number, inner = node.integer(0, "B"), node.table(1)
        name = NAMES[number - 1] if 0 < number <= len(NAMES) else f"node {number}"
        taken = _taken(name, inner)
        dimensions = [shapes[each] for each in taken if each in shapes]
        counts = [math.prod(dimensions[0])] if dimensions else []
        if name == "ScaledDotProductAttention" and len(dimensions) > 1 and dimensions[1][1:]:
            counts = [math.prod(dimensions[0][:-1]) * dimensions[1][-2]]
        yield Node(
            f"xnnpack::{name}",
            where,
            OPERATORS.kind(name),
            counts[0] if counts and counts[0] else None,
            root=name in OPERATORS.roots,
            division=name in OPERATORS.divisions,
            rank=max(map(len, dimensions), default=0),
        )


def _taken(name: str, inner: Table | None) -> list[int]:
    """Numbers of the values that a node computes with, by the fields of its table."""
    if inner is None:
        return []
    fields = {"ELU": (1,), "LeakyReLU": (1,), "ScaledDotProductAttention": (0, 1)}.get(name, (0,))
    return [inner.integer(field, "I") for field in fields]


def _shape(value: Table) -> tuple[int, list[int]]:
    """Number and sizes of a value, quantised ones too."""
    tensor = value.table(1)
    if tensor is not None and value.integer(0, "B") == 2:
        tensor = tensor.table(0)
    return (tensor.integer(6, "I"), tensor.integers(2, "I")) if tensor is not None else (-1, [])
