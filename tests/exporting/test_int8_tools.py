"""Eight bits by OpenVINO and ExecuTorch, whose tools are no part of `dev`: `make test-export`."""

import copy
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import torch

import softless
from softless.exporting import checks, described
from softless.exporting.formats.table import FORMATS
from softless.exporting.quantized import tools
from softless.exporting.quantized.candidate import Candidate
from softless.exporting.source import opened
from softless.modes import evaluating
from tests.exporting.headless import HeadFree
from tests.exporting.trained import digits_run

NEEDED = {"openvino": ("openvino", "nncf", "onnx"), "executorch": ("executorch", "torchao")}
pytestmark = pytest.mark.export


def needs(name):
    absent = [package for package in NEEDED[name] if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(absent), reason=f"{', '.join(absent)} not installed")


BOTH = [pytest.param(name, marks=needs(name)) for name in NEEDED]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """op -> a run, trained when it is first asked for."""
    made: dict[str, Path] = {}

    def run(op):
        if op not in made:
            args: dict[str, Any] = {"token_scale": "tokens"} if op == "sima" else {}
            made[op] = digits_run(tmp_path_factory.mktemp(op), op, **args)
        return made[op]

    return run


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("op", ["sima", "softmax", "seqnorm"])
def test_static(runs, tmp_path, name, op):
    report = softless.export(runs(op), name, tmp_path, int8="static")
    (file,) = report.files
    assert report.ok, str(report)
    # all that XNNPACK's quantiser knows is more than a model that knows little bears
    assert file.int8 in {"openvino": ("transformer",), "executorch": ("everything", "linear")}[name]
    assert file.measured.agreement >= 0.97
    # XNNPACK's quantiser rounds the residual stream too
    assert 1e-4 < file.measured.difference < {"openvino": 0.05, "executorch": 0.1}[name]
    told = softless.load_exported(file.path).metadata.int8
    assert (told["recipe"], told["calibration"]["images"]) == (file.int8, 256)


@pytest.mark.parametrize("name", BOTH)
def test_weights(runs, tmp_path, name):
    report = softless.export(runs("sima"), name, tmp_path / "int8", int8="weights")
    plain = softless.export(runs("sima"), name, tmp_path / "float")
    (file,) = report.files
    assert report.ok, str(report)
    assert file.int8 == {"openvino": "weights", "executorch": "dynamic"}[name]
    assert 1e-4 < file.measured.difference < 0.03
    assert file.bytes < plain.files[0].bytes
    assert softless.load_exported(file.path).metadata.int8["calibration"] is None


def with_recipes(monkeypatch, *recipes):
    record = replace(FORMATS["openvino"], int8={"static": recipes})
    monkeypatch.setattr(checks, "format_named", lambda _: record)


def smooth(material, path):
    """NNCF's own rules for transformers, SmoothQuant among them."""
    nncf = tools.nncf()
    batches = [batch.numpy() for batch in material.batches()]
    model = tools.openvino().Core().read_model(material.float_file)
    model = nncf.quantize(
        model,
        nncf.Dataset(batches),
        subset_size=len(batches),
        model_type=nncf.ModelType.TRANSFORMER,
    )
    tools.openvino().save_model(model, path, compress_to_fp16=False)


@needs("openvino")
@pytest.mark.slow
def test_smoothquant_on_a_form_without_heads_is_caught(runs, tmp_path, monkeypatch):
    """NNCF ends without a word. The file answers one image as it should, and several at once by
    chance.
    """
    monkeypatch.setattr(described, "edge", lambda model, *_, **__: HeadFree(model_copy(model)))
    with_recipes(monkeypatch, Candidate("smooth", "SmoothQuant", smooth))
    report = softless.export(
        runs("sima"), "openvino", tmp_path / "smooth", int8="static", dynamic="batch"
    )
    (file,) = report.files
    assert (report.exit_code, file.form) == (1, "head-free")
    assert file.path.name == "model-int8-static.xml.failed"
    assert file.measured.plain > 0.8
    assert file.measured.value < 0.6
    said = " ".join(file.faults)
    assert "test images as the model does" in said
    assert "points below the model's" in said
    assert "with the images beside it" in said
    recipes = FORMATS["openvino"].int8["static"]
    with_recipes(monkeypatch, Candidate("smooth", "SmoothQuant", smooth), *recipes)
    again = softless.export(
        runs("sima"), "openvino", tmp_path / "plain", int8="static", dynamic="batch"
    )
    assert again.ok, str(again)
    assert again.files[0].int8 == "transformer"
    assert "test images as the model does" in again.files[0].tried["smooth"]


def model_copy(model):
    return copy.deepcopy(model).eval()


def test_the_form_without_heads_is_the_same_model(runs):
    model = opened(runs("sima")).model
    images = torch.randn(3, 1, 16, 16)
    with evaluating(model), torch.no_grad():
        torch.testing.assert_close(
            HeadFree(model_copy(model))(images), model(images), rtol=1e-4, atol=1e-4
        )


@needs("openvino")
def test_what_is_of_two_activations_is_float_in_the_second_recipe(runs, tmp_path, monkeypatch):
    """NNCF leaves the residual's sums alone by itself; attention's products it does not."""
    quantised = {}
    for recipe in FORMATS["openvino"].int8["static"][:2]:
        with_recipes(monkeypatch, recipe)
        report = softless.export(runs("sima"), "openvino", tmp_path / recipe.name, int8="static")
        assert report.ok
        assert report.files[0].int8 == recipe.name
        quantised[recipe.name] = quantised_values(report.path)
    assert quantised["transformer"]["Add"] == quantised["products-with-weights"]["Add"] == 0
    # of each block: q and k, v, k^T v
    fewer = quantised["transformer"]["all"] - quantised["products-with-weights"]["all"]
    assert fewer >= 3 * 3


def quantised_values(path):
    """How many values are brought to eight bits, and how many additions read two of them."""
    root = ET.parse(path).getroot()
    kinds = {str(layer.get("id")): str(layer.get("type")) for layer in root.iter("layer")}
    sources: dict[str, list[str]] = {}
    for edge in root.iter("edge"):
        sources.setdefault(str(edge.get("to-layer")), []).append(kinds[str(edge.get("from-layer"))])
    sums = sum(
        kind == "Add" and sources[layer].count("FakeQuantize") == 2 for layer, kind in kinds.items()
    )
    return {"Add": sums, "all": [*kinds.values()].count("FakeQuantize")}


@needs("openvino")
def test_what_reports_the_use_of_the_tools_is_not_imported():
    tools.openvino()
    tools.nncf()
    assert tools.TELEMETRY not in sys.modules


@pytest.mark.parametrize("name", BOTH)
def test_nothing_reaches_the_screen_and_no_path_the_file(runs, tmp_path, capfd, name):
    report = softless.export(runs("sima"), name, tmp_path, int8="static")
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    words = (str(tmp_path), str(runs("sima").parent), str(Path.home()), "site-packages", sys.prefix)
    for part in FORMATS[name].parts(report.path):
        content = part.read_bytes()
        assert [word for word in words if word.encode() in content] == []
