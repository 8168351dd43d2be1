"""Formats as options, and files in the formats of every installation that are no good."""

import sys

import pytest
import torch

import softless
from softless.errors import DataError, MissingExtra, UsageError
from softless.exporting.formats.table import FORMATS
from softless.exporting.silence import muted
from tests.exporting.written import living, written

SMALL = {"depth": 1, "embed_dim": 32, "num_heads": 2}


@pytest.fixture(scope="module")
def alive():
    return living("sima_deit_tiny_patch16_224", (32, 48), num_classes=10, **SMALL)


@pytest.mark.parametrize(
    ("format", "module", "extra"),
    [
        ("openvino", "openvino", "openvino"),
        ("executorch", "executorch", "executorch"),
        ("coreml", "coremltools", "coreml"),
        ("onnx", "onnxscript", "export"),
    ],
)
def test_a_tool_that_is_not_installed(alive, tmp_path, monkeypatch, format, module, extra):
    """Its extra is named before any work."""
    from softless import errors

    installed = errors._installed
    monkeypatch.setattr(errors, "_installed", lambda name: name != module and installed(name))
    with pytest.raises(MissingExtra) as caught:
        softless.export(alive, format, tmp_path / "out", size=32)
    assert extra in str(caught.value).partition("pip install")[2]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["executorch", "coreml"])
@pytest.mark.parametrize("dynamic", ["batch", "size", "both"])
def test_formats_of_one_size(alive, tmp_path, monkeypatch, format, dynamic):
    from softless import errors

    monkeypatch.setattr(errors, "_installed", lambda _: True)
    with pytest.raises(UsageError, match=f"^{format} holds graphs of one size and one image"):
        softless.export(alive, format, tmp_path / "out", size=32, dynamic=dynamic)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "location", ["../weights", "/etc/hostname", "sub/../../weights", "link", "own"]
)
def test_weights_outside_the_folder_of_an_onnx_file(alive, tmp_path, location):
    """A file that names any other file as its weights is not loaded."""
    import onnx

    path = softless.export(alive, "onnx", tmp_path / "deep", size=(32, 48)).path
    model = onnx.load_model(path)
    weight = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    (tmp_path / "weights").write_bytes(weight.raw_data)
    (tmp_path / "deep" / "link").symlink_to(tmp_path / "weights")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    onnx.save_model(model, path)
    with pytest.raises(DataError) as caught:
        softless.load_exported(path)
    assert "\n" not in str(caught.value)
    assert f"has weights in another file ({location})" in str(caught.value)


@pytest.mark.parametrize("format", ["pt2", "onnx"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_that_is_cut(alive, tmp_path, format, share):
    path = written(alive, format, tmp_path, (32, 48)).path
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError) as caught:
        softless.load_exported(path)
    assert "\n" not in str(caught.value)


def test_every_format_names_what_is_installed_with_it():
    """The packages that it asks for have an extra."""
    from softless.errors import EXTRAS

    for record in FORMATS.values():
        assert {*record.writes_with, *(record.runs_with or ())} <= EXTRAS.keys()


def test_what_a_tool_prints_is_kept_from_the_screen(capfd):
    """From Python, by a handler that holds the stream, and from below Python."""
    import ctypes
    import os
    import warnings

    with muted() as said:
        print("by print")
        sys.stderr.write("to the error stream\n")
        os.write(2, b"to the descriptor\n")
        ctypes.CDLL(None).puts(b"by the C library")
        warnings.warn("a warning", stacklevel=1)
    print("after")
    assert capfd.readouterr() == ("after\n", "")
    for words in ("by print", "to the error stream", "to the descriptor", "by the C library"):
        assert words in said.text


def test_the_screen_is_back_after_a_failure(capfd):
    with pytest.raises(ZeroDivisionError), muted() as said:
        print(1 / 0)
    print("after")
    assert capfd.readouterr() == ("after\n", "")
    assert said.text == ""


def test_float_weights_are_not_halved(alive, tmp_path):
    """No format writes float16 by itself."""
    weights = sum(parameter.numel() for parameter in alive.parameters())
    for format in ("pt2", "onnx"):
        file = written(alive, format, tmp_path, (32, 48))
        assert file.bytes > 4 * 0.9 * weights
        assert file.apart(alive, torch.randn(2, 3, 32, 48)) <= 1e-5


@pytest.mark.parametrize(
    ("format", "name"), [("openvino", "model.bin"), ("executorch", "model.pte.json")]
)
def test_no_part_of_a_file_replaces_another(alive, tmp_path, monkeypatch, format, name):
    """A file of the user's that has the name of the weights, or of the words beside a program."""
    from softless import errors

    monkeypatch.setattr(errors, "_installed", lambda _: True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match=f"holds {name} already"):
        softless.export(alive, format, tmp_path, size=32)
    assert (tmp_path / name).read_text() == "mine"
