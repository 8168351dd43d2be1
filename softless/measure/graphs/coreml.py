"""Reads .mlpackage of Core ML: the operations of its ML Program.

Field numbers are those of Model.proto and MIL.proto of coremltools, which is not needed. Weights
stay closed.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from softless.errors import DataError
from softless.measure.findings import OPAQUE
from softless.measure.graphs.classes import LONGEST, Node, operators, whole_or_half
from softless.measure.graphs.limits import DEEPEST, Damaged, beside, mapped
from softless.measure.graphs.protobuf import Message

OPERATORS = operators(
    exp="exp exp2",
    softmax="softmax scaled_dot_product_attention reduce_log_sum_exp",
    gelu="gelu",
    sigmoid="sigmoid lstm gru",
    silu="silu",
    tanh="tanh scaled_tanh rnn",
    erf="erf",
    elu="elu",
    softplus="softplus softplus_parametric",
    log="log reduce_log_sum",
    trigonometric="sin cos tan asin acos atan sinh cosh asinh acosh atanh",
    power="pow local_response_norm",
    opaque="random_normal random_categorical classify",
    roots="""
        sqrt rsqrt layer_norm instance_norm batch_norm l2_norm l2_pool reduce_l2_norm
    """,
    divisions="""
        real_div floor_div inverse rsqrt reduce_mean softsign layer_norm instance_norm batch_norm
        l2_norm
    """,
    fused="scaled_dot_product_attention lstm gru rnn",
    plain="""
        _const_symbolic abs add affine argsort avg_pool band_part batch_to_space cast ceil
        clamped_relu clip concat cond const constexpr_affine_dequantize
        constexpr_blockwise_shift_scale constexpr_cast constexpr_lut_to_dense
        constexpr_lut_to_sparse constexpr_sparse_blockwise_shift_scale constexpr_sparse_to_dense
        conv conv_quantized conv_transpose coreml_update_state crop crop_resize cumsum
        depth_to_space dequantize einsum equal expand_dims fill fill_like flatten2d floor gather
        gather_along_axis gather_nd greater greater_equal identity leaky_relu less less_equal
        linear linear_activation list_gather list_length list_read list_scatter list_write
        logical_and logical_not logical_or logical_xor make_list matmul max_pool maximum minimum
        mod mul non_maximum_suppression non_zero not_equal one_hot pad pixel_shuffle
        pixel_unshuffle prelu quantize random_bernoulli random_uniform range_1d read_state
        reduce_argmax reduce_argmin reduce_l1_norm reduce_max reduce_min reduce_prod reduce_sum
        reduce_sum_square relu relu6 resample reshape reshape_like resize resize_bilinear
        resize_nearest_neighbor reverse reverse_sequence round scatter scatter_along_axis
        scatter_nd select shape sigmoid_hard sign slice_by_index slice_by_size slice_update
        sliding_windows space_to_batch space_to_depth split square squeeze stack sub
        thresholded_relu threshold tile topk transpose upsample_bilinear upsample_nearest_neighbor
        while_loop write_state
    """,
)
CELLS = frozenset({"lstm", "gru", "rnn"})
ACTIVATIONS = {
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "scaled_tanh": "tanh",
    "relu": None,
    "sigmoid_hard": None,
    "linear": None,
}
ML_PROGRAM = 502
MANIFEST = "Manifest.json"
LARGEST = 1 << 20  # bytes of a list of files
Shape = tuple["int | None", ...]


@dataclass
class _Scope:
    """What is known of values by their names, within one block and those around it."""

    depends: set[str] = field(default_factory=set)
    shapes: dict[str, Shape] = field(default_factory=dict)
    constants: dict[str, Message] = field(default_factory=dict)

    def inner(self) -> "_Scope":
        return _Scope(set(self.depends), dict(self.shapes), dict(self.constants))


def read(path: Path) -> Iterator[Node]:
    """Every operation of a model.

    Raises:
        Damaged: not a model of Core ML.
        DataError: it names files outside itself, or holds no ML Program.
    """
    with mapped(_specification(path)) as view:
        program = Message(view).part(ML_PROGRAM)
        if program is None:
            raise DataError(
                f"{path} holds no ML Program, and other models of Core ML are not read: convert "
                "it with convert_to='mlprogram'"
            )
        functions = program.parts(2)
        for function in functions:
            body = function.part(2)
            if body is None:
                continue
            place = f"{function.name(1)}/" if len(functions) > 1 else ""
            yield from _function(body, place)


def _specification(path: Path) -> Path:
    """The file of a package that holds its graph."""
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise Damaged(f"it holds no {MANIFEST}")
    if manifest.stat().st_size > LARGEST:
        raise Damaged(f"its {MANIFEST} has {manifest.stat().st_size:,} bytes")
    try:
        listed = json.loads(manifest.read_bytes())
        name = listed["itemInfoEntries"][listed["rootModelIdentifier"]]["path"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise Damaged(f"its {MANIFEST} names no model") from error
    file = beside(manifest, f"Data/{name}")
    if str(name).startswith("/") or not file.is_file():
        raise Damaged(f"its {MANIFEST} names a model that is not there")
    return file


def _function(function: Message, place: str) -> Iterator[Node]:
    blocks = [block for entry in function.parts(3) if (block := entry.part(2)) is not None]
    for block in blocks:
        scope = _Scope()
        for value in function.parts(1):
            scope.depends.add(value.name(1))
            scope.shapes[value.name(1)] = _shape(value)
        yield from _block(block, scope, place, 0, inputs_depend=True)


def _block(
    block: Message, scope: _Scope, place: str, depth: int, *, inputs_depend: bool
) -> Iterator[Node]:
    if depth > DEEPEST:
        raise Damaged("its blocks stand too deep in each other")
    if inputs_depend:
        scope.depends |= {value.name(1) for value in block.parts(1)}
    for operation in block.parts(3):
        yield from _operation(operation, scope, place, depth)


def _operation(operation: Message, scope: _Scope, place: str, depth: int) -> Iterator[Node]:
    name = operation.name(1)
    inputs = {
        entry.name(1): argument
        for entry in operation.parts(2)
        if (argument := entry.part(2)) is not None
    }
    taken = [
        bound.name(1)
        for argument in inputs.values()
        for bound in argument.parts(1)
        if bound.part(1) is not None
    ]
    outputs = {value.name(1): _shape(value) for value in operation.parts(3)}
    blocks = operation.parts(4)
    from_input = name == "read_state" or any(each in scope.depends for each in taken)
    # a body may use any value around it, so that it is taken to use what comes from an input
    from_input = from_input or (bool(blocks) and bool(scope.depends))
    scope.shapes |= outputs
    if from_input:
        scope.depends |= outputs.keys()
    if name == "const" and outputs:
        for entry in operation.parts(5):
            value = entry.part(2)
            if entry.name(1) == "val" and value is not None:
                scope.constants[next(iter(outputs))] = value
    where = f"{place}{next(iter(outputs), '') or '(block)'}"
    yield from _classed(name, inputs, outputs, scope, where, from_input=from_input)
    for block in blocks:
        yield from _block(block, scope.inner(), f"{where}/", depth + 1, inputs_depend=from_input)


def _shape(value: Message) -> Shape:
    """Sizes of a value that has a name and a type; None for what is not fixed."""
    kind = value.part(2)
    tensor = kind.part(1) if kind is not None else None
    if tensor is None:
        return (None,)
    sizes: list[int | None] = []
    for dimension in tensor.parts(3):
        fixed = dimension.part(1)
        sizes.append((fixed.integers(1) or [0])[-1] if fixed is not None else None)
    return tuple(sizes)


def _classed(
    name: str,
    inputs: Mapping[str, Message],
    outputs: Mapping[str, Shape],
    scope: _Scope,
    where: str,
    *,
    from_input: bool,
) -> Iterator[Node]:
    kinds: list[str | None] = [OPERATORS.kind(name)]
    if name in CELLS:
        keys = ("activation", "recurrent_activation", "cell_activation")
        named = [_text(inputs[key], scope) for key in keys if key in inputs]
        if named:
            behind = (ACTIVATIONS.get(each, OPAQUE) for each in named)
            kinds = [*dict.fromkeys(filter(None, behind))] or [None]
    elif name == "pow" and "y" in inputs and whole_or_half(_number(inputs["y"], scope)):
        kinds = [None]
    elif name == "local_response_norm" and "beta" in inputs:
        kinds = [None if whole_or_half(_number(inputs["beta"], scope)) else kinds[0]]
    first = _first(inputs, scope)
    shapes = [*outputs.values()] + ([first] if first is not None else [])
    for index, kind in enumerate(kinds):
        yield Node(
            (name if not index else f"{name} ({kind})")[:LONGEST],
            where[:LONGEST],
            kind,
            _evaluations(name, inputs, [*outputs.values()][:1], scope),
            from_input,
            not index and name in OPERATORS.roots,
            not index and name in OPERATORS.divisions,
            max(map(len, shapes), default=0),
        )


def _first(inputs: Mapping[str, Message], scope: _Scope) -> Shape | None:
    argument = inputs.get("x")
    return scope.shapes.get(_bound(argument)) if argument is not None else None


def _bound(argument: Message) -> str:
    binding = argument.part(1)
    return binding.name(1) if binding is not None else ""


def _evaluations(
    name: str, inputs: Mapping[str, Message], outputs: list[Shape], scope: _Scope
) -> int | None:
    if name == "scaled_dot_product_attention" and {"query", "key"} <= inputs.keys():
        q, k = (scope.shapes.get(_bound(inputs[key])) for key in ("query", "key"))
        if q is None or k is None or len(k) < 2:
            return None
        return _product((*q[:-1], k[-2]))
    if name in OPERATORS.fused:
        return None
    first = _first(inputs, scope)
    counts = [_product(shape) for shape in (*outputs, *([first] if first is not None else []))]
    known = [count for count in counts if count is not None]
    return max(known) if known and len(known) == len(counts) else None


def _product(shape: Shape) -> int | None:
    if any(size is None for size in shape):
        return None
    return math.prod(size for size in shape if size is not None)


def _value(argument: Message, scope: _Scope) -> Message | None:
    """The tensor that a constant argument holds."""
    binding = argument.part(1)
    if binding is None:
        return None
    value = binding.part(2) or scope.constants.get(binding.name(1))
    immediate = value.part(3) if value is not None else None
    return immediate.part(1) if immediate is not None else None


def _text(argument: Message, scope: _Scope) -> str:
    tensor = _value(argument, scope)
    strings = tensor.part(4) if tensor is not None else None
    return strings.name(1) if strings is not None else ""


def _number(argument: Message, scope: _Scope) -> float | None:
    """The number that a constant argument of one element holds."""
    tensor = _value(argument, scope)
    if tensor is None:
        return None
    for number, held in tensor:
        if not isinstance(held, Message):
            continue
        if number in {1, 6}:
            values = held.reals(1, "f" if number == 1 else "d")
            return values[0] if len(values) == 1 else None
        if number in {2, 5}:
            whole = held.integers(1)
            return float(whole[0]) if len(whole) == 1 else None
        if number == 7:  # half precision
            raw = held.part(1)
            if raw is not None and len(raw) == 2:
                return float(struct.unpack("<e", raw.raw())[0])
    return None
