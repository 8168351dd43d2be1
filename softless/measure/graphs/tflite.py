"""Reads .tflite: the graphs of TensorFlow Lite (LiteRT), a FlatBuffer.

Fields, unions and numbers of operators are those of its schema, which only grows at its ends:
tensorflow/compiler/mlir/lite/schema/schema.fbs.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path

from softless.measure.findings import OPAQUE
from softless.measure.graphs.classes import LONGEST, Node, operators, whole_or_half
from softless.measure.graphs.flatbuffer import Flat, Table
from softless.measure.graphs.limits import Damaged, mapped

# BuiltinOperator, from 0
LISTED = """
    ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE
    EMBEDDING_LOOKUP FLOOR FULLY_CONNECTED HASHTABLE_LOOKUP L2_NORMALIZATION L2_POOL_2D
    LOCAL_RESPONSE_NORMALIZATION LOGISTIC LSH_PROJECTION LSTM MAX_POOL_2D MUL RELU RELU_N1_TO_1
    RELU6 RESHAPE RESIZE_BILINEAR RNN SOFTMAX SPACE_TO_DEPTH SVDF TANH CONCAT_EMBEDDINGS SKIP_GRAM
    CALL CUSTOM EMBEDDING_LOOKUP_SPARSE PAD UNIDIRECTIONAL_SEQUENCE_RNN GATHER BATCH_TO_SPACE_ND
    SPACE_TO_BATCH_ND TRANSPOSE MEAN SUB DIV SQUEEZE UNIDIRECTIONAL_SEQUENCE_LSTM STRIDED_SLICE
    BIDIRECTIONAL_SEQUENCE_RNN EXP TOPK_V2 SPLIT LOG_SOFTMAX DELEGATE BIDIRECTIONAL_SEQUENCE_LSTM
    CAST PRELU MAXIMUM ARG_MAX MINIMUM LESS NEG PADV2 GREATER GREATER_EQUAL LESS_EQUAL SELECT SLICE
    SIN TRANSPOSE_CONV SPARSE_TO_DENSE TILE EXPAND_DIMS EQUAL NOT_EQUAL LOG SUM SQRT RSQRT SHAPE POW
    ARG_MIN FAKE_QUANT REDUCE_PROD REDUCE_MAX PACK LOGICAL_OR ONE_HOT LOGICAL_AND LOGICAL_NOT UNPACK
    REDUCE_MIN FLOOR_DIV REDUCE_ANY SQUARE ZEROS_LIKE FILL FLOOR_MOD RANGE RESIZE_NEAREST_NEIGHBOR
    LEAKY_RELU SQUARED_DIFFERENCE MIRROR_PAD ABS SPLIT_V UNIQUE CEIL REVERSE_V2 ADD_N GATHER_ND COS
    WHERE RANK ELU REVERSE_SEQUENCE MATRIX_DIAG QUANTIZE MATRIX_SET_DIAG ROUND HARD_SWISH IF WHILE
    NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5 SCATTER_ND SELECT_V2 DENSIFY SEGMENT_SUM
    BATCH_MATMUL PLACEHOLDER_FOR_GREATER_OP_CODES CUMSUM CALL_ONCE BROADCAST_TO RFFT2D CONV_3D IMAG
    REAL COMPLEX_ABS HASHTABLE HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_SIZE REDUCE_ALL
    CONV_3D_TRANSPOSE VAR_HANDLE READ_VARIABLE ASSIGN_VARIABLE BROADCAST_ARGS RANDOM_STANDARD_NORMAL
    BUCKETIZE RANDOM_UNIFORM MULTINOMIAL GELU DYNAMIC_UPDATE_SLICE RELU_0_TO_1 UNSORTED_SEGMENT_PROD
    UNSORTED_SEGMENT_MAX UNSORTED_SEGMENT_SUM ATAN2 UNSORTED_SEGMENT_MIN SIGN BITCAST BITWISE_XOR
    RIGHT_SHIFT STABLEHLO_LOGISTIC STABLEHLO_ADD STABLEHLO_DIVIDE STABLEHLO_MULTIPLY
    STABLEHLO_MAXIMUM STABLEHLO_RESHAPE STABLEHLO_CLAMP STABLEHLO_CONCATENATE
    STABLEHLO_BROADCAST_IN_DIM STABLEHLO_CONVOLUTION STABLEHLO_SLICE STABLEHLO_CUSTOM_CALL
    STABLEHLO_REDUCE STABLEHLO_ABS STABLEHLO_AND STABLEHLO_COSINE STABLEHLO_EXPONENTIAL
    STABLEHLO_FLOOR STABLEHLO_LOG STABLEHLO_MINIMUM STABLEHLO_NEGATE STABLEHLO_OR STABLEHLO_POWER
    STABLEHLO_REMAINDER STABLEHLO_RSQRT STABLEHLO_SELECT STABLEHLO_SUBTRACT STABLEHLO_TANH
    STABLEHLO_SCATTER STABLEHLO_COMPARE STABLEHLO_CONVERT STABLEHLO_DYNAMIC_SLICE
    STABLEHLO_DYNAMIC_UPDATE_SLICE STABLEHLO_PAD STABLEHLO_IOTA STABLEHLO_DOT_GENERAL
    STABLEHLO_REDUCE_WINDOW STABLEHLO_SORT STABLEHLO_WHILE STABLEHLO_GATHER STABLEHLO_TRANSPOSE
    DILATE STABLEHLO_RNG_BIT_GENERATOR REDUCE_WINDOW STABLEHLO_COMPOSITE COMPLEX
"""
NAMES = tuple(LISTED.split())
OPERATORS = operators(
    exp="EXP STABLEHLO_EXPONENTIAL",
    softmax="SOFTMAX LOG_SOFTMAX",
    gelu="GELU",
    sigmoid="""
        LOGISTIC STABLEHLO_LOGISTIC LSTM UNIDIRECTIONAL_SEQUENCE_LSTM BIDIRECTIONAL_SEQUENCE_LSTM
    """,
    tanh="TANH STABLEHLO_TANH",
    elu="ELU",
    log="LOG STABLEHLO_LOG",
    trigonometric="SIN COS ATAN2 STABLEHLO_COSINE",
    power="POW STABLEHLO_POWER LOCAL_RESPONSE_NORMALIZATION",
    opaque="""
        CUSTOM DELEGATE STABLEHLO_CUSTOM_CALL RANDOM_STANDARD_NORMAL MULTINOMIAL
        PLACEHOLDER_FOR_GREATER_OP_CODES
    """,
    roots="SQRT RSQRT STABLEHLO_RSQRT L2_NORMALIZATION L2_POOL_2D COMPLEX_ABS",
    divisions="DIV FLOOR_DIV RSQRT STABLEHLO_DIVIDE STABLEHLO_RSQRT MEAN L2_NORMALIZATION",
    fused="LSTM UNIDIRECTIONAL_SEQUENCE_LSTM BIDIRECTIONAL_SEQUENCE_LSTM",
    plain="""
        ABS ADD ADD_N ARG_MAX ARG_MIN ASSIGN_VARIABLE AVERAGE_POOL_2D BATCH_MATMUL
        BATCH_TO_SPACE_ND BIDIRECTIONAL_SEQUENCE_RNN BITCAST BITWISE_XOR BROADCAST_ARGS
        BROADCAST_TO BUCKETIZE CALL CALL_ONCE CAST CEIL COMPLEX CONCATENATION CONCAT_EMBEDDINGS
        CONV_2D CONV_3D CONV_3D_TRANSPOSE CUMSUM DENSIFY DEPTHWISE_CONV_2D DEPTH_TO_SPACE
        DEQUANTIZE DILATE DYNAMIC_UPDATE_SLICE EMBEDDING_LOOKUP EMBEDDING_LOOKUP_SPARSE EQUAL
        EXPAND_DIMS FAKE_QUANT FILL FLOOR FLOOR_MOD FULLY_CONNECTED GATHER GATHER_ND GREATER
        GREATER_EQUAL HARD_SWISH HASHTABLE HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_LOOKUP
        HASHTABLE_SIZE IF IMAG LEAKY_RELU LESS LESS_EQUAL LOGICAL_AND LOGICAL_NOT LOGICAL_OR
        LSH_PROJECTION MATRIX_DIAG MATRIX_SET_DIAG MAXIMUM MAX_POOL_2D MINIMUM MIRROR_PAD MUL NEG
        NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5 NOT_EQUAL ONE_HOT PACK PAD PADV2 PRELU
        QUANTIZE RANDOM_UNIFORM RANGE RANK READ_VARIABLE REAL REDUCE_ALL REDUCE_ANY REDUCE_MAX
        REDUCE_MIN REDUCE_PROD REDUCE_WINDOW RELU RELU6 RELU_0_TO_1 RELU_N1_TO_1 RESHAPE
        RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_SEQUENCE REVERSE_V2 RFFT2D RIGHT_SHIFT RNN
        ROUND SCATTER_ND SEGMENT_SUM SELECT SELECT_V2 SHAPE SIGN SKIP_GRAM SLICE SPACE_TO_BATCH_ND
        SPACE_TO_DEPTH SPARSE_TO_DENSE SPLIT SPLIT_V SQUARE SQUARED_DIFFERENCE SQUEEZE
        STABLEHLO_ABS STABLEHLO_ADD STABLEHLO_AND STABLEHLO_BROADCAST_IN_DIM STABLEHLO_CLAMP
        STABLEHLO_COMPARE STABLEHLO_COMPOSITE STABLEHLO_CONCATENATE STABLEHLO_CONVERT
        STABLEHLO_CONVOLUTION STABLEHLO_DOT_GENERAL STABLEHLO_DYNAMIC_SLICE
        STABLEHLO_DYNAMIC_UPDATE_SLICE STABLEHLO_FLOOR STABLEHLO_GATHER STABLEHLO_IOTA
        STABLEHLO_MAXIMUM STABLEHLO_MINIMUM STABLEHLO_MULTIPLY STABLEHLO_NEGATE STABLEHLO_OR
        STABLEHLO_PAD STABLEHLO_REDUCE STABLEHLO_REDUCE_WINDOW STABLEHLO_REMAINDER
        STABLEHLO_RESHAPE STABLEHLO_RNG_BIT_GENERATOR STABLEHLO_SCATTER STABLEHLO_SELECT
        STABLEHLO_SLICE STABLEHLO_SORT STABLEHLO_SUBTRACT STABLEHLO_TRANSPOSE STABLEHLO_WHILE
        STRIDED_SLICE SUB SUM SVDF TILE TOPK_V2 TRANSPOSE TRANSPOSE_CONV
        UNIDIRECTIONAL_SEQUENCE_RNN UNIQUE UNPACK UNSORTED_SEGMENT_MAX UNSORTED_SEGMENT_MIN
        UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_SUM VAR_HANDLE WHERE WHILE ZEROS_LIKE
    """,
)
# the field of each operator's options that names a function behind it
FUSED = {
    "CONV_2D": 3,
    "TRANSPOSE_CONV": 3,
    "CONV_3D": 4,
    "CONV_3D_TRANSPOSE": 4,
    "DEPTHWISE_CONV_2D": 4,
    "AVERAGE_POOL_2D": 5,
    "MAX_POOL_2D": 5,
    "L2_POOL_2D": 5,
    "SVDF": 1,
    "RNN": 0,
    "UNIDIRECTIONAL_SEQUENCE_RNN": 1,
    "BIDIRECTIONAL_SEQUENCE_RNN": 1,
    "FULLY_CONNECTED": 0,
    "CONCATENATION": 1,
    "ADD": 0,
    "MUL": 0,
    "SUB": 0,
    "DIV": 0,
    "L2_NORMALIZATION": 0,
}
# ActivationFunctionType: none, relu, relu from -1 to 1, relu6, tanh, sign
ACTIVATIONS: dict[int, str | None] = {0: None, 1: None, 2: None, 3: None, 4: "tanh", 5: None}
STATES = frozenset({"READ_VARIABLE", "VAR_HANDLE", "HASHTABLE_FIND"})
LITTLE = {0: "f", 1: "e", 2: "i", 4: "q", 10: "d"}  # TensorType


def read(path: Path) -> Iterator[Node]:
    """Every operator of every graph of a model.

    Raises:
        Damaged: not a TensorFlow Lite model.
    """
    with mapped(path) as view:
        flat = Flat(view)
        if flat.identifier != b"TFL3":
            raise Damaged("it does not begin as one")
        model = flat.root()
        codes = [_name(code) for code in model.tables(1)]
        graphs = model.tables(2)
        if not graphs:
            raise Damaged("it holds no graph")
        buffers = model.vector(4, 4)
        for index, graph in enumerate(graphs):
            place = f"{graph.text(4) or f'graph {index}'}/" if index else ""
            yield from _Graph(graph, codes, flat, buffers).nodes(place)


def _name(code: Table) -> str:
    """An operator's name; the newer field holds what a byte cannot."""
    number = max(code.integer(0, "b"), code.integer(3))
    if not 0 <= number < len(NAMES):
        return f"operator {number}"
    return f"CUSTOM {code.text(1)}" if NAMES[number] == "CUSTOM" else NAMES[number]


class _Graph:
    """One graph of a model, its tensors by number."""

    def __init__(
        self, graph: Table, codes: list[str], flat: Flat, buffers: tuple[int, int]
    ) -> None:
        self.graph, self.codes, self.flat, self.buffers = graph, codes, flat, buffers
        self.start, self.number = graph.vector(0, 4)

    def tensor(self, index: int) -> Table | None:
        if not 0 <= index < self.number:
            if index == -1:
                return None
            raise Damaged("an operator takes a tensor that is not there")
        return self.flat.table(self.start + 4 * index)

    def shape(self, index: int) -> list[int] | None:
        """Sizes of a tensor; what is not fixed stands as one image has it."""
        tensor = self.tensor(index)
        return tensor.integers(0) if tensor is not None else None

    def nodes(self, place: str) -> Iterator[Node]:
        depends = set(self.graph.integers(1))
        for operation in self.graph.tables(3):
            index = operation.integer(0, "I")
            if index >= len(self.codes):
                raise Damaged("an operator has a code that is not there")
            name = self.codes[index]
            inputs, outputs = operation.integers(1), operation.integers(2)
            tensors = [self.tensor(each) for each in inputs]
            from_input = (
                any(each in depends for each in inputs)
                or name in STATES
                or any(each.integer(5, "B") for each in tensors if each is not None)
            )
            if from_input:
                depends.update(outputs)
            yield from self._classed(name, operation, inputs, outputs, place, from_input=from_input)

    def _classed(
        self,
        name: str,
        operation: Table,
        inputs: list[int],
        outputs: list[int],
        place: str,
        *,
        from_input: bool,
    ) -> Iterator[Node]:
        kind = OPERATORS.kind("CUSTOM" if name.startswith("CUSTOM ") else name)
        if name in {"POW", "STABLEHLO_POWER"} and len(inputs) > 1:
            kind = None if whole_or_half(self._constant(inputs[1])) else kind
        options = operation.table(4)
        if name == "LOCAL_RESPONSE_NORMALIZATION" and options is not None:
            kind = None if whole_or_half(options.real(3, "f")) else kind
        shapes = [self.shape(each) for each in inputs[:1] + outputs[:1]]
        first = self.tensor(outputs[0]) if outputs else None
        where = (first.text(3) if first is not None else "") or "(graph)"
        sizes = [
            math.prod(shape) for shape in shapes if shape is not None and min(shape, default=1) > 0
        ]
        counted = len(sizes) == len(shapes) and bool(sizes) and name not in OPERATORS.fused
        ranks = [len(shape) for each in inputs + outputs if (shape := self.shape(each)) is not None]
        common = Node(
            name[:LONGEST],
            f"{place}{where.partition(';')[0]}"[:LONGEST],
            kind,
            max(sizes) if counted else None,
            from_input,
            name in OPERATORS.roots,
            name in OPERATORS.divisions,
            max(ranks, default=0),
        )
        yield common
        if name in FUSED and options is not None:
            activation = ACTIVATIONS.get(options.integer(FUSED[name], "b"), OPAQUE)
            if activation is not None:
                behind = f"{name} (activation)"
                yield common._replace(operator=behind, kind=activation, root=False, division=False)

    def _constant(self, index: int) -> float | None:
        """The number that a tensor of one element holds."""
        tensor = self.tensor(index)
        start, number = self.buffers
        if tensor is None or math.prod(tensor.integers(0)) != 1:
            return None
        letter, buffer = LITTLE.get(tensor.integer(1, "b")), tensor.integer(2, "I")
        if letter is None or not 0 < buffer < number:
            return None
        at, size = self.flat.table(start + 4 * buffer).vector(0, 1)
        if size != struct.calcsize(letter):
            return None
        return float(struct.unpack(f"<{letter}", self.flat.view[at : at + size])[0])
