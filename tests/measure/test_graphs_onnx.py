"""What an ONNX file can hide a function in: bodies, functions of its own, fused and added operators,
attributes; and what is none: whole powers, constants.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper
from onnx import numpy_helper as arrays

import softless
from softless.measure import Audit
from softless.measure.graphs import limits
from tests.measure.written import PLACE, SHAPE, Planted


def value(name: str, shape: Sequence[Any] = SHAPE, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def node(operator: str, inputs: str = "x", outputs: str = "y", **more: Any) -> NodeProto:
    more.setdefault("name", "blocks.0")
    return helper.make_node(operator, inputs.split(), outputs.split(), **more)


def read(folder: Path, nodes: Sequence[NodeProto], **more: Any) -> Audit:
    """The audit of a model of some nodes from x to y."""
    libraries = sorted({each.domain for each in nodes} | {""} | set(more.pop("libraries", ())))
    inputs = more.pop("inputs", [value("x")])
    functions = more.pop("functions", [])
    version = more.pop("ir_version", 10)
    graph = helper.make_graph(
        nodes, "graph", inputs, [value("y", more.pop("shape", SHAPE))], **more
    )
    opsets = [helper.make_opsetid(name, 23 if not name else 1) for name in libraries]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=version)
    path = folder / "model.onnx"
    onnx.save(model, path)
    return softless.audit(path)


def number(name: str, held: float, dtype: torch.dtype = torch.float32) -> TensorProto:
    return arrays.from_array(torch.tensor(held, dtype=dtype).numpy(), name)


@pytest.mark.parametrize("exponent", [2.0, 3.0, 0.5, -1.0, -0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64, torch.int64])
def test_whole_and_half_powers_are_none(
    exponent: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    exponent = float(torch.tensor(exponent, dtype=dtype))
    nodes = [node("Pow", "x p")]
    assert read(tmp_path, nodes, initializer=[number("p", exponent, dtype)]).exp_free
    held = helper.make_node("Constant", [], ["p"], value=number("p", exponent, dtype))
    assert read(tmp_path, [held, *nodes]).exp_free
    plain = helper.make_node("Constant", [], ["p"], value_float=exponent)
    assert read(tmp_path, [plain, *nodes]).exp_free


def test_other_powers_are_powers(tmp_path: Path) -> None:
    nodes = [node("Pow", "x p")]
    assert read(tmp_path, nodes, initializer=[number("p", 0.3)]).kinds == {"power": 40}
    assert read(tmp_path, nodes, inputs=[value("x"), value("p")]).kinds == {"power": 40}
    # a default that a caller may replace is no constant, but for weights of the oldest files
    both = {"inputs": [value("x"), value("p", ())], "initializer": [number("p", 2.0)]}
    assert read(tmp_path, nodes, **both).kinds == {"power": 40}
    assert read(tmp_path, nodes, **both, ir_version=3).exp_free
    several = arrays.from_array(torch.tensor([2.0, 0.3]).numpy(), "p")
    assert read(tmp_path, nodes, initializer=[several]).kinds == {"power": 40}


def test_what_is_made_of_constants_stands_apart(tmp_path: Path) -> None:
    nodes = [
        node("Sin", "table", "waves", name="table.sin"),
        node("Add", "x waves", "z"),
        node("Exp", "z"),
    ]
    found = read(tmp_path, nodes, initializer=[number("table", 0.5)])
    assert found.kinds == {"exp": 40}
    assert found.per_grid == {"trigonometric": 1}
    assert "of constants and shapes alone" in str(found)
    assert read(
        tmp_path, [*nodes[:2], node("Relu", "z")], initializer=[number("table", 0.5)]
    ).exp_free


def test_bodies_are_walked(tmp_path: Path) -> None:
    def body(operator: str, source: str) -> Any:
        inner = helper.make_node(operator, [source], ["inside"], name="inner")
        return helper.make_graph([inner], "body", [], [value("inside")])

    condition = value("c", (), TensorProto.BOOL)
    branches = node("If", "c", then_branch=body("Exp", "x"), else_branch=body("Relu", "x"))
    found = read(tmp_path, [branches], inputs=[value("x"), condition])
    assert found.kinds == {"exp": 40}
    assert found.findings[0].where == "blocks.0/inner"
    # a constant branch within a condition that an image decides
    first = read(
        tmp_path,
        [node("If", "c", then_branch=body("Exp", "w"), else_branch=body("Relu", "x"))],
        inputs=[value("x"), condition],
        initializer=[number("w", 1.0)],
    )
    assert first.kinds.keys() | first.per_grid.keys() == {"exp"}
    loop = helper.make_graph(
        [
            helper.make_node("Gelu", ["held"], ["next"], name="inner"),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [value("i", (), TensorProto.INT64), value("go", (), TensorProto.BOOL), value("held")],
        [value("on", (), TensorProto.BOOL), value("next")],
    )
    turns = [number("n", 3, torch.int64), number("yes", 1, torch.bool)]
    found = read(tmp_path, [node("Loop", "n yes x", body=loop)], initializer=turns)
    assert found.kinds == {"gelu": 40}
    deep = loop
    for _ in range(3):  # loops within loops
        inner = helper.make_node("Loop", ["n", "yes", "held"], ["next"], body=deep, name="inner")
        go = helper.make_node("Identity", ["go"], ["on"])
        deep = helper.make_graph([inner, go], "body", loop.input, loop.output)
    found = read(tmp_path, [node("Loop", "n yes x", body=deep)], initializer=turns)
    assert found.kinds == {"gelu": 40}


def test_functions_of_the_file_are_walked_where_they_are_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def function(name: str, *nodes: NodeProto) -> Any:
        opsets = [helper.make_opsetid("", 23), helper.make_opsetid("own", 1)]
        return helper.make_function("own", name, ["a"], ["b"], list(nodes), opsets)

    inner = function("Inner", helper.make_node("Softmax", ["a"], ["b"], name="soft"))
    outer = function("Outer", helper.make_node("Inner", ["a"], ["b"], domain="own", name="in"))
    calls = [
        helper.make_node("Outer", ["x"], ["z"], domain="own", name="one"),
        helper.make_node("Outer", ["z"], ["y"], domain="own", name="two"),
    ]
    found = read(tmp_path, calls, functions=[inner, outer])
    assert {each.where for each in found.findings} == {"one/in/soft", "two/in/soft"}
    assert found.kinds.keys() == {"softmax"}
    # a function under a standard name is what it does, and one that is never called is not
    hidden = [helper.make_node("Exp", ["a"], ["b"])]
    opset = [helper.make_opsetid("", 23)]
    relu = helper.make_function("", "Relu", ["a"], ["b"], hidden, opset)
    assert read(tmp_path, [node("Relu")], functions=[relu]).kinds.keys() == {"exp"}
    assert read(tmp_path, [node("Abs")], functions=[relu], libraries=["own"]).exp_free
    # of itself: no end
    again = function("Again", helper.make_node("Again", ["a"], ["b"], domain="own"))
    with pytest.raises(softless.DataError, match="too deep"):
        read(tmp_path, [helper.make_node("Again", ["x"], ["y"], domain="own")], functions=[again])
    # 2 to the power of 60 calls
    wide = [
        function(
            f"F{level}",
            helper.make_node(f"F{level + 1}", ["a"], ["c"], domain="own"),
            helper.make_node(f"F{level + 1}", ["c"], ["b"], domain="own"),
        )
        for level in range(60)
    ]
    monkeypatch.setattr(limits, "MOST", 100_000)
    with pytest.raises(softless.DataError, match="more work"):
        read(tmp_path, [helper.make_node("F0", ["x"], ["y"], domain="own")], functions=wide)


@pytest.mark.parametrize(
    ("operator", "library", "kind"),
    [
        ("BiasGelu", "com.microsoft", "gelu"),
        ("FastGelu", "com.microsoft", "gelu"),
        ("QLinearSoftmax", "com.microsoft", "softmax"),
        ("MultiHeadAttention", "com.microsoft", "softmax"),
        ("SkipLayerNormalization", "com.microsoft", None),
        ("LogSoftmax", "", "softmax"),
        ("Erf", "", "erf"),
        ("Swish", "", "silu"),
        ("HardSwish", "", None),
        ("Clip", "", None),
        ("LSTM", "", "sigmoid"),
        ("RandomNormalLike", "", "opaque"),
        ("Relu", "com.example", "opaque"),  # what has a known name elsewhere
        ("Relu", "ai.onnx", None),
        ("NoSuchOperator", "", "opaque"),
        ("EPContext", "com.microsoft", "opaque"),
        ("ATen", "org.pytorch.aten", "opaque"),
    ],
)
def test_classes(operator: str, library: str, kind: str | None, tmp_path: Path) -> None:
    found = read(tmp_path, [node(operator, domain=library)])
    assert found.kinds.keys() == ({kind} if kind else set())
    assert found.exp_free == (kind is None)
    if kind == "opaque":
        assert operator in str(found)


@pytest.mark.parametrize(
    ("operator", "library", "attributes", "kinds"),
    [
        ("FusedConv", "com.microsoft", {"activation": "Relu"}, set()),
        ("FusedConv", "com.microsoft", {"activation": "Tanh"}, {"tanh"}),
        ("FusedGemm", "com.microsoft", {"activation": "Unheard"}, {"opaque"}),
        ("FusedMatMulActivation", "com.microsoft", {"activation": "Sigmoid"}, {"sigmoid"}),
        ("Conv", "com.microsoft.nchwc", {"activation": "Tanh"}, {"tanh"}),
        ("MoE", "com.microsoft", {"activation_type": "gelu"}, {"softmax", "gelu"}),
        ("MatMulPacked", "com.microsoft", {"activation_type": 1}, {"opaque"}),
        ("RNN", "", {"activations": ["Relu"]}, set()),
        ("RNN", "", {}, {"tanh"}),
        ("GRU", "", {"activations": ["HardSigmoid", "Tanh"]}, {"tanh"}),
        ("LSTM", "", {"activations": ["Sigmoid", "Tanh", "Tanh"]}, {"sigmoid", "tanh"}),
        ("LpPool", "", {"p": 2}, set()),
        ("LpPool", "", {"p": 3}, {"power"}),
        ("LRN", "", {"beta": 0.5}, set()),
        ("LRN", "", {}, {"power"}),
    ],
)
def test_functions_behind_an_attribute(
    operator: str, library: str, attributes: dict[str, Any], kinds: set[str], tmp_path: Path
) -> None:
    found = read(tmp_path, [node(operator, domain=library, **attributes)])
    assert found.kinds.keys() == kinds


def test_fused_attention_counts_its_pairs(tmp_path: Path) -> None:
    sizes = {"q": (2, 3, 5, 8), "k": (2, 3, 7, 8), "v": (2, 3, 7, 8)}
    inputs = [value(name, size) for name, size in sizes.items()]
    found = read(tmp_path, [node("Attention", "q k v")], inputs=inputs, shape=sizes["q"])
    assert found.kinds == {"softmax": 2 * 3 * 5 * 7}
    assert found.rank == 4
    flat = [value(name, (2, 5, 24)) for name in "qkv"]
    heads: dict[str, Any] = {"q_num_heads": 3, "kv_num_heads": 3}
    found = read(tmp_path, [node("Attention", "q k v", **heads)], inputs=flat, shape=(2, 5, 24))
    assert found.kinds == {"softmax": 1}
    assert not found.findings[0].sized
    assert "1 operator" in str(found)


def test_a_batch_of_any_size_counts_as_one_image(tmp_path: Path) -> None:
    any_batch = [value("x", ("batch", 5, 8))]
    found = read(tmp_path, [node("Exp")], inputs=any_batch, shape=("batch", 5, 8))
    assert found.kinds == {"exp": 40}
    found = read(tmp_path, [node("Exp")], inputs=any_batch, shape=("batch", "n", 8))
    assert found.kinds == {"exp": 40}  # from what comes in
    any_size = [value("x", ("batch", "n", 8))]
    found = read(tmp_path, [node("Exp")], inputs=any_size, shape=("batch", "n", 8))
    assert found.kinds == {"exp": 1}
    assert "tells no shape" in str(found)
    reduced = read(tmp_path, [node("ReduceLogSumExp", keepdims=0)], shape=())
    assert reduced.kinds == {"softmax": 40}


@pytest.mark.slow
def test_an_exported_model_is_read_as_the_library_onnx_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    program = torch.onnx.export(
        Planted("gelu").eval(), (torch.zeros(SHAPE),), dynamo=True, opset_version=20, verbose=False
    )
    assert program is not None
    program.save(str(path))
    found = softless.audit(path)
    assert found.kinds == {"gelu": 40}
    assert found.findings[0].where == PLACE
    loaded = onnx.load(path)
    assert sum(found.nodes.values()) == len(loaded.graph.node)
    assert found.nodes["Gelu"] == 1
