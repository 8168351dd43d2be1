"""`eval` and `predict`, as functions."""

import csv
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from softless.cli.eval import eval as eval_run
from softless.cli.main import main
from softless.cli.predict import predict
from softless.data import open_splits
from softless.errors import DataError, UsageError
from softless.experiment.groups import DataSpec
from softless.models import create_model
from softless.prediction.results import picture_names
from tests.data.making import class_folders, medmnist, noise, split_folders
from tests.evaluation.runs import run_folder

CLASSES = ("cat", "dog")


@pytest.fixture
def world(tmp_path):
    """A data folder with splits and a run over it."""
    split_folders(
        tmp_path / "data", {p: {"cat": n, "dog": n} for p, n in (("train", 6), ("test", 4))}
    )
    data = DataSpec(source="folder", path=str(tmp_path / "data"), image_size=16, val_fraction=0.5)
    run_folder(tmp_path / "run", CLASSES, data)
    return tmp_path


def test_eval_of_each_split(world):
    outcome = eval_run(world / "run", device="cpu")
    assert (outcome.split, outcome.evaluation.seen) == ("the test split", 8)
    assert eval_run(world / "run", split="val", device="cpu").evaluation.seen == 6
    assert eval_run(world / "run", split="train", device="cpu").evaluation.seen == 6
    content = json.loads(json.dumps(outcome.to_dict()))
    assert content["data"] == str(world / "data")
    assert content["expected"] == 8
    text = str(outcome)
    assert "the test split of" in text
    assert "truth \\ said" in text
    assert text.splitlines()[-1].split()[0] == "dog"


def test_eval_in_batches_and_workers_is_the_same(world):
    one = eval_run(world / "run", device="cpu").evaluation
    other = eval_run(world / "run", device="cpu", batch_size=3).evaluation
    np.testing.assert_allclose(one.logits, other.logits, rtol=1e-5, atol=1e-6)


def test_eval_on_other_images(world):
    class_folders(world / "mine", {"cat": 3, "dog": 2})
    outcome = eval_run(world / "run", world / "mine", device="cpu")
    assert (outcome.split, outcome.evaluation.seen) == ("all images", 5)
    class_folders(world / "birds", {"cat": 3, "duck": 2})
    with pytest.raises(
        DataError, match=r"birds are not those of the run .*\(missing: dog; extra: duck\)"
    ):
        eval_run(world / "run", world / "birds", device="cpu")
    with pytest.raises(DataError, match="no data folder at"):
        eval_run(world / "run", world / "nowhere", device="cpu")


def test_eval_on_some_of_the_classes(world, caplog):
    """By name: the second class of the run is the first of the data; what is absent has no
    recall.
    """
    data = DataSpec(source="folder", path=str(world / "three"), image_size=16)
    run_folder(world / "of_three", ("ape", "cat", "dog"), data)
    class_folders(world / "mine", {"cat": 3, "dog": 2})
    with caplog.at_level("WARNING"):
        found = eval_run(world / "of_three", world / "mine", device="cpu").evaluation
    assert "mine has no images of ape: the numbers are of the other classes" in caplog.text
    assert found.targets.tolist() == [1, 1, 1, 2, 2]
    told = found.to_dict()
    assert told["per_class"]["recall"]["ape"] is None
    assert told["balanced_accuracy"] == pytest.approx(
        np.mean([told["per_class"]["recall"][one] for one in ("cat", "dog")])
    )


def test_eval_of_an_npz_run_elsewhere(tmp_path):
    medmnist(tmp_path / "toy.npz")
    data = DataSpec(source="npz", path="gone.npz", in_chans=1, image_size=16)
    run_folder(tmp_path / "run", ("0", "1", "2"), data)
    assert eval_run(tmp_path / "run", tmp_path, device="cpu").evaluation.seen == 9
    assert (
        eval_run(tmp_path / "run", tmp_path / "toy.npz", split="val", device="cpu").evaluation.seen
        == 6
    )
    with pytest.raises(DataError, match=r"are not at gone\.npz"):
        eval_run(tmp_path / "run", device="cpu")


def test_eval_asked_for_what_is_not_there(world, tmp_path):
    with pytest.raises(UsageError, match=r"no split named 'tset'\. Did you mean 'test'"):
        eval_run(world / "run", split="tset", device="cpu")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="batch_size=0"):
        eval_run(world / "run", batch_size=0, device="cpu")
    with pytest.raises(UsageError, match="no device named 'gpu'"):
        eval_run(world / "run", device="gpu")
    flat = DataSpec(
        source="folder",
        path=str(class_folders(tmp_path / "flat", {"cat": 3, "dog": 3})),
        image_size=16,
    )
    run_folder(tmp_path / "other", CLASSES, flat)
    with pytest.raises(DataError, match="flat has no test split: choose --split val"):
        eval_run(tmp_path / "other", device="cpu")


def test_frozen_features_of_a_classifier(world):
    """A classifier's features answer by their neighbours and by a line; the whole train folder is
    the bank.
    """
    outcome = eval_run(
        world / "run", knn=3, linear=True, set=["views=fixed", "epochs=2", "batch=4"], device="cpu"
    )
    by_neighbours, by_line = outcome.probes
    assert (by_neighbours.measure, by_neighbours.train_images, by_neighbours.width) == (
        "knn",
        12,
        16,
    )
    assert (by_line.measure, by_line.train_images, by_line.width) == ("linear", 12, 32)
    assert len(by_neighbours.targets) == len(by_line.targets) == 8
    content = json.loads(json.dumps(outcome.to_dict()))
    assert content["knn"]["knn"] == by_neighbours.accuracy
    assert (
        content["linear"]["interval"][0]
        <= content["linear"]["linear"]
        <= content["linear"]["interval"][1]
    )
    text = str(outcome)
    assert "3-NN" in text
    assert "SGD, lr 0.001 at a batch of 256, batch 4, 2 epochs, fixed views" in text
    assert "95 % interval" in text
    validation = eval_run(world / "run", knn=3, split="val", device="cpu").probes[0]
    assert (validation.train_images, len(validation.targets)) == (6, 6)


def test_frozen_features_of_other_classes(world):
    split_folders(
        world / "birds",
        {p: {"duck": n, "owl": n, "wren": n} for p, n in (("train", 4), ("test", 2))},
    )
    probe = eval_run(world / "run", world / "birds", knn=2, device="cpu").probes[0]
    assert probe.classes == ("duck", "owl", "wren")
    class_folders(world / "flat", {"cat": 3, "dog": 2})
    with pytest.raises(UsageError, match="flat has all and --split test was asked for"):
        eval_run(world / "run", world / "flat", knn=2, device="cpu")
    with pytest.raises(UsageError, match="99 nearest of 12 training images"):
        eval_run(world / "run", knn=99, device="cpu")
    with pytest.raises(UsageError, match="give --linear too"):
        eval_run(world / "run", knn=2, set=["lr=1"], device="cpu")
    with pytest.raises(
        UsageError, match=r"no field of the linear classifier named 'lrr'\. Did you mean 'lr'"
    ):
        eval_run(world / "run", linear=True, set=["lrr=1"], device="cpu")
    with pytest.raises(
        UsageError, match="epochs=many does not fit: the field takes a whole number"
    ):
        eval_run(world / "run", linear=True, set=["epochs=many"], device="cpu")


def test_a_run_of_dino_is_measured_by_its_neighbours_and_names_nothing(tmp_path):
    split_folders(
        tmp_path / "data", {p: {"cat": n, "dog": n} for p, n in (("train", 12), ("test", 4))}
    )
    data = DataSpec(source="folder", path=str(tmp_path / "data"), image_size=16)
    args: dict[str, Any] = {
        "op": "sima",
        "img_size": 16,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "in_chans": 3,
        "num_classes": 0,
    }
    folder = run_folder(tmp_path / "run", CLASSES, data, **dino_of(args))
    save_file(create_model("xcit_nano_12_p8_224", **args).state_dict(), folder / "best.safetensors")
    outcome = eval_run(folder, device="cpu")
    assert [probe.measure for probe in outcome.probes] == ["knn"]
    assert "20-NN" in str(outcome)
    assert eval_run(folder, linear=True, set=["epochs=1"], device="cpu").probes[0].width == 64
    with pytest.raises(UsageError, match="learned features without labels"):
        predict(folder, tmp_path / "data" / "test", tmp_path / "out", device="cpu")


def dino_of(args):
    return {"task": "dino", "architecture": "xcit_nano_12_p8_224", "model_args": args}


def test_a_detector_or_segmenter_is_measured_by_its_own_task(world, monkeypatch):
    """Against the contract alone: the recipe is rebuilt, its data read elsewhere, scaled as the run
    was.
    """
    import softless.tasks.loaded

    loaded = softless.tasks.loaded.load_run(world / "run")
    seen: dict[str, Any] = {}

    class Outcome:
        def to_dict(self):
            return {"miou": 0.5}

        def __str__(self):
            return "mIoU 0.5"

    class Stand:
        def __init__(self, recipe):
            self.recipe, self.splits = recipe, open_splits(recipe.data, recipe.seed)

        def with_classes(self, classes, _):
            assert classes == loaded.classes
            return self

        def to(self, _):
            return self

        def eval_loader(self, samples, *_):
            return samples

        def evaluate(self, model, loader, **_):
            seen.update(model=model, images=len(loader), recipe=self.recipe)
            return Outcome()

        def decided(self, outcome, _):
            return outcome

    dense = replace(loaded, best={**loaded.best, "task": "segmentation"})
    monkeypatch.setattr("softless.cli.eval.run_or_file", lambda *_: dense)
    monkeypatch.setattr("softless.tasks.table.open_task", Stand)
    split_folders(
        world / "other", {p: {"cat": n, "dog": n} for p, n in (("train", 5), ("test", 3))}
    )
    outcome = eval_run(world / "run", world / "other", device="cpu", workers=0)
    assert str(outcome).endswith("mIoU 0.5")
    assert outcome.to_dict()["miou"] == 0.5
    assert seen["images"] == 6
    assert seen["model"] is loaded.model
    assert seen["recipe"].data.mean == (0.5, 0.5, 0.5)
    assert seen["recipe"].batch_size == 1024
    with pytest.raises(UsageError, match="a run of segmentation: frozen features"):
        eval_run(world / "run", knn=5, device="cpu")


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_predict_writes_a_table(world):
    images = world / "data" / "test"
    noise(50, 40, "L").save(images / "grey, with a comma.png")
    outcome = predict(
        world / "run", images, world / "out", overlays=False, device="cpu", batch_size=4
    )
    header, *body = rows(outcome.csv)
    assert header == ["file", "predicted", "cat", "dog"]
    assert [row[0] for row in body] == [
        *(f"cat/0{i}.png" for i in range(4)),
        *(f"dog/0{i}.png" for i in range(4)),
        "grey, with a comma.png",
    ]
    for row in body:
        cat, dog = map(float, row[2:])
        assert cat + dog == pytest.approx(1, abs=2e-6)
        assert row[1] == ("cat" if cat >= dog else "dog")
    assert (outcome.images, sum(outcome.counts.values()), outcome.overlays) == (9, 9, None)
    assert sorted(p.name for p in (world / "out").iterdir()) == ["predictions.csv", "written.json"]
    assert json.loads(json.dumps(outcome.to_dict()))["images"] == 9
    assert "9 images, computed in float32: " in str(outcome)


def test_a_table_of_slides_is_refused_of_a_run_of_images(world, tmp_path):
    with pytest.raises(UsageError, match="--predictions is a table of slides"):
        eval_run(world / "run", predictions=tmp_path / "answers.csv", device="cpu")


def test_predictions_are_those_of_eval(world):
    e = eval_run(world / "run", device="cpu").evaluation
    outcome = predict(
        world / "run", world / "data" / "test", world / "out", overlays=False, device="cpu"
    )
    said = [row[1] for row in rows(outcome.csv)[1:]]
    assert said == [CLASSES[i] for i in e.logits.argmax(1)]


def test_predict_one_image_with_its_maps(world):
    outcome = predict(
        world / "run", world / "data" / "test" / "dog" / "01.png", world / "out", device="cpu"
    )
    assert outcome.overlays is not None
    assert [row[0] for row in rows(outcome.csv)] == ["file", "01.png"]
    with Image.open(outcome.overlays / "01.png") as picture:
        assert picture.mode == "RGB"
        assert picture.width > 2 * picture.height
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 100


def test_maps_keep_the_folders(world):
    outcome = predict(world / "run", world / "data" / "test", world / "out", device="cpu")
    assert outcome.overlays is not None
    drawn = sorted(
        p.relative_to(outcome.overlays).as_posix() for p in outcome.overlays.rglob("*.png")
    )
    assert drawn == [f"{name}/0{i}.png" for name in CLASSES for i in range(4)]


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_answered(world, capsys):
    images, out = world / "data" / "test", world / "out"
    whole = predict(world / "run", images, world / "whole", overlays=False, device="cpu")
    cut = images / "cat" / "01.png"
    cut.write_bytes(cut.read_bytes()[:60])
    (images / "dog" / "empty.jpg").touch()
    code = main(["predict", str(world / "run"), str(images), "--out", str(out), "--device", "cpu"])
    said = capsys.readouterr().out
    assert code == 4
    assert "7 images, computed in float32" in said
    assert "2 images cannot be read and so have no answer:\n  cat/01.png: " in said
    assert "dog/empty.jpg: " in said
    assert rows(out / "predictions.csv") == [
        row for row in rows(whole.csv) if row[0] != "cat/01.png"
    ]
    assert len(list((out / "saliency").rglob("*.png"))) == 7
    told = predict(world / "run", images, out, overlays=False, device="cpu").to_dict()
    assert [name for name, _ in told["unread"]] == ["cat/01.png", "dog/empty.jpg"]


def test_where_no_image_can_be_read_nothing_is_written(world):
    (world / "bad").mkdir()
    for name in "ab":
        (world / "bad" / f"{name}.png").write_text("text")
    with pytest.raises(DataError, match=r"a\.png.*; none of the 2 images there can be read"):
        predict(world / "run", world / "bad", world / "out", device="cpu")
    assert not (world / "out").exists()


def test_results_inside_the_images_are_no_images(world, caplog):
    """A second run, with fewer images, counts none of the first's pictures and leaves none of
    them.
    """
    images, out = world / "data" / "test", world / "data" / "test" / "out"
    assert predict(world / "run", images, out, device="cpu").images == 8
    (images / "dog" / "03.png").unlink()
    again = predict(world / "run", images, out, device="cpu")
    assert (again.images, sum(again.counts.values())) == (7, 7)
    assert len(list((out / "saliency").rglob("*.png"))) == 7
    assert "8 images in" in caplog.text
    assert "left out: it is the folder for the results" in caplog.text
    predict(world / "run", images / "cat", out, overlays=False, device="cpu")
    assert not (out / "saliency").exists()
    (out / "mine.txt").write_text("kept")
    predict(world / "run", images / "cat", out, overlays=False, device="cpu")
    assert sorted(path.name for path in out.iterdir()) == [
        "mine.txt",
        "predictions.csv",
        "written.json",
    ]


def test_results_never_lie_among_the_images(world):
    images = world / "data" / "test" / "dog"
    before = {path: path.read_bytes() for path in images.iterdir()}
    with pytest.raises(UsageError, match=r"is the folder of the images: give a folder of its own"):
        predict(world / "run", images, images, device="cpu")
    (world / "saliency").mkdir()
    noise().save(world / "saliency" / "a.png")
    with pytest.raises(
        UsageError, match=r"saliency/a\.png is an image to be read and would be overwritten"
    ):
        predict(world / "run", world / "saliency", world, device="cpu")
    assert {path: path.read_bytes() for path in images.iterdir()} == before
    (world / "out").mkdir()
    (world / "out" / "written.json").write_text('{"predict": ["../data"]}')
    with pytest.raises(UsageError, match=r"written\.json lists no results of softless"):
        predict(world / "run", images, world / "out", device="cpu")


def test_pictures_are_named_like_their_images(world):
    assert picture_names(["x/a.jpg", "x/b.png", "a.tif"]) == ["x/a.png", "x/b.png", "a.png"]
    assert picture_names(["a.jpg", "a.png", "b.png"]) == ["a.jpg.png", "a.png.png", "b.png"]
    assert picture_names(["A.jpg", "a.png"]) == ["A.jpg.png", "a.png.png"], (
        "one file where case does not count"
    )
    both = picture_names(["a.jpg", "a.png", "a.jpg.png"])
    assert len(set(both)) == 3


def test_predict_with_bad_input(world):
    with pytest.raises(DataError, match=r"no images at .*nowhere"):
        predict(world / "run", world / "nowhere", world / "out", device="cpu")
    (world / "empty").mkdir()
    with pytest.raises(DataError, match=r"no images in .*empty or below \(\.bmp"):
        predict(world / "run", world / "empty", world / "out", device="cpu")
    with pytest.raises(DataError, match="no run folder"):
        predict(world / "missing", world / "data", world / "out", device="cpu")
    (world / "file").write_text("x")
    with pytest.raises(UsageError, match=r"cannot make the folder .*file: File exists"):
        predict(world / "run", world / "data", world / "file", device="cpu")
    with pytest.raises(UsageError, match="batch_size=0"):
        predict(world / "run", world / "data", world / "out", device="cpu", batch_size=0)
