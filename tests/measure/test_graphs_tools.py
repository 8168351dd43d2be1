"""Files that the tools themselves write: what is planted is found in each, and nothing where nothing
is. Run where the tools are (`make test-export`); each is skipped without its own.
"""

import importlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import softless
from tests.measure.written import SHAPE

pytestmark = pytest.mark.export


class Act(nn.Module):
    """A linear layer and a function behind it."""

    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.call = nn.Linear(8, 8), call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.fc(x))


CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(-1),
    "gelu": nn.functional.gelu,
    "exp": torch.exp,
}


class Net(nn.Module):
    """Norm, three layers with a function each, a mean; with ReLU alone where it is not planted."""

    def __init__(self, *, planted: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.parts = nn.ModuleDict({
            name: Act(call if planted else torch.relu) for name, call in CALLS.items()
        })
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        for part in self.parts.values():
            x = part(x) / 3
        return self.head(x.mean(1))


def _onnx(model: nn.Module, folder: Path) -> Path:
    program = torch.onnx.export(
        model, (torch.zeros(SHAPE),), dynamo=True, opset_version=20, verbose=False
    )
    assert program is not None
    program.save(str(folder / "model.onnx"))
    return folder / "model.onnx"


def _openvino(model: nn.Module, folder: Path) -> Path:
    openvino = pytest.importorskip("openvino")
    ported = openvino.convert_model(model, example_input=torch.zeros(SHAPE), input=[SHAPE])
    openvino.save_model(ported, folder / "model.xml")
    return folder / "model.xml"


def _openvino_of_onnx(model: nn.Module, folder: Path) -> Path:
    openvino = pytest.importorskip("openvino")
    openvino.save_model(openvino.convert_model(str(_onnx(model, folder))), folder / "model.xml")
    return folder / "model.xml"


def _executorch(model: nn.Module, folder: Path, *, delegated: bool) -> Path:
    exir = pytest.importorskip("executorch.exir")
    name = "executorch.backends.xnnpack.partition.xnnpack_partitioner"
    partitioner = importlib.import_module(name).XnnpackPartitioner
    program = torch.export.export(model, (torch.zeros(SHAPE),))
    lowered = exir.to_edge_transform_and_lower(
        program, partitioner=[partitioner()] if delegated else []
    )
    (folder / "model.pte").write_bytes(lowered.to_executorch().buffer)
    return folder / "model.pte"


def _delegated(model: nn.Module, folder: Path) -> Path:
    return _executorch(model, folder, delegated=True)


def _by_kernels(model: nn.Module, folder: Path) -> Path:
    return _executorch(model, folder, delegated=False)


def _core_ml(model: nn.Module, folder: Path) -> Path:
    tools = pytest.importorskip("coremltools")
    program = torch.export.export(model, (torch.zeros(SHAPE),)).run_decompositions({})
    ported = tools.convert(program, minimum_deployment_target=tools.target.iOS18)
    ported.save(str(folder / "model.mlpackage"))
    return folder / "model.mlpackage"


def _pt2(model: nn.Module, folder: Path) -> Path:
    torch.export.save(torch.export.export(model, (torch.zeros(SHAPE),)), folder / "model.pt2")
    return folder / "model.pt2"


TOOLS = (_pt2, _onnx, _openvino, _openvino_of_onnx, _delegated, _by_kernels, _core_ml)
NAMED = (_pt2, _onnx, _openvino)  # whose files hold the paths of modules


@pytest.mark.parametrize("write", TOOLS, ids=lambda write: write.__name__.strip("_"))
def test_what_a_tool_writes_is_read(write: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tools warn of each other's versions
        planted = softless.audit(write(Net(planted=True).eval(), tmp_path))
        (tmp_path / "free").mkdir()
        free = softless.audit(write(Net(planted=False).eval(), tmp_path / "free"))
    assert planted.kinds == dict.fromkeys(CALLS, 40)
    assert not planted.exp_free
    assert planted.per_grid == {}
    assert free.exp_free
    assert free.findings == ()
    assert free.roots == planted.roots == 1
    if write in NAMED:
        assert {(each.kind, each.where) for each in planted.findings} == {
            (name, f"parts.{name}") for name in CALLS
        }
    elif write is _delegated:
        assert {each.where.split()[0] for each in planted.findings} == {"delegate"}
    else:
        assert all(each.where for each in planted.findings)
