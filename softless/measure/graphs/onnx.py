"""Reads .onnx: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto gives each field's number.

Read as a protocol buffer without the package onnx: nothing is loaded, checked or folded, and
external data is never opened. Bodies of If, Loop and Scan and functions of the file are walked.
"""

import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from softless.measure.findings import OPAQUE
from softless.measure.graphs.classes import LONGEST, Node, Operators, whole_or_half
from softless.measure.graphs.limits import DEEPEST, Damaged, beside, mapped
from softless.measure.graphs.onnx_operators import ACTIVATIONS, DOMAINS, LINEAR
from softless.measure.graphs.protobuf import Message

MODEL_VERSION, MODEL_GRAPH, MODEL_FUNCTIONS = 1, 7, 25
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_SPARSE, GRAPH_INPUT = 1, 5, 15, 11
GRAPH_SHAPES = (11, 12, 13)  # inputs, outputs, values
FUNCTION_NAME, FUNCTION_INPUT, FUNCTION_OUTPUT, FUNCTION_NODE = 1, 4, 5, 7
FUNCTION_DOMAIN, FUNCTION_SHAPES, FUNCTION_OVERLOAD = 10, 12, 13
EXTERNAL = 1  # data_location
ACTIVATION = frozenset({"activation", "activations", "activation_type", "nonlinearity"})
LITTLE = {1: "f", 6: "i", 7: "q", 10: "e", 11: "d"}  # data_type -> letter of the module struct
SCOPES = "pkg.torch.onnx.name_scopes"
Shape = tuple["int | None", ...]


@dataclass
class _Operation:
    """A node: what it computes and of what."""

    operator: str = ""
    domain: str = ""
    overload: str = ""
    name: str = ""
    module: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    graphs: list[Message] = field(default_factory=list)
    attributes: dict[str, Message] = field(default_factory=dict)

    @property
    def where(self) -> str:
        return self.module or self.name or next(filter(None, self.outputs), "") or "(graph)"


@dataclass
class _Scope:
    """What is known of values by their names, within one graph and those around it."""

    depends: set[str]  # made from an input of the model
    shapes: dict[str, Shape]
    numbers: dict[str, float | None]  # constants, with their one number where they hold one

    def inner(self) -> "_Scope":
        return _Scope(set(self.depends), dict(self.shapes), dict(self.numbers))

    def renamed(self, names: Mapping[str, str]) -> "_Scope":
        """What a function sees: the names that it has for what it is called with."""
        pairs = names.items()
        return _Scope(
            {inside for inside, outside in pairs if outside in self.depends},
            {inside: self.shapes[outside] for inside, outside in pairs if outside in self.shapes},
            {inside: self.numbers[outside] for inside, outside in pairs if outside in self.numbers},
        )


def read(path: Path) -> Iterator[Node]:
    """Every operator of a model.

    Raises:
        Damaged: not an ONNX model.
        DataError: it names data outside its folder.
    """
    with mapped(path) as view:
        model = Message(view)
        graph = model.part(MODEL_GRAPH)
        if graph is None or not graph.parts(GRAPH_NODE):
            raise Damaged("it holds no graph")
        functions = {_signature(part): part for part in model.parts(MODEL_FUNCTIONS)}
        # before version 4 every weight stood among the inputs too
        older = next(iter(model.integers(MODEL_VERSION)), 0) < 4
        walk = _Walk(path, functions, _batch(graph), weights_are_inputs=older)
        yield from walk.graph(graph, _Scope(set(), {}, {}), "", 0, inputs_depend=True)


def _signature(function: Message) -> tuple[str, str, str]:
    names = (FUNCTION_DOMAIN, FUNCTION_NAME, FUNCTION_OVERLOAD)
    domain, name, overload = map(function.name, names)
    return _domain(domain), name, overload


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _batch(graph: Message) -> str | None:
    """The name of the size that stands for the number of images, counted as one."""
    for value in graph.parts(GRAPH_INPUT):
        dimensions = _dimensions(value)
        if dimensions and isinstance(dimensions[0], str):
            return dimensions[0]
    return None


def _dimensions(value: Message) -> "list[int | str | None] | None":
    """Sizes of a tensor that a ValueInfo describes: numbers, names, or nothing."""
    kind = value.part(2)
    tensor = kind.part(1) if kind is not None else None
    shape = tensor.part(2) if tensor is not None else None
    if shape is None:
        return None
    sizes: list[int | str | None] = []
    for dimension in shape.parts(1):
        number = dimension.integers(1)
        sizes.append(number[-1] if number else dimension.name(2) or None)
    return sizes


def _operation(message: Message) -> _Operation:
    node = _Operation()
    texts = {3: "name", 4: "operator", 7: "domain", 8: "overload"}
    lists = {1: node.inputs, 2: node.outputs}
    for number, part in message:
        if not isinstance(part, Message):
            continue
        if number in lists:
            lists[number].append(part.text())
        elif number in texts:
            setattr(node, texts[number], part.text())
        elif number == 5:
            node.attributes[part.name(1)] = part
            node.graphs += part.parts(6, 11)
        elif number == 9 and part.name(1) == SCOPES:
            scopes = re.findall(r"'([^']*)'", part.name(2))
            node.module = scopes[-2] if len(scopes) > 1 else ""
    node.domain = _domain(node.domain)
    return node


def _one_number(tensor: Message) -> float | None:
    """The number that a tensor of one element holds."""
    if math.prod(tensor.integers(1)) != 1 or EXTERNAL in tensor.integers(14):
        return None
    kind = next(iter(tensor.integers(2)), 0)
    letter, raw = LITTLE.get(kind), tensor.part(9)
    if raw is not None and letter and len(raw) == struct.calcsize(letter):
        return float(struct.unpack(f"<{letter}", raw.raw())[0])
    held = {1: tensor.reals(4), 11: tensor.reals(10, "d")}.get(kind)
    if held is None and kind in {6, 7}:
        held = [float(value) for value in tensor.integers(5 if kind == 6 else 7)]
    return held[0] if held and len(held) == 1 else None


class _Walk:
    """Walks the graphs of one file."""

    def __init__(
        self,
        path: Path,
        functions: Mapping[tuple[str, str, str], Message],
        batch: str | None,
        *,
        weights_are_inputs: bool,
    ) -> None:
        self.path, self.functions, self.batch = path, functions, batch
        self.weights_are_inputs = weights_are_inputs

    def graph(
        self, graph: Message, scope: _Scope, place: str, depth: int, *, inputs_depend: bool
    ) -> Iterator[Node]:
        """The nodes of a graph, those of its bodies behind the node that holds them."""
        weights = self._constants(graph, scope)
        inputs = {value.name(1) for value in graph.parts(GRAPH_INPUT)}
        if self.weights_are_inputs:
            inputs -= weights
        for name in inputs:  # what has a default may be another at each call
            scope.numbers.pop(name, None)
        scope.depends = scope.depends | inputs if inputs_depend else scope.depends - inputs
        for value in graph.parts(*GRAPH_SHAPES):
            self._shape(value, scope)
        for message in graph.parts(GRAPH_NODE):
            yield from self._node(_operation(message), scope, place, depth)

    def _constants(self, graph: Message, scope: _Scope) -> set[str]:
        """Names of the tensors that a graph holds."""
        names: set[str] = set()
        for tensor in graph.parts(GRAPH_INITIALIZER):
            name = tensor.name(8)
            for entry in tensor.parts(13):
                if entry.name(1) == "location":
                    beside(self.path, entry.name(2))
            scope.numbers[name] = _one_number(tensor)
            scope.shapes[name] = tuple(tensor.integers(1))
            names.add(name)
        for sparse in graph.parts(GRAPH_SPARSE):
            values = sparse.part(1)
            if values is not None:
                scope.numbers[values.name(8)] = None
                names.add(values.name(8))
        scope.depends -= names
        return names

    def _shape(self, value: Message, scope: _Scope) -> None:
        sizes = _dimensions(value)
        if sizes is not None:
            scope.shapes[value.name(1)] = tuple(
                1 if size == self.batch and self.batch else size if isinstance(size, int) else None
                for size in sizes
            )

    def _node(self, node: _Operation, scope: _Scope, place: str, depth: int) -> Iterator[Node]:
        if depth > DEEPEST:
            raise Damaged("its graphs stand too deep in each other")
        from_input = any(name in scope.depends for name in node.inputs)
        function = self.functions.get((node.domain, node.operator, node.overload))
        if function is not None:
            yield from self._call(node, function, scope, place, depth)
            return
        inner: list[Node] = []
        for graph in node.graphs:
            around = scope.inner()
            taken = self._captures(graph, around, depth)
            from_input = from_input or taken
            inner += self.graph(
                graph, around, f"{place}{node.where}/", depth + 1, inputs_depend=from_input
            )
        if from_input:
            scope.depends.update(filter(None, node.outputs))
        else:
            scope.depends.difference_update(node.outputs)
        if node.operator == "Constant" and not node.domain and node.outputs:
            held = node.attributes.get("value")
            tensor = held.part(5) if held is not None else None
            scope.numbers[node.outputs[0]] = (
                _one_number(tensor) if tensor is not None else self._scalar(node)
            )
        yield from self._classed(node, scope, place, from_input=from_input)
        yield from inner

    @staticmethod
    def _scalar(node: _Operation) -> float | None:
        if "value_float" in node.attributes:
            return next(iter(node.attributes["value_float"].reals(2)), None)
        if "value_int" in node.attributes:
            return float(next(iter(node.attributes["value_int"].integers(3)), math.nan))
        return None

    def _captures(self, graph: Message, scope: _Scope, depth: int) -> bool:
        """Whether a body uses a value of the graphs around it that comes from an input."""
        if depth > DEEPEST:
            raise Damaged("its graphs stand too deep in each other")
        for message in graph.parts(GRAPH_NODE):
            node = _operation(message)
            if any(name in scope.depends for name in node.inputs):
                return True
            if any(self._captures(body, scope, depth + 1) for body in node.graphs):
                return True
        return False

    def _call(
        self, node: _Operation, function: Message, scope: _Scope, place: str, depth: int
    ) -> Iterator[Node]:
        """A function of the file, walked where it is called."""
        names = [part.text() for part in function.parts(FUNCTION_INPUT)]
        body = scope.renamed(dict(zip(names, node.inputs, strict=False)))
        for value in function.parts(FUNCTION_SHAPES):
            self._shape(value, body)
        results = [part.text() for part in function.parts(FUNCTION_OUTPUT)]
        for inside, outside in zip(results, node.outputs, strict=False):
            if outside in scope.shapes:
                body.shapes.setdefault(inside, scope.shapes[outside])
        for message in function.parts(FUNCTION_NODE):
            yield from self._node(_operation(message), body, f"{place}{node.where}/", depth + 1)
        for inside, outside in zip(results, node.outputs, strict=False):
            if inside in body.depends:
                scope.depends.add(outside)

    def _classed(
        self, node: _Operation, scope: _Scope, place: str, *, from_input: bool
    ) -> Iterator[Node]:
        table = DOMAINS.get(node.domain)
        name = f"{node.domain}::{node.operator}" if node.domain else node.operator
        kind = table.kind(node.operator) if table is not None else OPAQUE
        activations = list(_activations(node))
        if activations and node.operator in {"LSTM", "GRU", "RNN"}:
            kind = next(filter(None, activations), None)
            activations = activations[1:] if kind else []
        if kind == "power" and _constant_power(node, scope):
            kind = None
        shapes = [scope.shapes.get(value) for value in (*node.inputs, *node.outputs)]
        common = Node(
            name[:LONGEST],
            f"{place}{node.where}"[:LONGEST],
            kind,
            _evaluations(node, scope, table),
            from_input,
            table is not None and node.operator in table.roots,
            table is not None and node.operator in table.divisions,
            max((len(shape) for shape in shapes if shape is not None), default=0),
        )
        yield common
        for activation in dict.fromkeys(filter(None, activations)):
            if activation != kind:
                behind = f"{name[:LONGEST]} (activation)"
                yield common._replace(operator=behind, kind=activation, root=False, division=False)


def _activations(node: _Operation) -> Iterator[str | None]:
    """Kinds of the functions that a node applies behind its product."""
    for key in ACTIVATION & node.attributes.keys():
        attribute = node.attributes[key]
        names = [part.text().lower() for part in attribute.parts(4, 9)]
        if not names:
            yield OPAQUE if any(attribute.integers(3)) or attribute.parts(8) else None
        for name in names:
            yield ACTIVATIONS.get(name, None if name in LINEAR else OPAQUE)


def _constant_power(node: _Operation, scope: _Scope) -> bool:
    """Whether a power has a constant exponent that is whole or a half."""
    if node.operator == "Pow":
        return len(node.inputs) > 1 and whole_or_half(scope.numbers.get(node.inputs[1]))
    if node.operator == "LRN":
        held = node.attributes.get("beta")
        return whole_or_half(next(iter(held.reals(2)), None) if held is not None else 0.75)
    held = node.attributes.get("p")  # LpPool: the p-th root of a sum of p-th powers
    return (held.integers(3) or [2])[-1] in {1, 2} if held is not None else True


def _evaluations(node: _Operation, scope: _Scope, table: Operators | None) -> int | None:
    """Evaluations of a scalar function: elements, or pairs of queries and keys."""
    shapes = [scope.shapes.get(name) for name in (*node.inputs[:1], *node.outputs[:1]) if name]
    if table is not None and node.operator in table.fused:
        if node.operator != "Attention" or node.domain or len(node.inputs) < 2:
            return None
        q, k = (scope.shapes.get(name) for name in node.inputs[:2])
        if q is None or k is None or len(q) != 4 or len(k) != 4 or len(node.inputs) > 4:
            return None
        return _product((*q[:3], k[2]))
    if node.operator.startswith("Reduce"):
        return _product(shapes[0])
    counts = [count for shape in shapes if (count := _product(shape)) is not None]
    return counts[-1] if counts else None


def _product(shape: Shape | None) -> int | None:
    if shape is None or any(size is None for size in shape):
        return None
    return math.prod(size for size in shape if size is not None)
