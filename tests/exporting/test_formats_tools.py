"""OpenVINO, ExecuTorch and Core ML: small models of every host, the files themselves, and files that
are damaged. `make test-export` has an environment with these tools.
"""

import getpass
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

import softless
from softless.errors import DataError, UsageError
from softless.exporting.formats import coreml, executorch, openvino
from softless.exporting.formats.table import FORMATS
from softless.exporting.graph import Graph
from softless.exporting.silence import muted
from tests.exporting.written import living, reference, tools, written
from tests.models.lively import zeroed

pytestmark = pytest.mark.export

TOOLS = ("openvino", "executorch", "coreml")
RUNNING = ("openvino", "executorch")
NEAR = 1e-5  # of the largest logit, in float32
# a small model of each host, and an operator of each family with a form of its own
MODELS: dict[str, dict[str, Any]] = {
    "sima_deit_tiny_patch16_224": {"depth": 2, "embed_dim": 32, "num_heads": 2, "act": "relu"},
    "seqnorm_deit_tiny_patch16_224": {"depth": 2, "embed_dim": 32, "num_heads": 2},
    "sima_xcit_tiny_12_p16_224": {"depth": 1, "embed_dim": 32, "num_heads": 2},
    "cvt_13_224": {"depths": (1, 1, 1)},
    "soft_tiny_224": {"depths": (1, 1, 1, 1)},
}
SIZE = (64, 96)


@pytest.fixture(scope="module")
def alive():
    """A ViT with weights on which every branch counts."""
    return living("sima_deit_tiny_patch16_224", SIZE, **MODELS["sima_deit_tiny_patch16_224"])


@pytest.fixture(scope="module", params=TOOLS)
def exported(request, alive, tmp_path_factory):
    """The folder of its file in a format, and the report."""
    tools(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    return folder, softless.export(alive, request.param, folder, size=SIZE)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tool", RUNNING)
def test_files_answer_as_the_model(tmp_path, tool, name):
    """One by one and in a batch of three; without its attention the model answers otherwise."""
    tools(tool)
    model = living(name, SIZE, num_classes=10, **MODELS[name])
    images = torch.randn(3, 3, *SIZE)
    file = written(model, tool, tmp_path, SIZE, images=images)
    assert file.module.form == "edge", file.module.why
    assert file.apart(reference(model, SIZE, images), images) <= NEAR
    assert file.apart(reference(zeroed(model), SIZE, images), images) > 100 * NEAR


@pytest.mark.parametrize("name", MODELS)
def test_core_ml_is_converted(tmp_path, name):
    tools("coreml")
    model = living(name, SIZE, num_classes=10, **MODELS[name])
    file = written(model, "coreml", tmp_path, SIZE, images=torch.randn(2, 3, *SIZE))
    said = coreml.specification(file.path).description
    assert ([each.name for each in said.input], [each.name for each in said.output]) == (
        ["image"],
        ["logits"],
    )
    assert sum(file.shape.nodes.values()) > 20
    assert file.bytes > 4 * sum(parameter.numel() for parameter in file.module.parameters())


@pytest.mark.parametrize("name", ["sima_deit_tiny_patch16_224", "sima_xcit_tiny_12_p16_224"])
def test_openvino_takes_any_batch_and_size(tmp_path, name):
    """The position table of a ViT shrinks and grows with averaging, as torch does it."""
    tools("openvino")
    model = living(name, SIZE, num_classes=10, **MODELS[name])
    file = written(model, "openvino", tmp_path, SIZE, dynamic="both")
    for shape in ((1, 3, 64, 64), (3, 3, 32, 176), (2, 3, 256, 96), (1, 3, 512, 320)):
        assert file.apart(model, torch.randn(shape)) <= NEAR, shape


@pytest.mark.parametrize("dynamic", ["batch", "size"])
def test_openvino_leaves_one_of_both_free(tmp_path, alive, dynamic):
    tools("openvino")
    report = softless.export(alive, "openvino", tmp_path, size=SIZE, dynamic=dynamic)
    assert report.ok, str(report)
    model = softless.load_exported(report.path)
    images = torch.randn(3, 3, *((48, 160) if dynamic == "size" else SIZE))
    with torch.no_grad():
        torch.testing.assert_close(model(images), alive(images), rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError, match=r"an image of 48 x 90 pixels"):
        model(torch.zeros(1, 3, 48, 90))


def test_a_model_of_one_channel_and_other_patches(tmp_path):
    for tool in RUNNING:
        tools(tool)
        torch.manual_seed(0)
        small: dict[str, Any] = {"depth": 1, "embed_dim": 32, "num_heads": 2, "in_chans": 1}
        small |= {"patch_size": 8}
        model: Any = softless.create_model("sima_deit_tiny_patch16_224", **small)
        model.pretrained_cfg |= {"mean": (0.5,), "std": (0.5,), "input_size": (1, 40, 72)}
        report = softless.export(model, tool, tmp_path / tool, size=(40, 72))
        assert report.ok, str(report)
        assert softless.load_exported(report.path)(torch.zeros(3, 1, 40, 72)).shape == (3, 1000)


def test_the_report_of_a_tool(exported, alive):
    folder, report = exported
    assert report.ok, str(report)
    (file,) = report.files
    record = FORMATS[file.format]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        part.name for part in record.parts(file.path)
    )
    assert file.bytes > 4 * sum(parameter.numel() for parameter in alive.parameters())
    assert file.audit.exp_free
    assert (file.parity is None) == (record.open is None)
    assert file.shape.rank <= 4


def test_a_file_says_what_it_is(exported):
    _, report = exported
    record = FORMATS[report.files[0].format]
    said = json.loads(record.text_of(report.path))
    assert said["size"] == list(SIZE)
    assert said["audit"]["exp_free"] is True


def test_nothing_of_the_machine_and_the_day_is_in_a_file(exported):
    """No path, user, host or date."""
    folder, _ = exported
    words = {str(folder), str(Path.home()), tempfile.gettempdir() + "/", sys.prefix, ".export-"}
    words |= {str(Path(softless.__file__).parent), "site-packages"}
    words |= {name for name in (socket.gethostname(), getpass.getuser()) if len(name) > 4}
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert [word for word in words if word.encode() in content] == [], path
            assert re.findall(rb"20\d\d-[01]\d-[0-3]\d", content) == [], path
            assert path.stat().st_mode & 0o444 == 0o444, path


def test_the_same_model_is_the_same_file(exported, alive, tmp_path):
    """So no identifier in it is drawn."""
    folder, report = exported
    softless.export(alive, report.files[0].format, tmp_path, size=SIZE)
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert len(files) >= 2
    for path in files:
        assert (tmp_path / path).read_bytes() == (folder / path).read_bytes(), path


@pytest.mark.parametrize("tool", TOOLS)
def test_tools_are_silent(tmp_path, tool):
    """In a process of its own, where a tool is imported for the first time; and none of them tells
    its makers of the use.
    """
    tools(tool)
    code = (
        "import sys, torch, softless\n"
        "from softless.exporting.formats.table import FORMATS\n"
        "torch.manual_seed(0)\n"
        "def refused(*_): raise AssertionError('it sends')\n"
        "if sys.argv[1] == 'openvino':\n"
        "    from openvino_telemetry.backend.backend_ga4 import GA4Backend\n"
        "    GA4Backend.send = refused\n"
        "model = softless.create_model('sima_deit_tiny_patch16_224', depth=1, embed_dim=32,\n"
        "                              num_heads=2)\n"
        "report = softless.export(model, sys.argv[1], 'out', size=32)\n"
        "assert report.ok, report\n"
        "FORMATS[sys.argv[1]].shape(report.path)\n"
        "print('end')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tool],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


# Files that are damaged


@pytest.fixture
def copied(exported, tmp_path):
    """The file again, in a folder of its own."""
    folder, report = exported
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy" / report.path.name


def only(tool):
    """A test of the files of one tool."""
    return pytest.mark.parametrize("exported", [tool], indirect=True)


def refused(path):
    """The sentence with which a file is refused."""
    with pytest.raises(DataError) as caught:
        softless.load_exported(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return str(caught.value)


def cut(path, share=0.9):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


@only("openvino")
def test_a_graph_without_its_weights(copied):
    openvino.weights_of(copied).unlink()
    assert "model.bin, which is not beside it" in refused(copied)


@only("openvino")
def test_weights_that_are_cut_or_of_another_graph(copied):
    whole = openvino.weights_of(copied).read_bytes()
    cut(openvino.weights_of(copied))
    assert "damaged, or belongs to another graph" in refused(copied)
    openvino.weights_of(copied).write_bytes(whole[4:] + whole[:4])
    assert "damaged, or belongs to another graph" in refused(copied)


@only("openvino")
def test_a_graph_that_is_cut(copied):
    cut(copied)
    assert "is no graph of OpenVINO" in refused(copied)


@only("openvino")
def test_a_graph_that_defines_entities(copied):
    text = copied.read_text().partition("?>")[2]
    copied.write_text(f'<!DOCTYPE net [<!ENTITY a "aaaa">]>{text}')
    assert "DOCTYPE" in refused(copied)


@only("openvino")
def test_a_graph_that_names_an_unknown_layer(copied):
    copied.write_text(copied.read_text().replace('type="MatMul"', 'type="MatMil"'))
    assert "OpenVINO cannot load" in refused(copied)


@only("executorch")
def test_a_program_that_is_cut(copied):
    cut(copied)
    assert "model.pte is damaged, or model.pte.json belongs to another program" in refused(copied)


@only("executorch")
def test_the_words_of_another_program(copied):
    copied.write_bytes(copied.read_bytes() + b"\0")
    assert "belongs to another program" in refused(copied)


@pytest.mark.parametrize("words", ["", "{", "[]", "{}", '{"softless": 1, "sha256": "0"}'])
@only("executorch")
def test_words_that_are_damaged(copied, words):
    executorch.beside(copied).write_text(words)
    assert "model.pte.json" in refused(copied)


@only("executorch")
def test_a_program_without_words(copied):
    executorch.beside(copied).unlink()
    assert "says nothing of its classes" in refused(copied)


@pytest.mark.parametrize("layout", [b"ET11", b"XXXX"])
@only("executorch")
def test_a_program_of_another_layout(copied, layout):
    """With words that are its own."""
    text = executorch.text_of(copied)
    content = copied.read_bytes()
    copied.write_bytes(content[:4] + layout + content[8:])
    executorch.label(copied, text)
    assert f"a program of layout '{layout.decode()}'" in refused(copied)


@only("executorch")
def test_a_program_that_is_cut_and_labelled(copied):
    """What the runtime itself says of it."""
    text = executorch.text_of(copied)
    cut(copied, 0.5)
    executorch.label(copied, text)
    assert "ExecuTorch cannot load" in refused(copied)


@only("coreml")
def test_a_package_runs_elsewhere(copied):
    with pytest.raises(UsageError, match="written here and runs elsewhere"):
        softless.load_exported(copied)


@pytest.mark.parametrize("damage", ["manifest", "model", "leaves"])
@only("coreml")
def test_a_package_that_is_damaged(copied, damage):
    manifest = copied / coreml.MANIFEST
    if damage == "manifest":
        cut(manifest)
    elif damage == "leaves":
        manifest.write_text(manifest.read_text().replace("com.apple.CoreML/model", "../../model"))
    else:
        next(copied.rglob("*.mlmodel")).write_bytes(b"\xff" * 100)
    with pytest.raises(DataError, match="no package of Core ML"):
        coreml.text_of(copied)


def test_the_words_of_a_tool_that_fails(tmp_path, monkeypatch, alive):
    """One sentence on the screen, all of it in the log."""
    tools("executorch")

    def fails(*_):
        print("said by a tool")
        raise RuntimeError("a thousand lines\n" * 1000 + "the operator is unknown\n")

    monkeypatch.setattr(executorch, "recorded", fails)
    with pytest.raises(UsageError) as caught:
        softless.export(alive, "executorch", tmp_path, size=SIZE)
    assert "executorch failed: the operator is unknown; all that it said is in" in str(caught.value)
    assert "\n" not in str(caught.value)
    log = (tmp_path / "export.log").read_text()
    assert log.count("a thousand lines") == 1000
    assert "said by a tool" in log
    assert [path.name for path in tmp_path.iterdir()] == ["export.log"]


@pytest.mark.parametrize("mean", [0.0, 10.0, 100.0])
def test_layer_norm_is_taken_in_two_passes(tmp_path, mean):
    """ExecuTorch's own kernel errs by 3e-3 where the mean is a hundred standard deviations."""
    tools("executorch")
    norm = torch.nn.LayerNorm(64).eval()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(1, 300, 64) + mean
    with muted():
        executorch.write(Graph(norm, x), tmp_path / "norm.pte", None)
    answer = executorch.run(tmp_path / "norm.pte")(x)[0]
    with torch.no_grad():
        exact = norm.double()(x.double())
    rounding = 1e-6 * max(1.0, mean / 2)
    assert float((answer - exact).abs().max() / exact.abs().max()) < rounding
    assert executorch.shape(tmp_path / "norm.pte").outside == 0


def test_pieces_of_a_vit(tmp_path):
    """Five blocks: at most 22 parts in XNNPACK's hands and 33 kernels between them."""
    tools("executorch")
    model = living("sima_deit_tiny_patch16_224", SIZE, depth=5, act="relu", num_classes=10)
    shape = written(model, "executorch", tmp_path, SIZE).shape
    assert shape.delegated is not None
    assert shape.outside is not None
    assert 0 < shape.delegated <= 8
    assert 0 < shape.outside <= 12
