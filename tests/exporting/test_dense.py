"""Detectors and segmenters as files: they answer as the run does, in its own pixels."""

import shutil
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign, batched_nms

import softless
from softless.errors import DataError, UsageError
from softless.exporting.dense import boxes as shapes
from softless.exporting.dense.maps import DetectorMaps
from softless.exporting.dense.regions import pieces
from softless.exporting.measured import parity
from softless.tasks.loaded import load_run
from tests.exporting.dense_runs import dense_run
from tests.models.lively import zeroed


@pytest.fixture(scope="module")
def nuclei(tmp_path_factory):
    """A Mask R-CNN on one grid."""
    return dense_run(tmp_path_factory.mktemp("nuclei"), "nuclei", detection__min_score=0.0)


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    """A RetinaNet on a pyramid of SimA, which resizes its images."""
    return dense_run(
        tmp_path_factory.mktemp("cards"), "cards", model__op="sima", detection__min_score=0.0
    )


@pytest.fixture(scope="module")
def detectors(nuclei, cards):
    """Files of both: of one size, and of any, in pt2; of one size in ONNX."""
    runs = {"nuclei": nuclei, "cards": cards}
    return {
        name: (load_run(run), softless.export(run, ("pt2", "onnx"), run.parent / "files"))
        for name, run in runs.items()
    }


def assert_same(answers, expected):
    """Boxes to 1e-4 pixels, scores to 1e-5, the same labels and masks."""
    for one, other in zip(answers, expected, strict=True):
        assert len(other["scores"]), "nothing is compared"
        assert one["labels"].tolist() == other["labels"].tolist()
        torch.testing.assert_close(one["boxes"], other["boxes"], rtol=0, atol=1e-4)
        torch.testing.assert_close(one["scores"], other["scores"], rtol=0, atol=1e-5)
        assert ("masks" in one) == ("masks" in other)
        if "masks" in one:
            assert one["masks"].dtype == torch.bool
            assert (one["masks"] == other["masks"]).float().mean() > 0.9999


@pytest.mark.parametrize("name", ["nuclei", "cards"])
@pytest.mark.parametrize("ending", [".pt2", ".onnx"])
def test_a_file_answers_as_the_runs_detector(detectors, name, ending):
    run, files = detectors[name]
    assert files.ok, files
    exported = softless.load_exported(files.path.with_suffix(ending))
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        expected = run.model(images)
    assert_same(exported(images), expected)
    assert_same(exported(list(images)), expected)
    assert_same(exported(images.numpy()), expected)
    assert exported.categories == run.model.categories
    assert exported.classes == run.classes


@pytest.mark.parametrize("name", ["nuclei", "cards"])
def test_the_report_of_a_detector(detectors, name):
    _, files = detectors[name]
    for file in files.files:
        assert file.parity.difference <= 1e-5
        assert file.measured.metric == ("mask_ap" if name == "nuclei" else "box_ap")
        assert file.measured.images == 8
        assert file.measured.agreement == 1.0
        assert file.measured.value == file.measured.plain
        assert file.form == "plain"


def test_without_attention_the_maps_are_others(detectors):
    run, files = detectors["cards"]
    exported = softless.load_exported(files.path)
    images = torch.randn(1, 3, 64, 64)
    maps = DetectorMaps(run.model, pads=True)
    assert parity(exported.outputs, maps, images).difference <= 1e-5
    zeroed_model: Any = load_run(run.path).model
    zeroed(zeroed_model)
    control = parity(exported.outputs, DetectorMaps(zeroed_model, pads=True), images)
    assert control.difference > 1e-2


def test_images_are_resized_as_in_the_run_and_others_are_refused(detectors):
    run, files = detectors["cards"]
    exported = softless.load_exported(files.path)
    larger = [torch.randn(3, 100, 100)]  # resized to 64 x 64
    with torch.no_grad():
        assert_same(exported(larger), run.model(larger))
    with pytest.raises(UsageError, match=r"64 x 96 pixels: model.pt2 was exported for 64 x 64"):
        exported([torch.randn(3, 64, 96)])
    with pytest.raises(UsageError, match=r"give a list of images"):
        exported(torch.randn(3, 64, 64))


@pytest.mark.parametrize("name", ["nuclei", "cards"])
def test_any_size(request, name, tmp_path):
    path = request.getfixturevalue(name)
    if name == "cards":
        with pytest.raises(UsageError, match="SOFT pyramid"):
            softless.export(path, "pt2", tmp_path, dynamic="size")
        return
    run = load_run(path)
    files = softless.export(path, "onnx", tmp_path, dynamic="size")
    assert files.ok, files
    exported = softless.load_exported(files.path)
    for height, width in ((64, 64), (96, 160), (70, 100)):  # the last is filled up to the grid
        images = [torch.randn(3, height, width)]
        with torch.no_grad():
            assert_same(exported(images), run.model(images))


def test_a_second_stage_stays_with_its_first(detectors, tmp_path):
    _, files = detectors["nuclei"]
    folder = tmp_path / "files"
    shutil.copytree(files.path.parent, folder)
    with pytest.raises(UsageError, match="second stage"):
        softless.load_exported(folder / "model-boxes.pt2")
    (folder / "model-masks.pt2").rename(folder / "elsewhere.pt2")
    with pytest.raises(DataError, match="several files, which stay together"):
        softless.load_exported(folder / "model.pt2")
    _, others = detectors["cards"]
    shutil.copy(others.path, folder / "model-masks.pt2")
    with pytest.raises(DataError, match="of other weights"):
        softless.load_exported(folder / "model.pt2")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"form": "edge"}, "no edge form yet: leave --form out"),
        ({"int8": "weights"}, "measured of classifiers only"),
        ({"size": 0}, "give height and width in pixels"),
    ],
)
def test_what_a_detector_is_not_written_with(nuclei, tmp_path, options, sentence):
    with pytest.raises(UsageError, match=sentence):
        softless.export(nuclei, "pt2", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("count", [5, 400, 1500])
def test_suppression_is_torchvisions(count):
    rng = np.random.default_rng(count)
    corners = rng.uniform(0, 80, (count, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + rng.uniform(0, 30, (count, 2))], 1)
    boxes, scores = boxes.astype(np.float32), rng.random(count).astype(np.float32)
    boxes[0, 2:] = boxes[0, :2]  # without an area
    groups = rng.integers(0, 3, count)
    expected = batched_nms(*map(torch.from_numpy, (boxes, scores, groups)), 0.5)
    assert shapes.kept(boxes, scores, groups, 0.5).tolist() == expected.tolist()
    assert not len(shapes.kept(boxes[:0], scores[:0], groups[:0], 0.5))


@pytest.mark.parametrize("side", [7, 14])
def test_pieces_are_torchvisions(side):
    rng = np.random.default_rng(side)
    maps = [rng.normal(size=(5, 96 // s, 160 // s)).astype(np.float32) for s in (1, 2, 4, 8)]
    corners = rng.uniform(-5, 400, (60, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0, 350, (60, 2))], 1)
    boxes = boxes.astype(np.float32).clip(0, [640, 384, 640, 384]).astype(np.float32)
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], side, 2)
    named = {str(index): torch.from_numpy(map_)[None] for index, map_ in enumerate(maps)}
    expected = pool(named, [torch.from_numpy(boxes)], [(384, 640)])
    torch.testing.assert_close(
        torch.from_numpy(pieces(maps, boxes, side, 2)), expected, rtol=1e-5, atol=1e-5
    )
