"""Exported files in the place of runs: `eval` and `predict` by what a file says of itself."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import softless
from softless.cli.cost import cost
from softless.cli.eval import eval as eval_file
from softless.cli.explain import explain
from softless.cli.predict import predict
from softless.cli.slide import slide
from softless.errors import UsageError
from softless.experiment.groups import DataSpec
from softless.recipes import get_recipe
from softless.tasks.loaded import load_run
from softless.training import fit
from tests.data.making import split_folders
from tests.evaluation.runs import run_folder
from tests.exporting.dense_runs import dense_run

CLASSES = ("cat", "dog")


@pytest.fixture(scope="module")
def gone(tmp_path_factory):
    """A file of a classifier whose run is deleted, with what the run answered before."""
    folder = tmp_path_factory.mktemp("use")
    split_folders(
        folder / "data", {p: {"cat": n, "dog": n} for p, n in (("train", 6), ("test", 7))}
    )
    data = DataSpec(source="folder", path=str(folder / "data"), image_size=16, val_fraction=0.5)
    run = run_folder(folder / "run", CLASSES, data)
    file = softless.export(run, "onnx", folder / "files").path
    scores = eval_file(run, amp="none", device="cpu").to_dict()
    predict(run, folder / "data" / "test", folder / "answers", amp="none", device="cpu")
    shutil.rmtree(run)
    return file, folder, scores


def table(path):
    with (path / "predictions.csv").open() as file:
        return list(csv.reader(file))


def test_accuracy_in_a_process_without_the_run(gone, tmp_path):
    file, folder, scores = gone
    command = [sys.executable, "-m", "softless", "eval", str(file), str(folder / "data"), "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    measured = json.loads(done.stdout)
    assert measured["precision"] == "float32"
    for name, value in scores.items():
        if name in {"run", "data"}:
            continue
        if isinstance(value, float):
            assert measured[name] == pytest.approx(value, abs=1e-6), name
    assert measured["confusion"] == scores["confusion"]


def test_predictions_are_the_runs(gone, tmp_path, caplog):
    file, folder, _ = gone
    answers = predict(file, folder / "data" / "test", tmp_path / "out")
    assert answers.overlays is None
    assert "holds no attention layers, so no saliency maps are drawn" in caplog.text
    assert not (tmp_path / "out" / "saliency").exists()
    of_file, of_run = table(tmp_path / "out"), table(folder / "answers")
    assert of_file[0] == of_run[0]
    for one, other in zip(of_file[1:], of_run[1:], strict=True):
        assert one[:2] == other[:2]
        assert list(map(float, one[2:])) == pytest.approx(list(map(float, other[2:])), abs=1.1e-6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, r"softless eval model\.onnx DATA"),
        ({"data": "", "amp": "bfloat16"}, "what model.onnx computes in stands in the file"),
        ({"data": "", "device": "cuda"}, "run on the processor; leave --device out"),
        ({"data": "", "knn": 5}, "--knn reads features of a model's layers"),
        ({"data": "", "linear": True}, "--linear reads features of a model's layers"),
    ],
)
def test_what_a_file_is_not_measured_with(gone, options, sentence):
    file, folder, _ = gone
    if "data" in options:
        options = {**options, "data": folder / "data"}
    with pytest.raises(UsageError, match=sentence):
        eval_file(file, **options)


def test_what_files_are_not_predicted_with(gone, tmp_path):
    file, folder, _ = gone
    images = folder / "data" / "test"
    with pytest.raises(UsageError, match="leave --amp out"):
        predict(file, images, tmp_path / "out", amp="float16")
    with pytest.raises(UsageError, match="leave --device out"):
        predict(file, images, tmp_path / "out", device="mps")
    assert not (tmp_path / "out").exists()


def test_verbs_that_take_no_file(gone, tmp_path):
    file, folder, _ = gone
    picture = next((folder / "data" / "test").rglob("*.png"))
    calls = (
        lambda: explain(str(file), picture, out=tmp_path / "maps"),
        lambda: cost(str(file)),
        lambda: slide(str(file), str(picture), out=tmp_path / "slides"),
    )
    for call in calls:
        with pytest.raises(UsageError, match=r"is an exported file: .* eval, predict and audit"):
            call()


def test_a_file_that_no_run_was_exported_to(tmp_path):
    model = softless.create_model("sima_deit_tiny_patch16_224", depth=1, embed_dim=32, num_heads=2)
    file = softless.export(model, "pt2", tmp_path / "files", size=32).path
    with pytest.raises(UsageError, match="exported from a model by itself"):
        eval_file(file, tmp_path)


def quick(folder: Path, name: str, **fields) -> Path:
    recipe = get_recipe(name).quick(folder / "data").with_fields(**{"amp": "none", **fields})
    fit(recipe, folder / "run", device="cpu", progress=False)
    return folder / "run"


def test_several_labels(tmp_path):
    run = quick(tmp_path, "multilabel")
    place = str(load_run(run).recipe.data.path)
    files = softless.export(run, "onnx", tmp_path / "files")
    assert files.ok, files
    assert files.files[0].measured.metric == "label_accuracy"
    expected = eval_file(run, amp="none", device="cpu").to_dict()
    measured = eval_file(files.path, place).to_dict()
    numbers = {name: value for name, value in expected.items() if isinstance(value, float)}
    assert numbers
    for name, value in numbers.items():
        assert measured[name] == pytest.approx(value, abs=1e-6), name
    predict(run, place, tmp_path / "one", amp="none", device="cpu", overlays=False)
    predict(files.path, place, tmp_path / "other", overlays=False)
    for one, other in zip(table(tmp_path / "one")[1:], table(tmp_path / "other")[1:], strict=True):
        assert one[:2] == other[:2]
        assert list(map(float, one[2:])) == pytest.approx(list(map(float, other[2:])), abs=1.1e-6)


def test_features_without_labels(tmp_path):
    run = quick(tmp_path, "dino")
    loaded = load_run(run)
    files = softless.export(run, "onnx", tmp_path / "files")
    assert files.ok, files
    assert "compared on noise" not in str(files)
    exported = softless.load_exported(files.path)
    assert exported.metadata.outputs == ("features",)
    images = torch.randn(3, loaded.in_chans, *loaded.pixels)
    with torch.no_grad():
        expected = loaded.model(images)
    torch.testing.assert_close(exported(images), expected, rtol=1e-4, atol=1e-5)
    scores = eval_file(run, knn=3, split="val", device="cpu").to_dict()
    measured = eval_file(files.path, loaded.recipe.data.path, knn=3, split="val").to_dict()
    assert measured["knn"] == scores["knn"]
    with pytest.raises(UsageError, match="learned features without labels"):
        predict(files.path, str(loaded.recipe.data.path), tmp_path / "out")


def test_a_detector(tmp_path):
    run = dense_run(tmp_path, "cards", model__op="sima", detection__min_score=0.0)
    place = Path(str(load_run(run).recipe.data.path))
    file = softless.export(run, "onnx", tmp_path / "files").path
    expected = eval_file(run, amp="none", device="cpu").to_dict()
    predict(run, place / "images" / "test", tmp_path / "one", amp="none", device="cpu")
    shutil.rmtree(run)
    measured = eval_file(file, place).to_dict()
    assert measured["box_ap"] == pytest.approx(expected["box_ap"], abs=1e-6)
    assert measured["per_class"] == expected["per_class"]
    answers = predict(file, place / "images" / "test", tmp_path / "other")
    assert answers.answers > 0
    one, other = (
        json.loads((tmp_path / who / "predictions.json").read_text()) for who in ("one", "other")
    )
    assert one["images"] == other["images"]
    assert one["categories"] == other["categories"]
    for mine, same in zip(one["annotations"], other["annotations"], strict=True):
        assert mine["category_id"] == same["category_id"]
        assert mine["bbox"] == pytest.approx(same["bbox"], abs=0.011)
        assert mine["score"] == pytest.approx(same["score"], abs=1.1e-5)


@pytest.mark.slow
def test_ranks_share_a_file(gone, tmp_path):
    file, folder, scores = gone
    command = [sys.executable, "-m", "softless", "eval", str(file), str(folder / "data"), "--json"]
    done = subprocess.run(
        [*command, "--ranks", "2"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["confusion"] == scores["confusion"]
