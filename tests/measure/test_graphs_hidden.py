"""What files of the other formats can hide a function in, and what is none."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import softless
from softless.measure import Audit
from softless.measure.graphs import xnnpack
from tests.measure import written
from tests.measure.written import PORTS, SHAPE, Numbers, flatbuffer, message, mil_operation

# -- OpenVINO


def read_xml(folder: Path, *layers: tuple[str, str, str], weights: bytes = b"") -> Audit:
    path = folder / "model.xml"
    path.write_text(written.xml([("Parameter", "x", PORTS), *layers]), encoding="utf-8")
    path.with_suffix(".bin").write_bytes(weights)
    return softless.audit(path)


def power(kind: str, exponent: float, folder: Path, *, offset: int = 4) -> Audit:
    size = struct.calcsize(kind)
    name = {"f": "f32", "e": "f16", "q": "i64"}[kind]
    held = f'<data element_type="{name}" shape="" offset="{offset}" size="{size}"/>'
    text = written.xml([("Parameter", "x", PORTS), ("Power", "p", PORTS)])
    const = written.LAYER.format(id=7, type="Const", name="c", rest=held)
    convert = written.LAYER.format(id=8, type="Convert", name="v", rest="")
    text = text.replace("</layers>", f"{const}{convert}</layers>").replace(
        "</edges>",
        '<edge from-layer="7" from-port="0" to-layer="8" to-port="0"/>'
        '<edge from-layer="8" from-port="1" to-layer="1" to-port="1"/></edges>',
    )
    path = folder / "model.xml"
    path.write_text(text, encoding="utf-8")
    weights = path.with_suffix(".bin")
    weights.unlink(missing_ok=True)
    weights.write_bytes(
        bytes(4) + struct.pack(f"<{kind}", int(exponent) if kind == "q" else exponent)
    )
    return softless.audit(path)


def test_powers_of_openvino_by_their_constant(tmp_path: Path) -> None:
    for kind, exponent in (("f", 2.0), ("e", 0.5), ("q", 3)):
        assert power(kind, exponent, tmp_path).exp_free
    assert power("f", 0.3, tmp_path).kinds == {"power": 40}
    assert power("f", 2.0, tmp_path, offset=10**6).kinds == {"power": 40}  # behind its end
    (tmp_path / "model.bin").unlink()
    assert softless.audit(tmp_path / "model.xml").kinds == {"power": 40}
    (tmp_path / "model.bin").symlink_to("/etc/hostname")
    with pytest.raises(softless.DataError, match="is a link"):
        softless.audit(tmp_path / "model.xml")


def test_bodies_and_versions_of_openvino(tmp_path: Path) -> None:
    inner = written.xml([("Parameter", "i", PORTS), ("Exp", "deep", PORTS)])
    body = inner.partition("?>")[2].replace("net", "body")
    found = read_xml(tmp_path, ("TensorIterator", "loop", PORTS + body))
    assert found.kinds == {"exp": 40}
    assert found.findings[0].where == "loop/deep"
    for kind in ("then_body", "else_body"):
        branch = inner.partition("?>")[2].replace("net", kind)
        assert read_xml(tmp_path, ("If", "if", PORTS + branch)).kinds == {"exp": 40}
    assert read_xml(tmp_path, ("HSwish", "h", PORTS), ("MVN", "m", PORTS)).exp_free
    assert read_xml(tmp_path, ("MVN", "m", PORTS)).roots == 1
    # an extension may have any name
    path = tmp_path / "model.xml"
    path.write_text(path.read_text().replace("opset7", "extension"), encoding="utf-8")
    assert softless.audit(path).kinds.keys() == {"opaque"}
    assert read_xml(tmp_path, ("NoSuchType", "n", PORTS)).kinds == {"opaque": 40}
    cells = PORTS + '<data activations="relu"/>'
    assert read_xml(tmp_path, ("RNNSequence", "r", cells)).exp_free
    assert read_xml(tmp_path, ("RNNSequence", "r", PORTS)).kinds == {"tanh": 1}


def test_fused_attention_of_openvino_counts_its_pairs(tmp_path: Path) -> None:
    port = '<port id="{}"><dim>2</dim><dim>3</dim><dim>{}</dim><dim>8</dim></port>'
    ports = f"<input>{port.format(0, 5)}{port.format(1, 7)}</input>"
    assert read_xml(tmp_path, ("ScaledDotProductAttention", "a", ports)).kinds == {"softmax": 210}


def test_what_openvino_makes_of_constants_stands_apart(tmp_path: Path) -> None:
    text = written.xml([("Const", "c", PORTS), ("Sin", "table", PORTS), ("Result", "y", "")])
    (tmp_path / "model.xml").write_text(text, encoding="utf-8")
    found = softless.audit(tmp_path / "model.xml")
    assert found.exp_free
    assert found.per_grid == {"trigonometric": 40}


# -- TensorFlow Lite


@pytest.mark.parametrize(
    ("function", "kinds"), [(0, {}), (1, {}), (4, {"tanh": 40}), (9, {"opaque": 40})]
)
def test_a_function_behind_an_operator_of_tflite(
    function: int, kinds: dict[str, int], tmp_path: Path
) -> None:
    options = {0: ("b", function)}
    assert softless.audit(written.write_tflite(tmp_path, "ADD", options=options)).kinds == kinds


def test_operators_of_tflite_that_cannot_be_looked_into(tmp_path: Path) -> None:
    for name in ("CUSTOM", "DELEGATE", "STABLEHLO_CUSTOM_CALL"):
        found = softless.audit(written.write_tflite(tmp_path, name))
        assert found.kinds.keys() == {"opaque"}
        assert name in str(found)
    assert softless.audit(written.write_tflite(tmp_path, "HARD_SWISH")).exp_free
    newer = {0: ("I", 3), 1: [{0: ("b", 127), 3: ("i", 999)}], 2: [_graph([0], [1])], 4: [{}]}
    (tmp_path / "model.tflite").write_bytes(flatbuffer(newer, b"TFL3"))
    found = softless.audit(tmp_path / "model.tflite")
    assert found.kinds == {"opaque": 40}
    assert "operator 999" in str(found)


def _graph(inputs: Sequence[int], outputs: Sequence[int], *, own: Sequence[int] = (0,)) -> Any:
    tensors = [{0: Numbers("i", SHAPE), 2: ("I", 0), 3: name} for name in ("x", "y")]
    constant = {0: Numbers("i", []), 1: ("b", 0), 2: ("I", 1), 3: "p"}
    operator = written.tflite_operator(0, inputs, outputs)
    return {0: [*tensors, constant], 1: Numbers("i", own), 3: [operator], 4: "body"}


def test_powers_constants_and_graphs_of_tflite(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"

    def kinds(code: int, graphs: list[Any], exponent: float = 2.0) -> Audit:
        buffers = [{}, {0: struct.pack("<f", exponent)}]
        codes = [{0: ("b", min(code, 127)), 3: ("i", code)}]
        path.write_bytes(flatbuffer({0: ("I", 3), 1: codes, 2: graphs, 4: buffers}, b"TFL3"))
        return softless.audit(path)

    assert kinds(78, [_graph([0, 2], [1])]).exp_free
    assert kinds(78, [_graph([0, 2], [1])], 0.3).kinds == {"power": 40}
    assert kinds(78, [_graph([0, 0], [1])]).kinds == {"power": 40}
    assert kinds(66, [_graph([2], [1])]).per_grid == {"trigonometric": 40}
    both = kinds(47, [_graph([0], [1]), _graph([0], [1])])
    assert {each.where for each in both.findings} == {"y", "body/y"}


# -- ExecuTorch


def test_backends_and_kernels_of_executorch(tmp_path: Path) -> None:
    path = tmp_path / "model.pte"

    def found(planted: str = "relu", **more: str) -> Audit:
        path.write_bytes(written.pte(planted, **more))
        return softless.audit(path)

    for backend in ("CoreMLBackend", "VulkanBackend", "QnnBackend"):
        hidden = found(backend=backend)
        assert hidden.kinds == {"opaque": 1}
        assert backend in str(hidden)
    assert found(kernel="aten::gelu").kinds == {"gelu": 40}
    assert found(kernel="aten::exp").findings[0].where == "instruction 0"
    assert found(kernel="aten::lgamma").kinds == {"opaque": 1}
    assert found(kernel="own::anything").kinds == {"opaque": 1}
    assert found(kernel="aten::pow").kinds == {"power": 40}
    assert found("relu").exp_free
    for planted in ("Sigmoid", "Tanh", "Sin", "Log", "ELU"):
        assert found(planted).kinds.values()
    assert found("ScaledDotProductAttention").kinds == {"softmax": 25}
    assert found("Hardswish").exp_free


def test_a_part_of_xnnpack_in_another_form_is_opaque(tmp_path: Path, monkeypatch: Any) -> None:
    path = written.write_pte(tmp_path, "relu")
    path.write_bytes(path.read_bytes().replace(b"XN01", b"XN77"))
    assert softless.audit(path).kinds == {"opaque": 1}
    path.write_bytes(written.pte("relu"))
    monkeypatch.setattr(xnnpack, "NAMES", xnnpack.NAMES[:3])  # a node newer than the table
    assert softless.audit(path).kinds == {"opaque": 40}


# -- Core ML


def test_powers_cells_and_operations_of_core_ml(tmp_path: Path) -> None:
    folders = iter(range(100))

    def found(*operations: bytes) -> Audit:
        folder = tmp_path / str(next(folders))
        folder.mkdir()
        return softless.audit(written.mlpackage(folder, *operations))

    def held(number: float, field: int = 1) -> bytes:
        packed = {1: struct.pack("<f", number), 7: struct.pack("<e", number)}[field]
        tensor = message((field, message((1, packed))))
        return message((2, message()), (3, message((1, tensor))))

    for field in (1, 7):
        for number, free in ((2.0, True), (0.5, True), (0.3, False)):
            inline = message((1, "y"), (2, message((1, message((2, held(number, field)))))))
            assert found(mil_operation("pow", "x", "z", (2, inline))).exp_free == free
            constant = message(
                (1, "const"),
                (3, written.mil_value("p")),
                (5, message((1, "val"), (2, held(number, field)))),
            )
            named = message((1, "y"), (2, message((1, message((1, "p"))))))
            assert found(constant, mil_operation("pow", "x", "z", (2, named))).exp_free == free
    assert found(mil_operation("layer_norm", "x", "z")).roots == 1
    assert found(mil_operation("custom_layer", "x", "z")).kinds == {"opaque": 40}
    assert found(mil_operation("lstm", "x", "z")).kinds == {"sigmoid": 1}
    body = message((3, mil_operation("exp", "x", "deep")))
    inside = found(mil_operation("cond", "x", "z", (4, body)))
    assert inside.kinds == {"exp": 40}
    assert inside.findings[0].where == "z/deep"
    constant = message((1, "const"), (3, written.mil_value("c")))
    assert found(constant, mil_operation("cos", "c", "z")).per_grid == {"trigonometric": 40}


def test_an_older_kind_of_core_ml_model_is_one_sentence(tmp_path: Path) -> None:
    package = written.mlpackage(tmp_path)
    model = package / "Data/com.apple.CoreML/model.mlmodel"
    model.write_bytes(message((1, 4), (500, message((1, "layers")))))
    with pytest.raises(softless.DataError, match="mlprogram"):
        softless.audit(package)
    (package / "Manifest.json").write_text("[" * 100_000)
    with pytest.raises(softless.DataError, match="names no model"):
        softless.audit(package)
    (package / "Manifest.json").unlink()
    with pytest.raises(softless.DataError, match="holds no Manifest"):
        softless.audit(package)
