"""Reads .xml of OpenVINO: layers, the edges between them, and the bodies of loops and branches.

Weights in the .bin beside it stay closed, but for the exponents of powers.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from softless.measure.findings import OPAQUE
from softless.measure.graphs.classes import LONGEST, Node, operators, whole_or_half
from softless.measure.graphs.limits import DEEPEST, TEXT, Budget, Damaged, beside

OPERATORS = operators(
    exp="Exp",
    softmax="SoftMax Softmax LogSoftmax ScaledDotProductAttention",
    gelu="Gelu",
    sigmoid="Sigmoid LSTMCell LSTMSequence GRUCell GRUSequence RegionYolo",
    silu="Swish",
    tanh="Tanh RNNCell RNNSequence",
    erf="Erf",
    erfinv="ErfInv",
    elu="Elu Selu",
    mish="Mish",
    softplus="SoftPlus",
    log="Log",
    trigonometric="Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh",
    power="Power LRN",
    # of several functions by their attributes, with boxes decoded by exponentials, or of a compiler
    opaque="""
        CTCLoss GenerateProposals Proposal DetectionOutput ExperimentalDetectronDetectionOutput
        ExperimentalDetectronGenerateProposalsSingleImage Multinomial
    """,
    roots="""
        Sqrt MVN GroupNormalization NormalizeL2 ReduceL2 GRN BatchNormInference
    """,
    divisions="""
        Divide FloorMod MVN GroupNormalization NormalizeL2 ReduceMean GRN BatchNormInference
        SoftSign Inverse
    """,
    fused="""
        ScaledDotProductAttention LSTMCell LSTMSequence GRUCell GRUSequence RegionYolo RNNCell
        RNNSequence
    """,
    plain="""
        Abs AdaptiveAvgPool AdaptiveMaxPool Add Assign AvgPool BatchToSpace BinaryConvolution
        BitwiseAnd BitwiseLeftShift BitwiseNot BitwiseOr BitwiseRightShift BitwiseXor Broadcast
        Bucketize CTCGreedyDecoder CTCGreedyDecoderSeqLen Ceiling Clamp Col2Im Concat Const
        Convert ConvertLike ConvertPromoteTypes Convolution ConvolutionBackpropData CumSum DFT
        DeformableConvolution DeformablePSROIPooling DepthToSpace Einsum EmbeddingBagOffsets
        EmbeddingBagOffsetsSum EmbeddingBagPacked EmbeddingBagPackedSum EmbeddingSegmentsSum Equal
        ExperimentalDetectronPriorGridGenerator ExperimentalDetectronROIFeatureExtractor
        ExperimentalDetectronTopKROIs ExtractImagePatches Eye FakeConvert FakeQuantize Floor
        Gather GatherElements GatherND GatherTree Greater GreaterEqual GridSample
        GroupConvolution GroupConvolutionBackpropData GroupedMatMul HSigmoid HSwish HardSigmoid
        I420toBGR I420toRGB IDFT IRDFT ISTFT Identity If Interpolate IsFinite IsInf IsNaN Less
        LessEqual LogicalAnd LogicalNot LogicalOr LogicalXor Loop MatMul MatrixNms MatrixNonMaxSuppression
        MaxPool Maximum Minimum Mod MulticlassNms MulticlassNonMaxSuppression Multiply NMSRotated
        NV12toBGR NV12toRGB Negative NonMaxSuppression NonZero NotEqual OneHot PReLU PSROIPooling
        Pad Parameter PriorBox PriorBoxClustered RDFT ROIAlign ROIAlignRotated ROIPooling
        RandomUniform Range ReLU ReadValue ReduceL1 ReduceLogicalAnd ReduceLogicalOr ReduceMax
        ReduceMin ReduceProd ReduceSum ReorgYolo Reshape Result ReverseSequence Roll Round STFT
        ScatterElementsUpdate ScatterNDUpdate ScatterUpdate SearchSorted SegmentMax Select
        ShapeOf ShuffleChannels Sign Slice SliceScatter SpaceToBatch SpaceToDepth
        SparseFillEmptyRows Split SquaredDifference Squeeze StridedSlice StringTensorPack
        StringTensorUnpack Subtract TensorIterator Tile TopK Transpose Unique Unsqueeze
        VariadicSplit
    """,
)
CELLS = frozenset({"LSTMCell", "LSTMSequence", "GRUCell", "GRUSequence", "RNNCell", "RNNSequence"})
ACTIVATIONS = {"sigmoid": "sigmoid", "tanh": "tanh", "relu": None}
BODIES = frozenset({"body", "then_body", "else_body"})
LITTLE = {"f32": "f", "f16": "e", "f64": "d", "i32": "i", "i64": "q"}


class _Layer(NamedTuple):
    """A layer and where its inputs come from, by port."""

    element: Element
    kind: str
    sources: Mapping[int, str]

    @property
    def attributes(self) -> Mapping[str, str]:
        held = self.element.find("data")
        return held.attrib if held is not None else {}


def read(path: Path) -> Iterator[Node]:
    """Every layer of a model, in its own graph and in bodies.

    Raises:
        Damaged: not a model of OpenVINO.
        DataError: its .bin is a link.
    """
    root = parsed(path)
    if root.tag != "net" or root.find("layers") is None:
        raise Damaged("it is XML of another kind")
    yield from _walk(root, path, "", Budget(), 0, inputs_depend=True)


def parsed(path: Path) -> Element:
    """The elements of a file that may not define entities: those can grow without bound.

    Raises:
        Damaged: it is no such XML.
    """
    if path.stat().st_size > TEXT:
        raise Damaged(f"it has {path.stat().st_size:,} bytes, and its weights stand in the .bin")
    builder, parser, depth = TreeBuilder(), expat.ParserCreate(), 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > 4 * DEEPEST:
            raise Damaged("its elements stand too deep in each other")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise Damaged("it has a DOCTYPE, which no model of OpenVINO has")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)  # noqa: FBT003
    except (expat.ExpatError, ValueError, LookupError) as error:
        if isinstance(error, Damaged):
            raise
        raise Damaged(f"it is no XML ({str(error)[:120]})") from error
    return builder.close()


def _walk(
    graph: Element, path: Path, place: str, budget: Budget, depth: int, *, inputs_depend: bool
) -> Iterator[Node]:
    if depth > DEEPEST:
        raise Damaged("its graphs stand too deep in each other")
    layers = _layers(graph)
    depends: set[str] = set()
    for number in _ordered(layers):
        layer = layers[number]
        budget.spend()
        name, version = layer.element.get("name", ""), layer.element.get("version", "")
        own = layer.kind == "ReadValue" or (layer.kind == "Parameter" and inputs_depend)
        from_input = own or any(source in depends for source in layer.sources.values())
        if from_input:
            depends.add(number)
        where = f"{place}{_module(name)}"[:LONGEST]
        known = version.removeprefix("opset").isdigit() and version.startswith("opset")
        yield from _classed(layer, layers, path, where, known=known, from_input=from_input)
        for body in layer.element:
            if body.tag in BODIES:
                yield from _walk(
                    body, path, f"{where}/", budget, depth + 1, inputs_depend=from_input
                )


def _layers(graph: Element) -> dict[str, _Layer]:
    sources: dict[str, dict[int, str]] = {}
    for edge in graph.findall("edges/edge"):
        port = edge.get("to-port", "0")
        ports = sources.setdefault(edge.get("to-layer", ""), {})
        ports[int(port) if port.isdigit() else len(ports)] = edge.get("from-layer", "")
    return {
        number: _Layer(element, element.get("type", ""), sources.get(number, {}))
        for element in graph.findall("layers/layer")
        if (number := element.get("id", "")) is not None
    }


def _ordered(layers: Mapping[str, _Layer]) -> list[str]:
    """Numbers of the layers, each behind those that it takes from."""
    order: list[str] = []
    state: dict[str, bool] = {}  # False while its sources are looked at
    for first in layers:
        stack = [first]
        while stack:
            number = stack[-1]
            if number not in state:
                state[number] = False
                sources = layers[number].sources.values()
                stack += [each for each in sources if each in layers and each not in state]
                continue
            stack.pop()
            if not state[number]:
                state[number] = True
                order.append(number)
    return order


def _module(name: str) -> str:
    """The module's path where the name holds one, as OpenVINO writes it when it traces."""
    if name.startswith("__module."):
        return name.removeprefix("__module.").partition("/aten::")[0]
    return name or "(graph)"


def _classed(
    layer: _Layer,
    layers: Mapping[str, _Layer],
    path: Path,
    where: str,
    *,
    known: bool,
    from_input: bool,
) -> Iterator[Node]:
    kind = OPERATORS.kind(layer.kind) if known else OPAQUE
    kinds: list[str | None] = [kind]
    if layer.kind in CELLS and "activations" in layer.attributes:
        names = layer.attributes["activations"].split(",")
        behind = (ACTIVATIONS.get(name.strip().lower(), OPAQUE) for name in names)
        kinds = [*dict.fromkeys(filter(None, behind))] or [None]
    elif layer.kind == "Power" and whole_or_half(_exponent(layer, layers, path)):
        kinds = [None]
    elif layer.kind == "LRN":
        kinds = [None if whole_or_half(_real(layer.attributes.get("beta"))) else kind]
    elif layer.kind == "NormalizeL2":
        kinds = [None]
    elif layer.kind == "RegionYolo" and layer.attributes.get("do_softmax", "true") == "true":
        kinds = ["softmax", "sigmoid"]
    shapes = [_shape(port) for port in layer.element.findall("*/port")]
    operator = layer.kind if known else f"{layer.element.get('version', '')}::{layer.kind}"
    for index, each in enumerate(kinds):
        yield Node(
            operator[:LONGEST] if not index else f"{operator[:LONGEST]} ({each})",
            where,
            each,
            _evaluations(layer),
            from_input,
            known and not index and layer.kind in OPERATORS.roots,
            known and not index and layer.kind in OPERATORS.divisions,
            max((len(shape) for shape in shapes), default=0),
        )


def _shape(port: Element) -> list[int]:
    texts = [(size.text or "").strip() for size in port.findall("dim")]
    return [int(text) if text.isdecimal() and len(text) < 20 else -1 for text in texts]


def _evaluations(layer: _Layer) -> int | None:
    inputs = [_shape(port) for port in layer.element.findall("input/port")]
    outputs = [_shape(port) for port in layer.element.findall("output/port")]
    if layer.kind == "ScaledDotProductAttention":
        if len(inputs) < 2 or len(inputs[1]) < 2 or -1 in inputs[0] + inputs[1]:
            return None
        return math.prod(inputs[0][:-1]) * inputs[1][-2]
    if layer.kind in OPERATORS.fused:
        return None
    shapes = [*inputs[:1], *outputs[:1]]
    if not shapes or any(size < 0 for shape in shapes for size in shape):
        return None
    return max(math.prod(shape) for shape in shapes)


def _real(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def _exponent(layer: _Layer, layers: Mapping[str, _Layer], path: Path) -> float | None:
    """The constant that a power has for its exponent, from the .bin; None if there is none."""
    source = layers.get(layer.sources.get(1, ""))
    for _ in range(4):  # through conversions of its precision
        if source is None or source.kind != "Convert":
            break
        source = layers.get(source.sources.get(0, ""))
    if source is None or source.kind != "Const":
        return None
    held = source.attributes
    letter = LITTLE.get(held.get("element_type", ""))
    offset, size = held.get("offset", ""), held.get("size", "")
    if letter is None or not offset.isdecimal() or size != str(struct.calcsize(letter)):
        return None
    weights = beside(path, f"{path.stem}.bin")
    if len(offset) > 18 or not weights.is_file():
        return None
    with weights.open("rb") as file:
        file.seek(int(offset))
        raw = file.read(struct.calcsize(letter))
    return float(struct.unpack(f"<{letter}", raw)[0]) if len(raw) == int(size) else None
