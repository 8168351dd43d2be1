"""What stands in a file that was made of an edge form, and what a runtime answers of it."""

import collections
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import softless
from softless.exporting.forms.operators import CORES
from softless.exporting.graph import Graph, recorded
from softless.models.create import create_model
from tests.exporting.alive import alive
from tests.exporting.forms import BAR, apart, images, vit

DOUBLE = 11  # what ONNX calls float64
ABSENT = {"Resize", "Squeeze", "Exp", "Softmax", "Erf", "Gelu", "Tanh", "Pow", "Sqrt"}


class Written(nn.Module):
    """A module as an ONNX file, run by onnxruntime: images (B,C,H,W) -> its answers."""

    def __init__(self, module: nn.Module, x: Tensor, path: Path, dynamic: Any = "batch") -> None:
        super().__init__()
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
        onnx = pytest.importorskip("onnx")
        from softless.exporting.formats.onnx import run, write

        write(Graph(module, x[:2], dynamic=dynamic, step=16), path, 20)
        self.run = run(path)
        self.file = onnx.shape_inference.infer_shapes(onnx.load(path))
        self.nodes = collections.Counter(node.op_type for node in self.file.graph.node)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)[0]

    @property
    def rank(self) -> int:
        """Of the tensor with the most dimensions."""
        return max(len(x.type.tensor_type.shape.dim) for x in self.file.graph.value_info)

    @property
    def doubles(self) -> int:
        """How many tensors are float64, constants among them."""
        found = sum(x.type.tensor_type.elem_type == DOUBLE for x in self.file.graph.value_info)
        return found + sum(x.data_type == DOUBLE for x in self.file.graph.initializer)


@pytest.mark.parametrize(
    "depth", [2, pytest.param(12, marks=pytest.mark.slow)], ids=["two blocks", "whole"]
)
def test_the_nodes_of_deit_tiny(depth: int, tmp_path: Path) -> None:
    model = create_model("sima_deit_tiny_patch16_224", act="relu", depth=depth)
    x = images(224, 224, number=3)
    model = alive(model, x[:1])
    written = Written(softless.edge(model, form="edge"), x, tmp_path / "deit.onnx")
    assert apart(written, model, x) <= BAR
    assert not ABSENT & set(written.nodes)
    assert written.nodes["Slice"] + written.nodes["Gather"] == 1  # the class token
    assert written.rank <= 4
    assert written.doubles == 0
    assert written.nodes["Relu"] == depth
    assert written.nodes["Div"] == 2 * depth  # q and k by their norms
    # q, k, v, proj and both of the MLP, both of the attention; the head is a Gemm
    assert written.nodes["MatMul"] == 8 * depth
    assert written.nodes["LayerNormalization"] == 2 * depth + 1


def test_the_plain_model_holds_what_the_form_does_not(tmp_path: Path) -> None:
    """The control of the test above."""
    model = create_model("sima_deit_tiny_patch16_224", act="relu", depth=2).eval()
    x = images(224, 224, number=2)
    written = Written(softless.edge(model, form="plain"), x, tmp_path / "deit.onnx")
    assert {"Resize", "Squeeze"} <= set(written.nodes)
    assert written.rank > 4


@pytest.mark.parametrize("op", sorted(CORES))
def test_a_file_answers_for_any_number_of_images(op: str, tmp_path: Path) -> None:
    model = alive(vit(op), images())
    module = softless.edge(model, form="edge", images=images())
    written = Written(module, images(), tmp_path / "model.onnx")
    assert apart(written, model, images(number=5)) <= BAR
    assert written.rank <= 4
    assert written.doubles == 0
    assert written.nodes["Gelu"] == (4 if op in {"soft", "softnorm"} else 2), "GELU stays GELU"
    assert not {"Resize", "Squeeze", "If", "Loop", "Where"} & set(written.nodes)


@pytest.mark.parametrize("op", ["seqnorm", "performer", "sima"])
def test_a_plain_graph_of_any_size_holds_no_float64(op: str, tmp_path: Path) -> None:
    model = alive(vit(op), images())
    written = Written(softless.edge(model, form="plain"), images(), tmp_path / "m.onnx", "both")
    assert written.doubles == 0
    for size in ((64, 96), (32, 160), (256, 48)):
        assert apart(written, model, images(*size)) <= BAR, size


def test_a_plain_graph_of_large_means() -> None:
    """A mean is a hundred deviations: plain sums of squares would lose three digits."""
    model = alive(vit("seqnorm"), images())
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.bias.add_(100)
    answer = recorded(Graph(softless.edge(model, form="plain"), images())).module()(images())
    exact = apart(lambda _: answer, model.double(), images().double())  # type: ignore[arg-type]
    assert exact <= BAR


def test_one_image_at_a_time_expands_nothing() -> None:
    """Products of three dimensions, as ExecuTorch takes them without copies."""
    model = alive(vit("sima", act="relu"), images())
    program = recorded(Graph(softless.edge(model, batch=1), images(number=1)))
    program = program.run_decompositions()
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    names = {node.target.name() for node in nodes if hasattr(node.target, "name")}
    assert not {name for name in names if "expand" in name}
    heads = [node for node in nodes if node.target is torch.ops.aten.bmm.default]
    assert len(heads) == 4
    tensors = [x for node in nodes for x in tree_leaves(node.meta["val"])]
    assert max(x.ndim for x in tensors if isinstance(x, Tensor)) <= 4


@pytest.mark.export
@pytest.mark.filterwarnings("ignore:This API is experimental")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("op", ["sima", "softmax"])
def test_executorch_delegates_whole_blocks(op: str) -> None:
    """Five blocks: at most 22 calls of a delegate, at most 33 operators outside."""
    partitioner = pytest.importorskip("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    model = alive(vit(op, depth=5, embed_dim=96, act="relu"), images(number=1))
    program = recorded(Graph(softless.edge(model, batch=1, form="edge"), images(number=1)))
    lowered = to_edge_transform_and_lower(program, partitioner=[partitioner.XnnpackPartitioner()])
    targets = [
        str(node.target)
        for node in lowered.exported_program().graph.nodes
        if node.op == "call_function" and "getitem" not in str(node.target)
    ]
    delegates = sum("executorch_call_delegate" in target for target in targets)
    assert delegates <= 22
    assert len(targets) - delegates <= 33
    loaded = Runtime.get().load_program(lowered.to_executorch().buffer)
    answer = loaded.load_method("forward").execute([images(number=1)])[0]
    assert apart(lambda _: answer, model, images(number=1)) <= BAR  # type: ignore[arg-type]
