"""Segmenters as files: every pixel of an image at its own size, as `softless predict` answers."""

import shutil
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import softless
from softless.cli.eval import eval as eval_file
from softless.cli.predict import predict
from softless.errors import UsageError
from softless.tasks.loaded import load_run
from softless.tasks.segmentation.samples import IGNORE
from softless.tasks.segmentation.values import read_values
from tests.exporting.dense_runs import dense_run
from tests.models.lively import zeroed


def outlines(root):
    """A field of view beside each image: all but its left edge."""
    for path in sorted((root / "images").rglob("*.png")):
        seen = np.full((64, 64), 255, dtype=np.uint8)
        seen[:, :9] = 0
        target = root / "fov" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(seen).save(target)


@pytest.fixture(scope="module")
def dpt(tmp_path_factory):
    """A DPT within fields of view."""
    folder = tmp_path_factory.mktemp("vessels")
    return dense_run(folder, "vessels", outlines, segmentation__fov="fov")


@pytest.fixture(scope="module")
def upernet(tmp_path_factory):
    """An UPerNet on the same images."""
    return dense_run(tmp_path_factory.mktemp("upernet"), "vessels", segmentation__decoder="upernet")


@pytest.fixture(scope="module")
def files(dpt, tmp_path_factory):
    """The DPT for images of any size."""
    return softless.export(dpt, "onnx", tmp_path_factory.mktemp("any"), dynamic="both")


@pytest.mark.parametrize("name", ["dpt", "upernet"])
@pytest.mark.parametrize("record", ["pt2", "onnx"])
def test_one_size_off_the_grid(request, tmp_path, name, record):
    run = load_run(request.getfixturevalue(name))
    files = softless.export(run.path, record, tmp_path, size=(50, 83))
    assert files.ok, files
    assert "compared on noise" not in str(files) or files.files[0].measured is None
    exported = softless.load_exported(files.path)
    images = torch.randn(3, 3, 50, 83)
    with torch.no_grad():
        expected = run.model(images)
    apart = (exported(images) - expected).abs().max() / expected.abs().max()
    assert apart <= 1e-5
    with pytest.raises(UsageError, match="was exported for 50 x 83"):
        exported(torch.randn(1, 3, 64, 83))
    with torch.no_grad():
        control = zeroed(run.model)(images)
    assert (control - expected).abs().max() / expected.abs().max() > 1e-2


def test_any_size(dpt, files):
    assert files.ok, files
    (file,) = files.files
    assert (file.measured.metric, file.measured.images) == ("dice", 8)
    assert file.measured.agreement == 1.0
    run, exported = load_run(dpt), softless.load_exported(files.path)
    assert exported.values == run.model.values
    for size in ((64, 64), (96, 160), (70, 100), (30, 47), (33, 20)):
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            expected = run.model(images)
        answer = exported(images)
        assert answer.shape == expected.shape
        assert (answer - expected).abs().max() / expected.abs().max() <= 1e-5, size


def test_upernet_of_any_size(upernet, tmp_path):
    run = load_run(upernet)
    files = softless.export(upernet, "pt2", tmp_path, dynamic="size")
    assert files.ok, files
    exported = softless.load_exported(files.path)
    for size in ((64, 64), (96, 160), (70, 100)):
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            expected = run.model(images)
        assert (exported(images) - expected).abs().max() / expected.abs().max() <= 1e-5, size


def test_bytes_are_filled_up_with_the_mean_in_the_file(dpt, tmp_path):
    run = load_run(dpt)
    files = softless.export(dpt, "onnx", tmp_path / "one", size=(50, 83), pixels="uint8")
    assert files.ok, files
    exported = softless.load_exported(files.path)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 83, 3), np.uint8))
    image = exported.prepare(picture)
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 50, 83))
    with torch.no_grad():
        expected = run.model(run.transform(picture)[None])
    assert (exported(image[None]) - expected).abs().max() / expected.abs().max() <= 1e-5
    files = softless.export(dpt, "pt2", tmp_path / "any", dynamic="size", pixels="uint8")
    assert files.ok, files
    exported = softless.load_exported(files.path)
    with pytest.raises(UsageError, match="cannot be filled up with the mean colour"):
        exported(image[None])
    scores = eval_file(files.path, run.recipe.data.path).to_dict()
    assert scores["dice"] == eval_file(dpt, amp="none", device="cpu").to_dict()["dice"]


def test_predictions_are_the_runs(dpt, files, tmp_path):
    values: Any = load_run(dpt).model.values
    images = tmp_path / "images" / "new"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("a", (70, 100)), ("b", (64, 64)), ("c", (41, 90))):
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(images / f"{name}.png")
    seen = np.zeros((70, 100), dtype=np.uint8)
    seen[10:60, 20:90] = 1
    (tmp_path / "fov" / "new").mkdir(parents=True)
    Image.fromarray(seen).save(tmp_path / "fov" / "new" / "a.png")
    of_run = predict(dpt, images, tmp_path / "run", amp="none", device="cpu")
    of_file = predict(files.path, images, tmp_path / "file")
    for name in "abc":
        one, other = (
            read_values(tmp_path / who / "labels" / f"{name}.png") for who in ("run", "file")
        )
        assert (one == other).mean() > 0.9999
    answered = read_values(tmp_path / "file" / "labels" / "a.png")
    assert (answered[seen == 0] == IGNORE).all()
    assert set(np.unique(answered[seen == 1])) <= set(values)
    assert of_file.notes == of_run.notes
    assert len(of_file.notes) == 2
    assert of_file.counted == 1
    assert (tmp_path / "file" / "overlays" / "a.png").exists()


def test_images_that_a_file_of_one_size_does_not_take(dpt, tmp_path):
    files = softless.export(dpt, "pt2", tmp_path / "files")
    images = tmp_path / "images"
    images.mkdir()
    for name, size in (("a", (64, 64)), ("b", (64, 80))):
        Image.fromarray(np.zeros((*size, 3), dtype=np.uint8)).save(images / f"{name}.png")
    with pytest.raises(UsageError, match=r"b\.png: an image of 64 x 80 pixels: model\.pt2 was"):
        predict(files.path, images, tmp_path / "out")
    assert not (tmp_path / "out").exists(), "nothing is written before all are known to be taken"


def test_measured_without_the_run(dpt, tmp_path):
    expected = eval_file(dpt, amp="none", device="cpu").to_dict()
    place = load_run(dpt).recipe.data.path
    moved = tmp_path / "run"
    shutil.copytree(dpt, moved)
    files = softless.export(moved, "onnx", tmp_path / "files")
    shutil.rmtree(moved)
    measured = eval_file(files.path, place).to_dict()
    for name in ("dice", "miou", "pixel_accuracy", "confusion", "intervals", "per_class"):
        assert measured[name] == expected[name], name
    assert measured["loss"] == pytest.approx(expected["loss"], rel=1e-5)
