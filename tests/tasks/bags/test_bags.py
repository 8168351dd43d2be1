"""Bags: losses, draws, training, folds, eval, predict and page; what is wrong with data is said
before the first step.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

import softless
from softless.cli.main import main
from softless.errors import DataError, UsageError
from softless.evaluation.survival import cox_loss
from softless.experiment.bag_table import BagTableSpec
from softless.experiment.folder import RunFolder
from softless.recipes import get_recipe
from softless.tasks.bags.measure import BagEvaluation, read_predictions
from softless.tasks.bags.model import StandardisedLinear, bag_model
from softless.tasks.bags.samples import feature_scale
from softless.tasks.bags.transforms import Tiles, bag_pipeline, padded
from softless.tasks.loaded import load_run
from softless.tasks.table import open_task
from softless.training import fit
from tests.tasks.bags.making import SMALL, WIDTH, bags, read, table
from tests.training.test_loop import same, state, untimed


def recipe_of(folder: Path, listed: Path, **fields: Any):
    recipe = get_recipe("bags").with_fields(**{**dict(pair.split("=") for pair in SMALL), **fields})
    spec = recipe.table or BagTableSpec()
    return replace(
        recipe,
        data=replace(recipe.data, path=str(folder)),
        table=replace(spec, path=str(listed)),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("bags")
    folder, rows = bags(root)
    return folder, table(root / "slides.csv", rows), rows


@pytest.fixture(scope="module")
def trained(made, tmp_path_factory):
    folder, listed, _ = made
    root = tmp_path_factory.mktemp("folds")
    argv = ["train", "--recipe", "bags", "--data", str(folder), "--table", str(listed)]
    argv += ["--folds", "3", "--out", str(root / "run"), "--device", "cpu", "--set", *SMALL]
    assert main(argv) == 0
    return root / "run"


def test_every_slide_is_tested_once_and_patients_stay_whole(trained, made):
    rows = read(trained / "predictions.csv")
    assert sorted(row["slide"] for row in rows) == sorted(row[0] for row in made[2])
    whose = {row[0]: row[1] for row in made[2]}
    assert all(whose[row["slide"]] == row["patient"] for row in rows)
    assert {row["fold"] for row in rows} == {"0", "1", "2"}
    by_patient: dict[str, set[str]] = {}
    for row in rows:
        by_patient.setdefault(row["patient"], set()).add(row["fold"])
    assert all(len(folds) == 1 for folds in by_patient.values())
    for fold in range(3):
        parts: dict[str, set[str]] = {}
        for row in read(trained / f"fold{fold}/splits.csv"):
            parts.setdefault(row["group"], set()).add(row["part"])
        assert all(len(part) == 1 for part in parts.values())


def test_finished_folds_are_taken_up_again_and_replaced(trained, made, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    page = (folder / "report.html").read_bytes()
    assert main(["train", "--resume", "--out", str(folder)]) == 0
    assert (folder / "predictions.csv").read_bytes() == (trained / "predictions.csv").read_bytes()
    assert len((folder / "report.html").read_bytes()) == len(page)
    again = ["train", "--recipe", "bags", "--data", str(made[0]), "--table", str(made[1])]
    assert main([*again, "--folds", "3", "--out", str(folder)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*again, "--folds", "2", "--out", str(folder), "--overwrite", "--set", *SMALL]) == 0
    assert {row["fold"] for row in read(folder / "predictions.csv")} == {"0", "1"}
    assert not RunFolder(folder / "fold2").holds_run()


def test_the_numbers_of_all_folds_are_those_of_their_table(trained):
    rows = read(trained / "predictions.csv")
    together = json.loads((trained / "folds.json").read_text())["together"]
    names = sorted({row["patient"] for row in rows})
    chance = [
        np.mean([float(row["p malignant"]) for row in rows if row["patient"] == name])
        for name in names
    ]
    truth = [
        next(row["label"] == "malignant" for row in rows if row["patient"] == name)
        for name in names
    ]
    assert together["auc"] == pytest.approx(roc_auc_score(truth, chance))
    assert together["patients"] == 24
    assert together["auc"] > 0.7, "the bags can be told apart"
    low, high = together["intervals"]["auc_delong"] or (0, 1)
    assert low < together["auc"] <= high
    assert 0 <= together["sensitivity"] <= 1
    points = [
        json.loads((trained / f"fold{fold}/result.json").read_text())["test"]["at_threshold"]
        for fold in range(3)
    ]
    found = sum(point["malignant"]["found"] for point in points)
    assert together["sensitivity"] == pytest.approx(found / 12)


def test_eval_says_what_training_said_and_predict_what_eval(trained, made, tmp_path, capsys):
    run = trained / "fold1"
    result = json.loads((run / "result.json").read_text())["test"]
    capsys.readouterr()
    assert main(["eval", str(run), "--json", "--device", "cpu"]) == 0
    measured = json.loads(capsys.readouterr().out)
    for name in ("auc", "brier", "ece", "loss", "balanced_accuracy"):
        assert measured[name] == pytest.approx(result[name], rel=1e-6), name
    assert measured["at_threshold"] == result["at_threshold"]
    file = tmp_path / "all.csv"
    other = ["--data", str(made[0]), "--table", str(made[1]), "--predictions", str(file)]
    assert main(["eval", str(run), *other, "--device", "cpu"]) == 0
    output = capsys.readouterr()
    assert "24" in output.out
    assert "32 of 48 slides were in the training or validation part" in output.err
    assert main(["predict", str(run), str(made[0]), "--out", str(tmp_path / "answers")]) == 0
    answers = {row["slide"]: row for row in read(tmp_path / "answers/predictions.csv")}
    rows = read(file)
    assert len(rows) == len(answers) == 48
    for row in rows:
        answer = answers[row["slide"]]
        assert float(answer["p malignant"]) == pytest.approx(float(row["p malignant"]), abs=1e-6)
        assert answer["class"] == row["class"]


def test_the_page(trained):
    page = (trained / "fold0/report.html").read_text()
    for text in ("no medical device", "DeLong", "ROC curve", "Calibration", "Confusion", "Tiles"):
        assert text in page, text
    assert 'class="band"' in page
    whole = (trained / "report.html").read_text()
    for text in ("no medical device", "3 folds", "24 patients", "ROC curve", "Confusion", "Folds"):
        assert text in whole, text
    assert 'class="band"' in whole
    rows = read(trained / "fold0/tiles.csv")
    assert {row["end"] for row in rows} == {"highest", "lowest"}
    weights = [float(row["weight"]) for row in rows if row["slide"] == rows[0]["slide"]]
    assert max(weights) == weights[0]
    assert min(weights) == weights[len(weights) // 2]


def test_a_batch_is_its_bags_by_themselves():
    """The loss of padded bags is the mean of the single ones, whatever lies in the padding."""
    torch.manual_seed(0)
    model = bag_model("sima_bag_tiny", {"in_dim": WIDTH, "width": 16}, standardise=True).eval()
    several = [Tiles(torch.randn(n, WIDTH), torch.zeros(n, 0).double()) for n in (1, 4, 9)]
    features, _, mask = padded(several)
    features[~mask] = 1e6
    together = model(features, None, mask)
    alone = torch.cat([model(bag.features[None]) for bag in several])
    assert (together - alone).abs().max() <= 1e-6 * alone.abs().max()
    with torch.no_grad():
        wrong = model(features, None, None)
    assert (wrong - alone).abs().max() > 1e-2 * alone.abs().max(), "the mask has something to do"


def test_scaled_features_by_chunks_and_streamed(tmp_path):
    """What scales features is a part of the model wherever it is called."""
    torch.manual_seed(0)
    model: Any = bag_model("seqnorm_bag_tiny", {"in_dim": WIDTH, "width": 16}, standardise=True)
    model.embed.mean.copy_(torch.arange(WIDTH) * 10.0)
    model.embed.deviation.copy_(torch.arange(WIDTH) + 0.5)
    model.eval()
    features = 20 * torch.randn(40, WIDTH) + 10
    with torch.no_grad():
        whole = model(features[None])
        plain = F.linear((features - model.embed.mean) / model.embed.deviation, model.embed.weight)
        assert torch.allclose(model.embed(features), plain + model.embed.bias, atol=1e-5)
        model.chunk = 7
        chunked = model(features[None])
    streamed = softless.stream(model, softless.Bag.of(features), chunk=9).logits
    for other in (chunked, streamed):
        assert (other - whole).abs().max() <= 1e-5 * whole.abs().max()


def test_tiles_are_drawn_by_seed_epoch_and_index(made):
    recipe = recipe_of(made[0], made[1], **{"bags.tiles": 3})
    task = open_task(recipe)
    loader = task.train_loader(0, 1)
    dataset: Any = loader.dataset

    def drawn(epoch: int):
        loader.set_epoch(epoch)
        return {position: loader.dataset[position][0].features for position in (0, 1, 2)}

    first, again, later = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], later[k]) for k in first)
    assert all(len(tiles) == 3 for tiles in first.values())
    alone = dataset.__getitems__([2])[0][0].features
    assert torch.equal(alone, first[2]), "whatever is drawn beside it"
    whole = task.eval_loader(task.splits.val, 0, 1).dataset[0][0].features
    assert len(whole) == len(task.splits.val.image(0))


def test_scaled_features_give_the_same_model(tmp_path):
    """With `standardise` the unit of features does not matter, and the model takes raw ones."""
    logits = []
    for gain in (1.0, 200.0):
        folder, rows = bags(tmp_path / str(gain), 12, gain=gain)
        listed = table(tmp_path / f"{gain}.csv", rows)
        recipe = recipe_of(folder, listed, **{"schedule.epochs": 2})
        out = tmp_path / f"run{gain}"
        fit(recipe, out, device="cpu", progress=False)
        model = load_run(out).model
        assert isinstance(model.embed, StandardisedLinear)
        features = np.load(folder / "s00a.npz")["features"]
        with torch.no_grad():
            logits.append(model(torch.from_numpy(features)[None]))
    assert torch.allclose(logits[0], logits[1], atol=2e-3)


def test_the_published_model_takes_raw_features(trained, made):
    """The scale of features is in its first layer, and `create_model` knows no other."""
    run = trained / "fold0"
    own = load_run(run).model
    plain: Any = softless.create_model(f"local-dir:{run / 'model'}", pretrained=True)
    assert type(plain.embed) is torch.nn.Linear
    assert tuple(plain.pretrained_cfg["label_names"]) == ("benign", "malignant")
    features = torch.from_numpy(np.load(next(made[0].glob("*.npz")))["features"])[None]
    with torch.no_grad():
        answer, expected = plain.eval()(features.float()), own.eval()(features.float())
    assert (answer - expected).abs().max() <= 1e-5 * expected.abs().max()
    card = (run / "model/README.md").read_text()
    assert "`bags`" in card
    assert str(trained.parent) not in card


def assert_published_answers(run, folder, place, columns):
    """The published folder of a run answers as the run does."""
    for name, source in (("of_run", run), ("of_folder", run / "model")):
        assert main(["predict", str(source), str(folder), "--out", str(place / name)]) == 0
    ours, theirs = (read(place / name / "predictions.csv") for name in ("of_run", "of_folder"))
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a["slide"] == b["slide"]
        for column in columns:
            assert float(a[column]) == pytest.approx(float(b[column]), abs=1e-5)


def test_a_published_folder_stands_in_the_place_of_its_run(trained, made, tmp_path, capsys):
    run, folder, listed, _ = trained / "fold0", made[0], str(made[1]), made[2]
    assert_published_answers(run, folder, tmp_path, ("p benign", "p malignant"))
    areas = []
    for source in (run, run / "model"):
        capsys.readouterr()
        words = ["eval", str(source), str(folder), "--table", listed, "--json", "--device", "cpu"]
        assert main(words) == 0
        areas.append(json.loads(capsys.readouterr().out)["auc"])
    assert areas[0] == pytest.approx(areas[1], abs=1e-6)


def test_a_part_that_the_table_does_not_declare_is_not_measured(trained, made, tmp_path, capsys):
    rows = [(slide, patient, label, "train") for slide, patient, label in made[2]]
    listed = table(tmp_path / "t.csv", rows, ("slide", "patient", "label", "split"))
    assert main(["eval", str(trained / "fold0"), str(made[0]), "--table", str(listed)]) == 2
    assert "declares train, and no test" in capsys.readouterr().err


def test_the_scale_is_numpy_s(made):
    task = open_task(recipe_of(made[0], made[1]))
    train = task.splits.train
    tiles = np.concatenate([np.asarray(train.image(k).features[:]) for k in range(len(train))])
    mean, deviation = feature_scale(train)
    assert mean == pytest.approx(tiles.mean(0), abs=1e-5)
    assert deviation == pytest.approx(tiles.std(0), rel=1e-5)


def test_several_labels(made, tmp_path):
    folder, _, rows = made
    listed = table(
        tmp_path / "labels.csv",
        [
            (slide, patient, int(name == "malignant"), int(patient[-1] in "0369"))
            for slide, patient, name in rows
        ],
        ("slide", "patient", "tumour", "other"),
    )
    recipe = recipe_of(
        folder,
        listed,
        **{"table.label": "tumour,other", "class_weights": "balanced", "bags.smoothing": 0},
    )
    result = fit(recipe, tmp_path / "run", device="cpu", progress=False)
    assert result.test is None
    task = open_task(recipe)
    assert task.kind == "several"  # type: ignore[attr-defined]
    logits, targets = torch.randn(4, 2), torch.tensor([[0, 1], [1, 0], [1, 1], [0, 0]])
    expected = F.binary_cross_entropy_with_logits(
        logits,
        targets.float(),
        pos_weight=task.weight,  # type: ignore[attr-defined]
    )
    assert torch.allclose(task.loss(logits, targets), expected)  # type: ignore[attr-defined]
    assert (
        main([
            "eval",
            str(tmp_path / "run"),
            "--split",
            "val",
            "--predictions",
            str(tmp_path / "p.csv"),
        ])
        == 0
    )
    stored = read_predictions(tmp_path / "p.csv")
    assert stored.kind == "several"
    assert stored.classes == ("tumour", "other")
    assert stored.targets.shape == stored.answers.shape
    assert_published_answers(tmp_path / "run", folder, tmp_path, ("p tumour", "p other"))


def test_survival(made, tmp_path):
    folder, _, rows = made
    rng = np.random.default_rng(0)
    times = {
        patient: rng.exponential() * (0.3 if name == "malignant" else 3)
        for _, patient, name in rows
    }
    listed = table(
        tmp_path / "survival.csv",
        [
            (slide, patient, times[patient], int(patient[-1] not in "05"))
            for slide, patient, _ in rows
        ],
        ("slide", "patient", "days", "dead"),
    )
    fields = {
        "table.time": "days",
        "table.event": "dead",
        "metric": "concordance",
        "batch_size": 16,
    }
    recipe = recipe_of(folder, listed, **fields, **{"data.folds": 2, "data.fold": 0})
    result = fit(recipe, tmp_path / "run", device="cpu", progress=False)
    assert result.test is not None
    assert result.test["concordance"] > 0.6
    assert result.test["unit"] == "bags"
    stored = read_predictions(tmp_path / "run/predictions.csv")
    assert stored.kind == "survival"
    outcome = stored.per_patient()
    assert outcome.to_dict()["concordance"] == pytest.approx(result.test["concordance"])
    task = open_task(recipe)
    logits, targets = torch.randn(5, 1), torch.tensor([[1.0, 1], [2, 0], [2, 1], [0.5, 1], [3, 0]])
    expected = cox_loss(logits[:, 0], targets[:, 0], targets[:, 1] > 0)
    assert torch.allclose(task.loss(logits, targets), expected)  # type: ignore[attr-defined]
    softless.tasks.page.write([tmp_path / "run"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Survival" in page
    assert "no medical device" in page
    with pytest.raises(UsageError, match="metric=auc: the table has survival times"):
        open_task(replace(recipe, metric="auc"))
    with pytest.raises(UsageError, match="accumulate=2 cuts the batch"):
        open_task(replace(recipe, accumulate=2, batch_size=4))
    assert main(["predict", str(tmp_path / "run"), str(folder), "--out", str(tmp_path / "a")]) == 0
    assert len(read(tmp_path / "a/predictions.csv")) == 48


def test_positions_are_given_in_micrometres(made, tmp_path):
    fields = {"bags.position": "fourier", "bags.unit": "um", "bags.tile": 100, "schedule.epochs": 1}
    recipe = recipe_of(made[0], made[1], **fields)
    fit(recipe, tmp_path / "run", device="cpu", progress=False)
    bare = {"bags.position": "fourier", "schedule.epochs": 1}
    with pytest.raises(DataError, match="unit"):
        fit(recipe_of(made[0], made[1], **bare), tmp_path / "other", device="cpu", progress=False)
    assert not (tmp_path / "other").exists()
    pipeline = bag_pipeline(positions=True)
    task = open_task(recipe)
    bag = task.splits.train.image(0)
    tiles, _ = pipeline((bag, 0))
    assert tiles.coords.numpy() == pytest.approx(bag.coords_um)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda file: np.savez(file, features=np.full((3, WIDTH), np.nan)), "NaN"),
        (lambda file: np.savez(file, features=np.zeros((0, WIDTH), np.float32)), "tiles"),
        (lambda file: np.savez(file, features=np.zeros((3, WIDTH + 1), np.float32)), "features"),
        (lambda file: file.write_bytes(file.read_bytes()[:-40]), "s03b"),
        (lambda file: file.unlink(), "s03b"),
    ],
)
def test_faults_of_bags_are_said_before_the_first_step(tmp_path, spoil, said):
    folder, rows = bags(tmp_path, 12)
    listed = table(tmp_path / "slides.csv", rows)
    spoil(folder / "s03b.npz")
    with pytest.raises(DataError, match=said) as caught:
        fit(recipe_of(folder, listed), tmp_path / "run", device="cpu", progress=False)
    assert "s03b" in str(caught.value)
    assert not (tmp_path / "run").exists()
    if "read as npz" in str(caught.value):
        return  # such a file may hold any slides, so nothing can be left out
    skipping = recipe_of(folder, listed, **{"data.faults": "skip", "schedule.epochs": 1})
    result = fit(skipping, tmp_path / "run", device="cpu", progress=False)
    assert result.left_out == {"all": 1}


def test_what_does_not_go_together_is_refused(made):
    folder, listed, _ = made
    for fields, said in (
        ({"metric": "concordance"}, "set metric=auc"),
        ({"augment.hflip": 0.1}, "fields of augment are for images"),
        ({"data.image_size": 64}, "has no effect in bags"),
        ({"class_weights": "{other: 2}"}, "no class"),
    ):
        with pytest.raises(UsageError, match=said):
            open_task(recipe_of(folder, listed, **fields))
    image = recipe_of(folder, listed)
    image = replace(image, model=replace(image.model, name="sima_deit_tiny_patch16_224", args={}))
    with pytest.raises(UsageError):
        fit(image, folder.parent / "never", device="cpu", progress=False)
    assert not (folder.parent / "never").exists()


def test_declared_folds_and_splits(made, tmp_path):
    folder, _, rows = made
    listed = table(
        tmp_path / "folds.csv",
        [(*row, int(row[1][1:]) % 3) for row in rows],
        ("slide", "patient", "label", "fold"),
    )
    fields = {"table.fold": "fold", "data.folds": 3, "data.fold": 2}
    task = open_task(recipe_of(folder, listed, **fields))
    test = task.splits.test
    assert test is not None
    assert {int(str(group)[1:]) % 3 for group in test.groups.tolist()} == {2}  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="has the folds 0, 1, 2, and 4"):
        open_task(recipe_of(folder, listed, **{**fields, "data.folds": 4}))
    parts = ["train", "val", "test"]
    declared = table(
        tmp_path / "parts.csv",
        [(*row, parts[int(row[1][1:]) // 2 % 3]) for row in rows],
        ("slide", "patient", "label", "split"),
    )
    task = open_task(recipe_of(folder, declared))
    assert [len(task.splits.train), len(task.splits.val)] == [16, 16]


def test_an_answer_table_is_read_as_it_was_written(tmp_path):
    outcome = BagEvaluation(
        ("=a", "b"),
        ("p", "q"),
        np.array([[0.1, 2.0], [3.0, -1.0]], np.float32),
        np.array([1, 0]),
        ("=x", "y; z"),
        "class",
        2,
        (None, 0.5),
        (0, 1),
    )
    path = tmp_path / "predictions.csv"
    path.write_text(outcome.table())
    stored = read_predictions(path)
    assert stored.kind == "class"
    assert stored.classes == ("=x", "y; z")
    assert stored.targets.tolist() == [1, 0]
    assert stored.answers == pytest.approx(outcome.probabilities, abs=0)
    path.write_text(outcome.table().replace("p y", "q y"))
    with pytest.raises(DataError, match="cannot be read as the answers"):
        read_predictions(path)


def test_killed_for_good_it_goes_on_with_the_same_bits(made, tmp_path):
    """SIGKILL within an epoch of random tiles; resumed, every bit is that of one go."""
    fields = {"bags.tiles": 3, "schedule.epochs": 40, "ema_decay": 0.9, "ema_evaluate": True}
    whole = recipe_of(made[0], made[1], **fields, **{"save.every_steps": 1})
    fit(whole, tmp_path / "whole", device="cpu", progress=False)
    pairs = [pair for pair in SMALL if not pair.startswith(("ema", "schedule.epochs"))]
    words = ["train", "--recipe", "bags", "--data", str(made[0]), "--table", str(made[1])]
    words += ["--out", str(tmp_path / "cut"), "--device", "cpu", "--set", *pairs]
    words += [f"{name}={value}" for name, value in fields.items()] + ["save.every_steps=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "softless", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 120
    log = tmp_path / "cut/log.jsonl"
    while not log.exists() or log.read_text().count("\n") < 3:
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut/result.json").exists()
    fit(None, tmp_path / "cut", resume=True, device="cpu", progress=False)
    assert same(state(tmp_path / "whole"), state(tmp_path / "cut"))
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "cut")
    weights = [(tmp_path / name / "best.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]
