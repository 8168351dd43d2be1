"""Several labels an image: loss, measures, training, eval, predict, explain and page; what does
not go with them is refused by name."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import softless
from softless.cli.main import main
from softless.data import open_splits
from softless.errors import DataError, UsageError
from softless.experiment.groups import AugmentSpec, DataSpec
from softless.experiment.recipe import Recipe
from softless.recipes import get_recipe
from softless.tasks.multilabel.measure import LabelEvaluation, resampled, weighted_auc
from softless.tasks.multilabel.settings import MultilabelSpec
from softless.tasks.multilabel.task import Multilabel
from softless.tasks.weights import label_weights
from tests.data.making import labelled, medmnist, table

SMALL = [
    "model.args.embed_dim=32",
    "model.args.depth=2",
    "model.args.num_heads=2",
    "data.image_size=32",
    "batch_size=16",
    "schedule.epochs=4",
    "schedule.warmup_epochs=0",
    "schedule.min_epoch_steps=none",
    "schedule.min_steps=none",
    "ema_decay=none",
    "ema_evaluate=false",
    "threads=1",
    "optim.lr=3e-3",
    "augment.reprob=0",
    "augment.affine=none",
    "augment.hflip=0",
    "augment.color_jitter=none",
    "augment.scale=(1,1)",
]


def evaluation(n=60, labels=3, groups=None, seed=0):
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, labels)) < 0.4).astype(np.int64)
    logits = (rng.normal(size=(n, labels)) + targets).round(1).astype(np.float32)  # with ties
    return LabelEvaluation(logits, targets, n, tuple("abc"[:labels]), 0.5, groups)


def test_auc_is_scikit_learns():
    for seed in range(20):
        found = evaluation(seed=seed)
        expected = [roc_auc_score(found.targets[:, k], found.logits[:, k]) for k in range(3)]
        assert found.areas == pytest.approx(expected, abs=1e-9)
        assert found.auc == pytest.approx(
            roc_auc_score(found.targets, found.logits, average="macro"), abs=1e-9
        )


def test_weighted_auc_is_scikit_learns_with_weights():
    rng = np.random.default_rng(1)
    scores, truth, weights = (
        rng.normal(size=50).round(1),
        rng.integers(0, 2, 50),
        rng.integers(0, 4, (8, 50)),
    )
    found = weighted_auc(scores, truth, weights.astype(float))
    assert found == pytest.approx(
        [roc_auc_score(truth, scores, sample_weight=row) for row in weights], abs=1e-9
    )


def test_a_label_that_all_have_or_none_has_no_auc():
    found = evaluation()
    targets = found.targets.copy()
    targets[:, 1] = 0
    lacking = LabelEvaluation(found.logits, targets, 60, found.classes, 0.5)
    assert lacking.areas[1] is None
    assert lacking.intervals[1] is None
    assert lacking.auc == pytest.approx(np.mean([lacking.areas[0], lacking.areas[2]]))
    assert lacking.per_class()["sensitivity"]["b"] is None
    assert "all images have it, or none" in str(lacking)
    empty = LabelEvaluation(found.logits, np.zeros_like(targets), 60, found.classes, 0.5)
    assert (empty.auc, empty.interval) == (None, None)


def test_the_interval_holds_its_value_and_widens_with_groups():
    alone = evaluation(n=200)
    for one in alone.intervals:
        assert one is not None
        assert one.low < one.value < one.high
    logits, targets = np.repeat(alone.logits[:50], 4, 0), np.repeat(alone.targets[:50], 4, 0)
    twins = LabelEvaluation(logits, targets, 200, alone.classes, 0.5)
    groups = np.repeat(np.arange(50), 4)
    whole = LabelEvaluation(twins.logits, twins.targets, 200, alone.classes, 0.5, groups)
    assert twins.interval is not None
    assert whole.interval is not None
    widths = [np.ptp(one) for one in (twins.interval, whole.interval)]
    assert 1.6 < widths[1] / widths[0] < 2.4, "four copies of an image are one image: twice as wide"


def test_groups_are_drawn_whole():
    groups = np.array([*"aabbbc"], dtype=object)
    drawn = np.concatenate(list(resampled(6, groups, 50)))
    assert drawn.shape == (50, 6)
    assert (drawn[:, 0] == drawn[:, 1]).all()
    assert (drawn[:, 2] == drawn[:, 4]).all()
    assert (drawn[:, [0, 2, 5]].sum(1) == 3).all()


def test_rates_at_the_threshold():
    logits = np.array([[2.0], [-2.0], [0.5], [-0.5]], np.float32)
    found = LabelEvaluation(logits, np.array([[1], [1], [0], [0]]), 4, ("a",), 0.6).per_class()
    assert (found["sensitivity"]["a"], found["specificity"]["a"], found["precision"]["a"]) == (
        0.5,
        0.5,
        0.5,
    )
    stricter = LabelEvaluation(logits, np.array([[1], [1], [0], [0]]), 4, ("a",), 0.7).per_class()
    assert (
        stricter["sensitivity"]["a"],
        stricter["specificity"]["a"],
        stricter["precision"]["a"],
    ) == (0.5, 1.0, 1.0)


def task(smoothing=0.0, weights="none"):
    recipe = Recipe(
        "t",
        "",
        multilabel=MultilabelSpec(),
        augment=AugmentSpec(smoothing=smoothing, mixup=0, cutmix=0),
        class_weights=weights,
    )
    return Multilabel(recipe, ("a", "b"), np.array([[1, 0], [0, 1], [0, 1], [0, 1]]))


def test_the_loss_is_binary_cross_entropy_smoothed_and_weighted():
    logits, targets = torch.tensor([[0.3, -1.0], [2.0, 0.1]]), torch.tensor([[1, 0], [0, 1]])
    share = logits.double().sigmoid()

    def by_hand(y, w):
        return -(w * y * share.log() + (1 - y) * (1 - share).log()).mean().item()

    plain = task()
    assert plain.loss(logits, plain.soft(targets)).item() == pytest.approx(
        by_hand(targets, 1), rel=1e-6
    )
    smooth = task(smoothing=0.2)
    assert smooth.soft(targets).flatten().tolist() == pytest.approx([0.9, 0.1, 0.1, 0.9])
    assert smooth.loss(logits, smooth.soft(targets)).item() == pytest.approx(
        by_hand(targets * 0.8 + 0.1, 1), rel=1e-6
    )
    weighted = task(weights="balanced")
    assert weighted.weight is not None
    assert weighted.weight.tolist() == pytest.approx([3.0, 1 / 3])
    weight = torch.tensor([3.0, 1 / 3]).double()
    assert weighted.loss(logits, weighted.soft(targets)).item() == pytest.approx(
        by_hand(targets, weight), rel=1e-6
    )
    with pytest.raises(
        UsageError, match="balanced class weights need an image with every label; none has b"
    ):
        label_weights(np.array([[1, 0]]), ("a", "b"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of four labels, and its data."""
    root = tmp_path_factory.mktemp("labels")
    data = labelled(root / "four.npz")
    words = [
        "train",
        "--recipe",
        "medmnist",
        "--data",
        str(data),
        "--out",
        str(root / "run"),
        "--device",
        "cpu",
        "--set",
        *SMALL,
    ]
    assert main(words) == 0
    return root / "run", data


def test_a_run_of_several_labels(run, capsys):
    folder, data = run
    result = json.loads((folder / "result.json").read_text())
    with np.load(folder / "predictions.npz") as held:
        logits, targets = held["logits"], held["targets"]
    assert np.array_equal(targets, np.load(data)["test_labels"])
    expected = roc_auc_score(targets, logits, average=None)
    assert list(result["test"]["per_class"]["auc"].values()) == pytest.approx(expected, abs=1e-6)
    assert result["test"]["auc"] == pytest.approx(expected.mean(), abs=1e-6)
    assert result["metric"] == "auc"
    assert expected.mean() > 0.7, "it has learnt something"
    lines = [
        json.loads(line)["val"]["auc"] for line in (folder / "log.jsonl").read_text().splitlines()
    ]
    assert result["best_epoch"] - 1 == int(np.argmax(lines))
    low, high = result["test"]["interval"]
    assert low < result["test"]["auc"] < high
    assert json.loads((folder / "classes.json").read_text()) == ["0", "1", "2", "3"]
    recipe = json.loads((folder / "recipe.json").read_text())
    assert (recipe["multilabel"], recipe["metric"]) == ({"threshold": 0.5}, "auc")


def test_its_page(run):
    page = (run[0] / "report.html").read_text()
    assert "mean AUC of the labels on test images" in page
    assert "each label on the test images" in page
    assert 'class="sample"' in page
    assert "no label" in page or "labels that are right" in page


def test_eval_gives_the_same_numbers(run, tmp_path, capsys):
    folder, _ = run
    result = json.loads((folder / "result.json").read_text())
    assert main(["eval", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["auc"] == result["test"]["auc"]
    assert told["per_class"] == result["test"]["per_class"]
    assert main(["eval", str(folder), "--split", "val"]) == 0
    assert "mean AUC" in capsys.readouterr().out
    other = medmnist(
        tmp_path / "one.npz",
        train_labels=np.arange(12) % 4,
        val_labels=None,
        val_images=None,
        test_labels=np.arange(9) % 4,
    )
    assert main(["eval", str(folder), str(other)]) == 2
    assert "has one label an image, and the run" in capsys.readouterr().err
    assert main(["eval", str(folder), "--knn", "3"]) == 2
    assert "vote for single ones" in capsys.readouterr().err


def test_predict_says_each_labels_probability_and_those_from_the_threshold_on(
    run, tmp_path, capsys
):
    folder, data = run
    assert main(["predict", str(folder), str(data), str(tmp_path / "out"), "--no-overlays"]) == 0
    with (tmp_path / "out/predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 48 + 24 + 32
    with np.load(folder / "predictions.npz") as held:
        shares = 1 / (1 + np.exp(-held["logits"].astype(np.float64)))
    tested = [row for row in rows if row["file"].startswith("test/")]
    assert np.array([[float(row[str(k)]) for k in range(4)] for row in tested]) == pytest.approx(
        shares, abs=1e-5
    )
    assert [row["predicted"] for row in tested] == [
        "; ".join(str(k) for k in range(4) if row[k] >= 0.5) for row in shares
    ]


def test_explain_looks_at_it(run, tmp_path):
    folder, _ = run
    small = labelled(tmp_path / "few.npz", {"test": 3})
    assert main(["explain", str(folder), str(small), "--out", str(tmp_path / "maps")]) == 0
    assert sorted(path.name for path in (tmp_path / "maps/test").iterdir()) == [
        "0.png",
        "1.png",
        "2.png",
    ]


@pytest.mark.extra
def test_resume_is_the_same_run(run, tmp_path):
    folder, data = run
    fields = [field for field in SMALL if not field.startswith("schedule.epochs")]
    softless.train(
        "medmnist",
        data=data,
        out=tmp_path / "run",
        device="cpu",
        set=[*fields, "schedule.epochs=4"],
    )
    again = softless.train(out=folder, resume=True, device="cpu")
    assert (tmp_path / "run/best.safetensors").read_bytes() == (
        folder / "best.safetensors"
    ).read_bytes()
    assert again.test is not None


def test_a_table_of_several_labels(tmp_path, capsys):
    rows = [(f"images/{n}.png", n % 2, n // 2 % 2, f"p{n // 4}") for n in range(48)]
    path = table(tmp_path, rows, "file,mass,edema,patient")
    words = [
        "train",
        "--table",
        str(path),
        "--out",
        str(tmp_path / "run"),
        "--device",
        "cpu",
        "--set",
        *SMALL,
        "schedule.epochs=1",
    ]
    words.remove("schedule.epochs=4")
    assert main([*words, "table.label=mass,edema", "ema_decay=none"]) == 0
    said = capsys.readouterr()
    assert (
        "the images have several labels each: metric=auc, augment.mixup=0.0, augment.cutmix=0.0 "
        "in place of" in said.err
    )
    assert main(["eval", str(tmp_path / "run"), "--table", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["seen"], told["classes"]) == (48, ["mass", "edema"])
    assert json.loads((tmp_path / "run/classes.json").read_text()) == ["mass", "edema"]
    with (tmp_path / "run/splits.csv").open(newline="") as file:
        parts = {
            part: {
                row["group"]
                for row in csv.DictReader(file.read().splitlines())
                if row["part"] == part
            }
            for part in ("train",)
        }
    assert parts["train"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            ["augment.mixup=0.2"],
            "mix images of one label each, and these have several: set both to 0",
        ),
        (
            ["augment.cutmix=0.2"],
            "mix images of one label each, and these have several: set both to 0",
        ),
        (["metric=top1"], "no measure of multilabel named 'top1'"),
        (["multilabel.threshold=1"], "multilabel.threshold=1 is out of range"),
    ],
)
def test_what_does_not_go_with_several_labels(tmp_path, capsys, fields, message):
    data = labelled(tmp_path / "four.npz")
    words = [
        "train",
        "--recipe",
        "medmnist",
        "--data",
        str(data),
        "--out",
        str(tmp_path / "run"),
        "--set",
        *SMALL,
        *fields,
    ]
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_labels_that_are_neither_0_nor_1(tmp_path):
    told = np.zeros((48, 4), np.int64)
    told[0] = 1
    told[3, 2] = -1
    path = labelled(tmp_path / "four.npz", train_labels=told)
    spec = DataSpec("npz", str(path), in_chans=1)
    with pytest.raises(
        DataError, match="train/3: one of its labels is -1, and each of several labels is 0 or 1"
    ):
        open_splits(spec, 0)
    floats = told.astype(np.float32)
    floats[3, 2] = 0.5
    with pytest.raises(DataError, match=r"one of its labels is 0\.5"):
        open_splits(
            DataSpec("npz", str(labelled(tmp_path / "f.npz", train_labels=floats)), in_chans=1), 0
        )
    floats[3, 2] = 1.0
    whole = open_splits(
        DataSpec("npz", str(labelled(tmp_path / "g.npz", train_labels=floats)), in_chans=1), 0
    )
    assert whole.train.targets.tolist() == floats.tolist()
    with pytest.raises(DataError, match="val_labels have shape"):
        open_splits(
            DataSpec(
                "npz",
                str(labelled(tmp_path / "h.npz", val_labels=np.zeros((24, 3), int))),
                in_chans=1,
            ),
            0,
        )


def test_a_label_that_is_the_same_everywhere(tmp_path):
    told = np.load(labelled(tmp_path / "four.npz"))["train_labels"].copy()
    told[:, 3] = 0
    path = labelled(tmp_path / "same.npz", train_labels=told)
    recipe = Recipe(
        "t", "", data=DataSpec("npz", str(path), in_chans=1), multilabel=MultilabelSpec()
    )
    with pytest.raises(
        DataError, match="all training images have the same value of 3: there is nothing to learn"
    ):
        Multilabel.open(recipe)
    assert main(["data", "check", str(path)]) == 1


def test_one_label_where_several_are_meant_and_the_other_way_round(tmp_path, caplog):
    several = Recipe(
        "t",
        "",
        data=DataSpec("npz", str(medmnist(tmp_path / "one.npz")), in_chans=1),
        multilabel=MultilabelSpec(),
    )
    with pytest.raises(UsageError, match="multilabel is for data with several labels an image"):
        Multilabel.open(several)
    hot = np.eye(4, dtype=np.uint8)[np.arange(48) % 4]
    open_splits(
        DataSpec("npz", str(labelled(tmp_path / "hot.npz", train_labels=hot)), in_chans=1), 0
    )
    assert "each training image has exactly one of 4 labels" in caplog.text


def test_a_check_of_an_npz_of_several_labels(tmp_path, capsys):
    assert main(["data", "check", str(labelled(tmp_path / "four.npz"))]) == 0
    assert "four.npz (npz): 104 images seen, 104 good" in capsys.readouterr().out
    told = np.load(tmp_path / "four.npz")["test_labels"].copy()
    told[5, 1] = 7
    assert main(["data", "check", str(labelled(tmp_path / "bad.npz", test_labels=told))]) == 1
    assert "test/5: one of its labels is 7" in capsys.readouterr().out


def test_the_quick_run(tmp_path: Path):
    recipe = get_recipe("multilabel")
    found = softless.train(recipe.quick(tmp_path / "data"), out=tmp_path / "run", device="cpu")
    assert found.test is not None
    assert found.test["seen"] == 8
