"""Files in eight bits: measured, held against the gate, and calibrated on images that are no test
images.
"""

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import softless
from softless.errors import DataError, UsageError
from softless.evaluation.intervals import Interval
from softless.exporting import checks
from softless.exporting.formats.table import FORMATS
from softless.exporting.measured import Measured
from softless.exporting.quantized.calibration import calibrated
from softless.exporting.quantized.candidate import Candidate
from softless.exporting.quantized.onnx import INT8, products
from softless.exporting.source import opened
from softless.models import digests
from tests.exporting.trained import digits_run

ONNX = FORMATS["onnx"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return digits_run(tmp_path_factory.mktemp("int8"), token_scale="tokens")


@pytest.fixture(scope="module")
def plain(run):
    return softless.export(run, "onnx", run.parent / "plain").files[0]


@pytest.fixture(scope="module")
def static(run):
    return softless.export(run, "onnx", run.parent / "static", int8="static").files[0]


@pytest.fixture(scope="module")
def weights(run):
    return softless.export(run, "onnx", run.parent / "weights", int8="weights").files[0]


def trial(name, write):
    return Candidate(name, "a trial", write)


def with_recipes(monkeypatch, *recipes):
    record = replace(ONNX, int8={"static": recipes})
    monkeypatch.setattr(checks, "format_named", lambda _: record)


def with_scale(factor):
    """The first recipe, with one scale of a weight or activation set wrong in each block."""

    def write(material, path):
        products(material, path)
        model = onnx.load_model(path)
        for tensor in model.graph.initializer:
            if "softmax" not in tensor.name and tensor.name.endswith("_scale"):
                values = onnx.numpy_helper.to_array(tensor)
                if values.ndim == 1 and len(values) == 128:  # of the first layer of each MLP
                    tensor.CopyFrom(onnx.numpy_helper.from_array(values * factor, tensor.name))
        onnx.save_model(model, path)

    return trial(f"scale x {factor}", write)


def test_static(plain, static):
    assert static.ok, static.faults
    assert (static.path.name, static.int8, static.tried) == (
        "model-int8-static.onnx",
        "products",
        {},
    )
    assert static.parity is None
    assert static.measured.images == 397
    assert static.measured.agreement >= 0.97
    assert 1e-4 < static.measured.difference < 0.06
    graph = onnx.load_model(static.path).graph
    kinds = [node.op_type for node in graph.node]
    assert {"QuantizeLinear", "DequantizeLinear"} <= {*kinds}
    adds = [node for node in graph.node if node.op_type == "Add"]
    quantised = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    assert not any({*node.input} <= quantised for node in adds)  # the residual is float
    assert scales_of_channels(graph) >= 3 * 3
    assert static.bytes < 0.75 * plain.bytes  # the graph itself is most of so small a file


def scales_of_channels(graph):
    """Weights that have a scale for each channel."""
    shapes = {tensor.name: tensor.dims for tensor in graph.initializer}
    return sum(
        node.op_type == "DequantizeLinear"
        and len(shapes.get(node.input[0], ())) == 2
        and len(shapes[node.input[1]]) == 1
        and shapes[node.input[1]][0] > 1
        for node in graph.node
    )


def test_weights(plain, weights):
    assert weights.ok
    assert weights.int8 == "weights"
    assert 1e-4 < weights.measured.difference < 0.02
    graph = onnx.load_model(weights.path).graph
    assert scales_of_channels(graph) >= 6 * 3
    assert not any(node.op_type == "QuantizeLinear" for node in graph.node)
    floats = [
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) >= 2
    ]
    products_of = {
        name
        for node in graph.node
        if node.op_type in {"MatMul", "Gemm", "Conv"}
        for name in node.input[:2]
    }
    assert not products_of & {*floats}
    assert weights.bytes < plain.bytes


def test_what_a_file_says_of_its_eight_bits(run, static, weights):
    said = softless.load_exported(static.path).metadata
    assert (said.int8["kind"], said.int8["recipe"], said.int8["tried"]) == (
        "static",
        "products",
        {},
    )
    told = said.int8["calibration"]
    source = opened(run).at((16, 16))
    drawn = source.calibration_images(None)
    assert drawn is not None
    assert drawn is not None
    names = [drawn.name(k) for k in range(len(drawn))]
    images = [source.transform(drawn.image(k)) for k in range(len(drawn))]
    assert (told["images"], told["seed"], told["names"]) == (256, 0, names)
    assert told["sha256"] == digests.of_texts({
        name: digests.of_tensor(image) for name, image in zip(names, images, strict=True)
    })
    assert said.accuracy["value"] == static.measured.value
    assert said.accuracy["agreement"] == static.measured.agreement
    assert softless.load_exported(weights.path).metadata.int8["calibration"] is None
    assert str(run.parent).encode() not in static.path.read_bytes()


def test_the_same_images_are_the_same_file(run, static, tmp_path):
    again = softless.export(run, "onnx", tmp_path, int8="static")
    assert again.path.read_bytes() == static.path.read_bytes()


def test_the_file_alone_has_the_accuracy_that_it_names(static, pixels):
    answer = softless.load_exported(static.path)
    images = torch.stack([answer.prepare(image) for image in pixels["test"]])
    right = answer(images).argmax(1).numpy() == pixels["test_labels"]
    assert right.mean() == static.measured.value == answer.metadata.accuracy["value"]


@pytest.mark.parametrize(
    ("op", "kind", "size"),
    [
        ("softmax", "one", (16, 16)),
        ("seqnorm", "one", (16, 24)),
        ("sima", "several", (16, 16)),
        ("sima", "two", (24, 16)),
    ],
)
def test_other_operators_tasks_and_sizes(tmp_path, op, kind, size):
    run = digits_run(tmp_path, op, kind, size)
    report = softless.export(run, "onnx", tmp_path / "files", int8="static")
    measured = report.files[0].measured
    assert report.ok, str(report)
    assert measured.metric == ("label_accuracy" if kind == "several" else "top1")
    assert measured.agreement >= 0.97
    assert measured.plain > {"one": 0.6, "two": 0.65, "several": 0.7}[kind]
    assert softless.load_exported(report.path)(torch.zeros(3, 1, *size)).shape[0] == 3


def test_a_wrong_scale_is_caught_and_the_next_recipe_is_kept(run, tmp_path, monkeypatch):
    with_recipes(monkeypatch, with_scale(4.0), INT8["static"][0])
    report = softless.export(run, "onnx", tmp_path, int8="static")
    (file,) = report.files
    assert report.ok
    assert file.int8 == "products"
    assert "test images as the model does" in file.tried["scale x 4.0"]
    assert "scale x 4.0" in str(report)
    assert "scale x 4.0" in softless.load_exported(report.path).metadata.int8["tried"]
    assert [path.name for path in tmp_path.iterdir()] == ["model-int8-static.onnx"]


def test_where_all_fail_the_best_is_kept_as_failed(run, tmp_path, monkeypatch):
    with_recipes(monkeypatch, with_scale(4.0), with_scale(20.0))
    report = softless.export(run, "onnx", tmp_path, int8="static")
    (file,) = report.files
    assert report.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model-int8-static.onnx.failed"]
    assert file.int8 == "scale x 4.0"
    assert {*file.tried} == {"scale x 20.0"}
    assert any("test images as the model does" in fault for fault in file.faults)
    assert "FAILED" in str(report)


def test_a_recipe_that_its_tool_refuses_is_passed_over(run, tmp_path, monkeypatch):
    def refuses(material, path):
        raise RuntimeError("long story\nno kernel for this")

    with_recipes(monkeypatch, trial("refused", refuses), INT8["static"][1])
    report = softless.export(run, "onnx", tmp_path / "second", int8="static")
    assert report.ok
    assert report.files[0].int8 == "products-with-weights"
    assert "no kernel for this" in report.files[0].tried["refused"]
    with_recipes(monkeypatch, with_scale(4.0), trial("refused", refuses))
    report = softless.export(run, "onnx", tmp_path / "first", int8="static")
    assert (report.ok, report.files[0].int8) == (False, "scale x 4.0")
    with_recipes(monkeypatch, trial("refused", refuses))
    with pytest.raises(UsageError, match="no kernel for this"):
        softless.export(run, "onnx", tmp_path / "none", int8="static")
    assert sorted(path.name for path in (tmp_path / "none").iterdir()) == ["export.log"]


def test_products_of_activations_stay_float_in_the_second_recipe(run, tmp_path, monkeypatch):
    graphs = {}
    for recipe in INT8["static"]:
        with_recipes(monkeypatch, recipe)
        report = softless.export(run, "onnx", tmp_path / recipe.name, int8="static")
        assert report.files[0].int8 == recipe.name
        graphs[recipe.name] = onnx.load_model(report.path).graph
    assert quantised_products(graphs["products"]) == 2 * 3  # k^T v and q (k^T v) of each block
    assert quantised_products(graphs["products-with-weights"]) == 0


def quantised_products(graph):
    """Products of two activations that are read in eight bits."""
    constant = {tensor.name for tensor in graph.initializer}
    maker = {name: node for node in graph.node for name in node.output}

    def activation(name):
        return (
            name in maker
            and maker[name].op_type == "DequantizeLinear"
            and maker[name].input[0] not in constant
        )

    return sum(node.op_type == "MatMul" and all(map(activation, node.input)) for node in graph.node)


def of(agreement=1.0, drop=(0.0, 0.0, 0.0), difference=0.01, images=400):
    return Measured(images, "top1", 0.9, 0.9, None, Interval(*drop), agreement, difference)


@pytest.mark.parametrize(
    ("measured", "faults", "doubts"),
    [
        (of(), 0, 0),
        (of(agreement=0.97), 0, 0),
        (of(agreement=0.9699), 1, 0),
        (of(drop=(-0.004, -0.0099, 0.001)), 0, 0),
        (of(drop=(-0.013, -0.04, 0.0), images=75), 0, 1),  # few images: said, and no fault
        (of(drop=(-0.02, -0.03, -0.0101)), 1, 0),  # the whole interval is below
        (of(drop=(0.02, 0.01, 0.03)), 0, 0),
        (of(agreement=0.2, drop=(-0.7, -0.8, -0.6)), 2, 0),
        (of(difference=math.nan), 1, 0),
    ],
)
def test_the_gate(measured, faults, doubts):
    assert len(measured.faults(eight_bits=True)) == faults
    assert len(measured.doubts()) == doubts


def test_a_float_file_answers_all_alike():
    assert of(agreement=0.99).faults(eight_bits=False)
    assert not of().faults(eight_bits=False)


def folder_of(path, images):
    path.mkdir()
    for k, pixels in enumerate(images):
        Image.fromarray(pixels).save(path / f"{k:03}.png")
    return path


@pytest.fixture(scope="module")
def pixels(run):
    with np.load(run.parent / "digits.npz") as arrays:
        images = {part: arrays[f"{part}_images"] for part in ("train", "val", "test")}
        return images | {"test_labels": arrays["test_labels"][:, 0]}


def test_images_of_a_folder(run, tmp_path, pixels):
    folder = folder_of(tmp_path / "images", pixels["val"][:40])
    report = softless.export(run, "onnx", tmp_path / "out", int8="static", calibrate=folder)
    told = softless.load_exported(report.path).metadata.int8["calibration"]
    assert (told["images"], told["names"][:2]) == (40, ["000.png", "001.png"])
    assert str(tmp_path).encode() not in report.path.read_bytes()


def test_fewer_than_32_images(run, tmp_path, pixels):
    folder = folder_of(tmp_path / "images", pixels["val"][:31])
    with pytest.raises(DataError, match="31 images to calibrate with, and 32 are the fewest"):
        softless.export(run, "onnx", tmp_path / "out", int8="static", calibrate=folder)


def test_test_images_are_refused_with_their_number(run, tmp_path, pixels):
    mixed = np.concatenate([pixels["val"][:40], pixels["test"][5:8]])
    folder = folder_of(tmp_path / "images", mixed)
    with pytest.raises(DataError, match=r"3 of 43 images .* 040\.png first, are test images"):
        softless.export(run, "onnx", tmp_path / "out", int8="static", calibrate=folder)
    assert not (tmp_path / "out").exists()


def test_training_images_that_are_test_images_are_left_out(run, caplog):
    source = opened(run).at((16, 16))
    drawn = source.calibration_images(None)
    assert drawn is not None
    assert drawn is not None
    kept = calibrated(source, None, drawn.take(range(6)))
    assert kept is not None
    assert kept is not None
    assert "6 training images left out of the calibration" in caplog.text
    assert kept.names == tuple(drawn.name(k) for k in range(6, 256))
    assert kept.images.shape == (250, 1, 16, 16)
    with pytest.raises(DataError, match="16 images to calibrate with, and 32 are the fewest"):
        calibrated(source, None, drawn.take(range(240)))


def test_a_batch_that_is_free(run, tmp_path):
    report = softless.export(run, "onnx", tmp_path, int8="static", dynamic="batch")
    assert report.ok
    answer = softless.load_exported(report.path)
    images = torch.randn(5, 1, 16, 16)
    torch.testing.assert_close(
        answer(images), torch.cat([answer(image[None]) for image in images]), rtol=0, atol=2e-5
    )


def test_an_answer_that_hangs_on_the_images_beside_it_is_caught(run, tmp_path, monkeypatch):
    """Its accuracy may be what it should: a mean over the images of a batch moves all alike."""

    def beside(material, path):
        products(material, path)
        model = onnx.load_model(path)
        graph, helper = model.graph, onnx.helper
        last = next(node for node in graph.node if "logits" in node.output)
        last.output[:] = ["own"]
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, 1]), "axes"))
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(20.0, np.float32), "share"))
        graph.node.extend([
            helper.make_node("ReduceMean", ["own", "axes"], ["mean_of_all"]),
            helper.make_node("Mul", ["mean_of_all", "share"], ["part_of_all"]),
            helper.make_node("Add", ["own", "part_of_all"], ["logits"]),
        ])
        onnx.save_model(model, path)

    with_recipes(monkeypatch, trial("beside", beside))
    report = softless.export(run, "onnx", tmp_path, int8="static", dynamic="batch")
    (file,) = report.files
    assert file.measured.agreement >= 0.97
    assert len(file.faults) == 1
    assert "with the images beside it" in file.faults[0]


def test_bytes_in_eight_bits(run, static, tmp_path):
    """The ranges are those of bytes, and the answers are nearly those of the other file."""
    report = softless.export(run, "onnx", tmp_path, int8="static", pixels="uint8")
    assert report.ok, str(report)
    assert report.files[0].measured.agreement >= 0.97
    assert report.files[0].measured.difference < 2 * static.measured.difference
    assert (
        softless
        .load_exported(report.path)(torch.zeros(1, 1, 16, 16, dtype=torch.uint8))
        .isfinite()
        .all()
    )


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"format": "pt2", "int8": "static"}, "pt2 has no --int8 static"),
        ({"int8": "static", "dynamic": "size"}, "one file for each size"),
        ({"int8": "eight"}, "--int8 eight: choose of"),
        ({"calibrate": "images"}, "--calibrate is of --int8 static"),
        ({"int8": "weights", "calibrate": "images"}, "--calibrate is of --int8 static"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(run, tmp_path, changed, sentence):
    arguments = {"format": "onnx", **changed}
    with pytest.raises(UsageError, match=sentence) as caught:
        softless.export(run, out=tmp_path / "out", **arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_model_without_test_images_is_refused(tmp_path):
    model = softless.create_model("sima_deit_tiny_patch16_224", depth=1, embed_dim=32, num_heads=2)
    with pytest.raises(UsageError, match="is measured on labelled test images"):
        softless.export(model, "onnx", tmp_path, int8="weights", size=32)


def test_nothing_of_the_tool_stays_in_the_process(run, tmp_path):
    """No handler of the root logger, no word on the screen, no changed level."""
    code = (
        "import json, logging, sys, softless\n"
        f"softless.export({str(run)!r}, 'onnx', {str(tmp_path / 'out')!r}, int8='static')\n"
        "logging.warning('later')\n"
        "print(json.dumps([logging.root.level, len(logging.root.handlers)]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [30, 1]
    assert done.stderr == "WARNING:root:later\n"
