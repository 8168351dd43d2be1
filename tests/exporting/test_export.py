"""`softless.export`: files that are run, compared, audited and measured before they have a name."""

import getpass
import io
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import softless
from softless.data.reading import read_image
from softless.errors import DataError, UsageError
from softless.experiment.groups import DataSpec
from softless.exporting import checks, proof
from softless.exporting.formats.table import FORMATS
from softless.exporting.measured import parity
from softless.exporting.metadata import Metadata, read_metadata
from softless.tasks.loaded import load_run
from tests.data.making import split_folders
from tests.evaluation.runs import run_folder
from tests.models.lively import lively, zeroed

CLASSES = ("cat", "dog")
WRITTEN = ("pt2", "onnx")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run over images of two classes."""
    folder = tmp_path_factory.mktemp("export")
    split_folders(
        folder / "data", {p: {"cat": n, "dog": n} for p, n in (("train", 20), ("test", 6))}
    )
    data = DataSpec(source="folder", path=str(folder / "data"), image_size=16, val_fraction=0.5)
    run_folder(folder / "run", CLASSES, data)
    return folder


@pytest.fixture(scope="module")
def files(folder):
    """The run in every format that is written here."""
    return softless.export(folder / "run", WRITTEN, folder / "files")


@pytest.fixture(scope="module", params=WRITTEN)
def exported(request, files):
    return softless.load_exported(files.path.with_suffix(FORMATS[request.param].ending))


def test_a_file_answers_as_the_run(folder, exported):
    model = load_run(folder / "run").model
    images = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        expected = model(images)
    torch.testing.assert_close(exported(images), expected, rtol=1e-5, atol=1e-6)
    assert exported.classes == CLASSES


def test_the_report(files):
    assert files.ok
    assert files.exit_code == 0
    for file in files.files:
        assert file.parity.difference <= 1e-5
        assert file.parity.images == 12
        assert (file.measured.images, file.measured.agreement) == (12, 1.0)
        assert file.measured.value == file.measured.plain
        assert file.bytes == file.path.stat().st_size
        assert not file.audit.exp_free  # GELU
    assert json.loads(json.dumps(files.to_dict()))["files"][0]["format"] == "pt2"
    assert "model.onnx" in str(files)


def test_a_picture_is_prepared_as_in_evaluation(folder, exported):
    run = load_run(folder / "run")
    path = next((folder / "data" / "test" / "dog").iterdir())
    expected = run.transform(read_image(path, 3, None))
    torch.testing.assert_close(exported.prepare(path), expected, rtol=0, atol=0)


def test_a_file_says_what_it_is(exported):
    said = exported.metadata
    assert said.best["mean"] == [0.5] * 3
    assert said.accuracy["images"] == 12
    assert said.audit["exp_free"] is False
    assert said.size == (16, 16)
    assert len(said.weights_sha256) == 64
    assert said.recipe["data"]["path"] is None


def test_nothing_of_the_machine_is_in_a_file(folder, files):
    """No path, user or host name."""
    words = {str(folder), str(Path.home()), tempfile.gettempdir() + "/", sys.prefix}
    words |= {str(Path(softless.__file__).parent), "site-packages"}
    words |= {name for name in (socket.gethostname(), getpass.getuser()) if len(name) > 4}
    for file in files.files:
        content = file.path.read_bytes()
        assert [word for word in words if word.encode() in content] == []


def test_the_same_model_is_the_same_file(folder, files):
    """So no time of the machine is in it, and no chance."""
    again = softless.export(folder / "run", WRITTEN, folder / "again")
    for first, second in zip(files.files, again.files, strict=True):
        assert first.path.read_bytes() == second.path.read_bytes()


def test_a_file_is_enough_in_another_process(folder, files):
    alone = folder / "alone"
    alone.mkdir()
    shutil.copy(files.files[1].path, alone / "model.onnx")
    code = (
        "import torch, softless\n"
        "model = softless.load_exported('model.onnx')\n"
        "print(model.classes, tuple(model(torch.zeros(1, 3, 16, 16)).shape))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=alone, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "('cat', 'dog') (1, 2)"


@pytest.fixture(scope="module")
def alive():
    """A model with weights on which every branch counts."""
    torch.manual_seed(0)
    model = softless.create_model(
        "sima_deit_tiny_patch16_224", depth=2, embed_dim=32, num_heads=2, num_classes=5
    )
    return lively(model, torch.randn(2, 3, 96, 64))


@pytest.mark.parametrize("name", WRITTEN)
def test_a_dynamic_file_takes_any_batch_and_size(tmp_path, alive, name):
    report = softless.export(alive, name, tmp_path, size=(96, 64), dynamic="both")
    assert report.ok, str(report)
    exported = softless.load_exported(report.path)
    for size in ((1, 3, 64, 64), (3, 3, 32, 112), (2, 3, 256, 96)):
        images = torch.randn(size)
        with torch.no_grad():
            expected = alive(images)
        apart = (exported(images) - expected).abs().max() / expected.abs().max()
        assert float(apart) <= 1e-5, size
    with pytest.raises(UsageError, match="multiples of 16"):
        exported(torch.zeros(1, 3, 40, 64))


def test_parity_sees_a_model_without_attention(tmp_path, alive):
    report = softless.export(alive, "pt2", tmp_path, size=(96, 64))
    answer = softless.load_exported(report.path).outputs
    images = torch.randn(3, 3, 96, 64)
    assert parity(answer, alive, images).difference <= 1e-5
    without = softless.create_model(
        "sima_deit_tiny_patch16_224", depth=2, embed_dim=32, num_heads=2, num_classes=5
    )
    without.load_state_dict(alive.state_dict())
    assert parity(answer, zeroed(without.eval()), images).difference > 1e-2


def test_a_file_whose_answers_differ_is_kept_as_failed(tmp_path, alive, monkeypatch):
    """A format that writes another model than it was handed."""
    record = FORMATS["onnx"]

    def other(graph, path, opset):
        record.write(replace(graph, module=zeroed(graph.module)), path, opset)

    monkeypatch.setattr(checks, "format_named", lambda _: replace(record, write=other))
    monkeypatch.setattr(proof, "parity", lambda answer, _, *images: parity(answer, alive, *images))
    report = softless.export(alive, "onnx", tmp_path, "plain", size=(96, 64))
    assert report.exit_code == 1
    assert report.path.name == "model.onnx.failed"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx.failed"]
    assert "differ from the model's" in report.files[0].faults[0]
    assert "FAILED" in str(report)


def test_files_of_others_say_nothing(tmp_path):
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, tmp_path / "other.pt2")
    with pytest.raises(DataError, match="says nothing of its classes"):
        softless.load_exported(tmp_path / "other.pt2")


@pytest.mark.parametrize(
    "damage",
    [
        {"version": 2},
        {"size": [16]},
        {"outputs": None},
        {"pixels": "float"},
        {"weights_sha256": "x"},
        {"best": {}},
        {"step": 0},
    ],
)
def test_a_damaged_description_is_one_sentence(exported, damage):
    content = json.loads(exported.metadata.as_text())
    with pytest.raises(DataError) as caught:
        read_metadata(json.dumps(content | damage), Path("model.onnx"))
    assert "\n" not in str(caught.value)
    assert isinstance(read_metadata(json.dumps(content), Path("model.onnx")), Metadata)


def test_noise_in_place_of_images_is_said(tmp_path, alive):
    assert "compared on noise" in str(softless.export(alive, "pt2", tmp_path, size=32))


def test_a_model_in_training_keeps_its_mode(tmp_path):
    model = softless.create_model("sima_deit_tiny_patch16_224", depth=1, embed_dim=32, num_heads=2)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    softless.export(model, "pt2", tmp_path, size=32)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_picture_as_an_array(exported):
    assert exported.prepare(np.zeros((20, 30, 3), np.uint8)).shape == (3, 16, 16)


class Runs:
    """What a pickle makes of itself when it is opened: a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def rewritten(path, target, change):
    """A copy of an archive whose entries are changed; None leaves one out."""
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(target, "w") as after:
        for name in before.namelist():
            content = change(name, before.read(name))
            if content is not None:
                after.writestr(name, content)
        if more := change("", b""):
            after.writestr("model/" + more[0], more[1])
    return target


OPAQUE = b'{"config": {"x": {"path_name": "opaque_obj_0", "use_pickle": true, "is_param": false}}}'


def hostile(place, code):
    """What changes an entry of an archive so that its opening would run the code."""

    def change(name, content):
        if place == "library" and not name:
            return "data/aotinductor/x.so", b"\x7fELF"
        if place == "example" and "sample_inputs" in name:
            return code
        if place == "object" and name.endswith("constants_config.json"):
            return OPAQUE
        if place == "weights" and name.endswith("weight_0"):
            return code
        if place == "weights":
            return content.replace(b'"use_pickle": false', b'"use_pickle": true')
        return content

    return change


@pytest.mark.parametrize("place", ["weights", "example", "object", "library"])
def test_no_code_of_a_file_is_run(folder, files, place, tmp_path):
    """torch.export.load would unpickle: each of the places is refused before it is opened."""
    buffer = io.BytesIO()
    torch.save(Runs(tmp_path / "ran"), buffer)
    change = hostile(place, buffer.getvalue())
    target = rewritten(files.files[0].path, tmp_path / "hostile.pt2", change)
    with pytest.raises(DataError, match="is not opened"):
        softless.load_exported(target)
    assert not (tmp_path / "ran").exists()


def test_no_image_of_a_patient_is_in_a_file(files):
    """The example that a graph was recorded with is noise."""
    program = torch.export.load(files.files[0].path)
    (example,), _ = program.example_inputs
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(example, torch.randn(example.shape, generator=generator))
