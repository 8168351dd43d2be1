"""Every operator of every format has a class: by the lists of the tools themselves, where they are
installed, and by the rules of the formats.
"""

import dataclasses
import importlib
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

import softless
from softless.measure.exps import KINDS
from softless.measure.findings import KIND_NAMES
from softless.measure.graphs import aten, coreml, onnx_operators, openvino, tflite, xnnpack
from softless.measure.graphs.classes import Operators, operators
from tests.measure import written

TABLES = {
    **{f"onnx {name}": table for name, table in onnx_operators.DOMAINS.items()},
    "openvino": openvino.OPERATORS,
    "tflite": tflite.OPERATORS,
    "xnnpack": xnnpack.OPERATORS,
    "coreml": coreml.OPERATORS,
}


def missing(table: Operators, names: Iterable[str]) -> set[str]:
    """The operators of a list that a table says nothing of."""
    return set(names) - table.known


def _schemas() -> dict[str, set[str]]:
    """Operators of ONNX and of ONNX Runtime by their libraries."""
    import onnx.defs
    from onnxruntime.capi import onnxruntime_pybind11_state as runtime

    names: dict[str, set[str]] = {}
    for schema in [*onnx.defs.get_all_schemas(), *runtime.get_all_operator_schema()]:
        names.setdefault(schema.domain, set()).add(schema.name)
    return names


def test_every_operator_of_onnx_and_its_runtime_has_a_class() -> None:
    names = _schemas()
    assert len(names[""]) > 200
    assert len(names["com.microsoft"]) > 100
    assert {
        f"{library}::{name}"
        for library, listed in names.items()
        for name in (missing(onnx_operators.DOMAINS[library], listed))
    } == set()


def _core() -> set[str]:
    """Names of Core ATen's operators, which every exporter lowers to."""
    names = set()
    for schema in torch._C._jit_get_all_schemas():
        library, _, name = schema.name.partition("::")
        if library == "aten" and name != "has_torch_function":
            packet = getattr(torch.ops.aten, name, None)
            overloads = packet.overloads() if packet is not None else ()
            if any(torch.Tag.core in getattr(packet, each).tags for each in overloads):
                names.add(name)
    return names


def test_every_operator_of_core_aten_has_a_class() -> None:
    names = _core()
    assert len(names) > 150
    assert {name for name in names if not aten.known(name)} == set()


def test_every_kernel_of_ours_is_known() -> None:
    names = {
        schema.name.removeprefix("softless::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("softless::") and not schema.name.endswith("_backward")
    }
    assert names == aten.OURS


def test_what_core_aten_has_no_row_for_is_opaque() -> None:
    x = (torch.zeros(2, 3),)
    assert aten.kind_of("aten", "lgamma", x) == ("opaque", 1)
    assert aten.kind_of("aten", "randn", x) == ("opaque", 1)
    assert aten.kind_of("llama", "sdpa_with_kv_cache", x) == ("opaque", 1)
    assert aten.kind_of("softless", "unheard_of", x) == ("opaque", 1)
    assert aten.kind_of("quantized_decomposed", "quantize_per_tensor", x) is None
    assert aten.kind_of("aten", "relu_", x) is None
    assert aten.kind_of("aten", "permute_copy", x) is None
    assert aten.kind_of("aten", "sigmoid_", x) == ("sigmoid", 6)
    assert aten.kind_of("aten", "linalg_vector_norm", (*x, 3.0)) == ("power", 6)
    assert aten.kind_of("aten", "linalg_vector_norm", (*x, 1)) is None


def test_every_number_of_tflite_and_xnnpack_has_a_name_and_a_class() -> None:
    assert len(tflite.NAMES) == len(set(tflite.NAMES)) == 208
    assert tflite.NAMES[150] == "GELU"  # as in the schema
    assert tflite.NAMES[206] == "STABLEHLO_COMPOSITE"
    assert missing(tflite.OPERATORS, tflite.NAMES) == set()
    assert tflite.OPERATORS.known <= set(tflite.NAMES)
    assert missing(xnnpack.OPERATORS, xnnpack.NAMES) == set()
    assert xnnpack.OPERATORS.known <= set(xnnpack.NAMES)


@pytest.mark.export
def test_every_node_of_the_installed_xnnpack_has_its_number() -> None:
    package = Path(next(iter(pytest.importorskip("executorch").__path__)))
    schema = (package / "backends/xnnpack/serialization/schema.fbs").read_text(encoding="utf-8")
    union = re.sub("//.*", "", schema.split("union XNodeUnion {")[1].split("}")[0])
    names = [entry.split(":")[0].strip() for entry in union.split(",")]
    assert tuple(name.removeprefix("XNN") for name in names if name) == xnnpack.NAMES


@pytest.mark.export
def test_every_type_of_the_installed_openvino_has_a_class() -> None:
    pytest.importorskip("openvino")
    functions: set[str] = set()
    for number in range(1, 40):
        try:
            module = importlib.import_module(f"openvino.opset{number}")
        except ImportError:
            continue
        functions |= {name for name in vars(module) if not name.startswith("_")}
    assert len(functions) > 150
    # names of Python's functions -> names that a file has
    other = {"absolute": "abs", "ceil": "ceiling", "constant": "const", "if_op": "if"}
    known = {name.lower() for name in openvino.OPERATORS.known}
    names = {other.get(name, name).replace("_", "") for name in functions - {"ops"}}
    assert names - known == set()


@pytest.mark.export
def test_every_operation_of_the_installed_core_ml_has_a_class() -> None:
    pytest.importorskip("coremltools.converters.mil")
    registry = importlib.import_module("coremltools.converters.mil.mil.ops.registry")
    names = set(registry.SSAOpRegistry.core_ops)
    assert len(names) > 150
    assert missing(coreml.OPERATORS, names) == set()


@pytest.mark.parametrize("name", TABLES)
def test_kinds_are_those_of_the_counters(name: str) -> None:
    assert set(TABLES[name].kinds.values()) <= KIND_NAMES
    assert {kind for kind, _ in KINDS.values()} | {"opaque"} == KIND_NAMES
    with pytest.raises(AssertionError):
        operators(plain="", gleu="Gelu")
    with pytest.raises(AssertionError):
        operators(plain="Gelu", gelu="Gelu")


ROWS = {
    ".onnx": (onnx_operators, "ONNX", {"gelu": "Gelu", "exp": "Exp", "softmax": "Softmax"}),
    ".xml": (openvino, "OPERATORS", {"gelu": "Gelu", "exp": "Exp", "softmax": "SoftMax"}),
    ".tflite": (tflite, "OPERATORS", {"gelu": "GELU", "exp": "EXP", "softmax": "SOFTMAX"}),
    ".pte": (xnnpack, "OPERATORS", {"gelu": "Gelu", "exp": "Exp", "softmax": "Softmax"}),
    ".mlpackage": (coreml, "OPERATORS", {name: name for name in written.PLANTED}),
}


@pytest.mark.parametrize("ending", ROWS)
@pytest.mark.parametrize("planted", written.PLANTED)
def test_a_row_that_is_taken_out_is_missed_and_its_operator_is_opaque(
    ending: str, planted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, attribute, names = ROWS[ending]
    table: Operators = getattr(module, attribute)
    kinds = {name: kind for name, kind in table.kinds.items() if name != names[planted]}
    short = dataclasses.replace(table, kinds=kinds)
    assert missing(short, table.known) == {names[planted]}
    if ending == ".onnx":
        monkeypatch.setitem(onnx_operators.DOMAINS, "", short)
    else:
        monkeypatch.setattr(module, attribute, short)
    found = softless.audit(written.WRITERS[ending](tmp_path, planted))
    assert found.kinds.keys() == {"opaque"}
    assert not found.exp_free
    assert names[planted] in str(found)


@pytest.mark.parametrize("planted", written.PLANTED)
def test_a_row_of_the_counters_that_is_taken_out_is_missed(
    planted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written.write_pt2(tmp_path, planted)
    monkeypatch.setattr(aten, "KINDS", {k: v for k, v in KINDS.items() if v[0] != planted})
    assert {name for name in _core() if not aten.known(name)} != set()
    assert softless.audit(path).kinds == {"opaque": 1}
