"""Segmentation as a task: its loss, its measures against counting by hand, a whole run, its
predictions and its page.
"""

import io
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix

import softless
from softless.cli.eval import eval as eval_run
from softless.cli.predict import predict
from softless.errors import DataError, UsageError
from softless.experiment.groups import AugmentSpec
from softless.recipes import get_recipe
from softless.tasks.loaded import assemble, load_run
from softless.tasks.page import write
from softless.tasks.segmentation.measure import Scores, Tally, confusion_of, evaluate
from softless.tasks.segmentation.samples import IGNORE
from softless.tasks.segmentation.task import PixelLoss, Segmentation
from softless.tasks.segmentation.values import read_values
from softless.tasks.table import open_task
from softless.training import fit
from softless.training.optim import scheduler
from tests.processes import run_ranks
from tests.tasks.segmentation.labelled import label_of, label_set, segmentation_recipe
from tests.training.test_world import logged

TWO = str(Path(__file__).parents[2] / "training/rank.py")
TRAINED = {"schedule.epochs": 12, "batch_size": 1, "optim.lr": 1e-2, "segmentation.ignore": ()}
SIZES = ((48, 64), (64, 48), (40, 40))


def opened(root: Path, **fields) -> Segmentation:
    task = open_task(segmentation_recipe(label_set(root, SIZES), fields))
    assert isinstance(task, Segmentation)
    return task


def built(task: Segmentation) -> torch.nn.Module:
    torch.manual_seed(0)
    return assemble("segmentation", **task.construction())


def test_the_loss_of_an_image_by_hand():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 4, 5), torch.randint(0, 2, (4, 5)).byte()
    labels[0, :3] = IGNORE
    counted = labels != IGNORE
    chances = logits.softmax(0)
    weight = torch.tensor([0.5, 2.0, 1.0])
    losses = [
        -weight[label] * chances[label, y, x].log()
        for y, x in counted.nonzero().tolist()
        for label in [int(labels[y, x])]
    ]
    dice = []
    for label in (0, 1):  # class 2 does not occur
        truth, said = (labels == label)[counted].float(), chances[label][counted]
        dice.append(1 - 2 * (truth * said).sum() / (truth.sum() + said.sum()))
    expected = torch.stack(losses).mean() + 0.7 * torch.stack(dice).mean()
    assert PixelLoss(weight, 0.7)(logits, labels).item() == pytest.approx(expected.item(), rel=1e-5)


def test_an_image_that_is_ignored_whole_costs_nothing():
    labels = torch.full((4, 5), IGNORE, dtype=torch.uint8)
    for dice in (0.0, 1.0):
        assert PixelLoss(None, dice)(torch.randn(3, 4, 5), labels).item() == 0.0


@pytest.mark.parametrize("sizes", [SIZES, SIZES[:1]], ids=["several sizes", "one size"])
def test_the_learner_is_the_mean_over_images(tmp_path, sizes):
    task = opened(tmp_path)
    model = built(task).eval()
    learner = task.learner(model)
    images = [torch.randn(3, *sizes[index % len(sizes)]) for index in range(4)]
    labels = [torch.randint(0, 2, image.shape[1:]).byte() for image in images]
    alone = [learner([image], [label]) for image, label in zip(images, labels, strict=True)]
    assert learner(images, labels).item() == pytest.approx(
        torch.stack(alone).mean().item(), rel=1e-5
    )


def test_balanced_weights_are_of_the_training_pixels(tmp_path):
    task = opened(tmp_path, **{"segmentation.class_weights": "balanced"})
    counts = task.pixel_counts
    assert task.loss.weight is not None
    assert task.loss.weight.tolist() == pytest.approx((counts.sum() / (2 * counts)).tolist())
    label_set(tmp_path / "dry", names={0: "ground", 3: "water"})
    for index in range(4):
        Image.fromarray(np.zeros((48, 64), dtype=np.uint8)).save(
            tmp_path / f"dry/labels/train/{index}.png"
        )
    recipe = segmentation_recipe(
        tmp_path / "dry", {"segmentation.class_weights": "balanced", "segmentation.ignore": ()}
    )
    with pytest.raises(UsageError, match="has none of water"):
        open_task(recipe)


def test_fields_that_would_have_no_effect_are_refused(tmp_path):
    recipe = segmentation_recipe(label_set(tmp_path))
    with pytest.raises(UsageError, match="sets fields of augment"):
        open_task(replace(recipe, augment=AugmentSpec(mixup=0.2)))
    with pytest.raises(UsageError, match=r"data\.source=folder: segmentation takes"):
        open_task(recipe.with_fields(**{"data.source": "folder"}))
    with pytest.raises(UsageError, match=r"segmentation.crop=\(1, 1\)"):
        open_task(recipe.with_fields(**{"segmentation.crop": (1, 1)}))


def test_counts_and_measures_by_hand():
    truth = np.array([[0, 0, 1, 1], [2, 2, IGNORE, IGNORE]], dtype=np.uint8)
    said = np.array([[0, 1, 1, 1], [2, 0, 0, 3]], dtype=np.uint8)
    tally = Tally(4)
    tally.add(said, truth, (5, 6, 7, 8))
    found = tally.outcome(("a", "b", "c", "d"), 1)
    assert found.confusion.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert found.scores.iou.tolist() == pytest.approx(
        [1 / 3, 2 / 3, 1 / 2, float("nan")], nan_ok=True
    )
    assert found.scores.dice.tolist() == pytest.approx(
        [1 / 2, 4 / 5, 2 / 3, float("nan")], nan_ok=True
    )
    assert found.summary() == {
        "miou": pytest.approx(0.5),
        "dice": pytest.approx(59 / 90),
        "pixel_accuracy": pytest.approx(4 / 6),
        "commonest": pytest.approx(2 / 6),
        "seen": 1,
        "expected": 1,
    }
    with Image.open(io.BytesIO(found.labels[0])) as label:
        assert np.asarray(label).tolist() == [[5, 6, 6, 6], [7, 5, 5, 8]]
    assert str(found).splitlines()[-1].split() == ["d", "n/a", "n/a"]


def test_of_two_classes_dice_is_the_seconds():
    counts = np.array([[90, 95, 92], [3, 5, 8]])
    assert Scores(counts).mean_dice == pytest.approx(6 / 13)
    assert Scores(counts).miou == pytest.approx((90 / 97 + 3 / 10) / 2)


def test_pixels_are_summed_before_the_ratio(tmp_path):
    """Two images of unlike size: the measures are of all their pixels, and the loss is the mean
    over images.
    """
    task = opened(tmp_path)
    model = built(task)
    assert task.splits.test is not None
    loader = task.eval_loader(task.splits.test, 0, 1)
    found = task.evaluate(model, loader, amp="none", label="")
    assert model.training, "left as it was"
    matrix, losses = np.zeros((2, 2), dtype=np.int64), []
    for images, labels in loader:
        for image, label in zip(images, labels, strict=True):
            with torch.no_grad():
                logits = model.eval()(image[None])[0]
            assert logits.shape[1:] == label.shape
            counted = label != IGNORE
            matrix += confusion_matrix(label[counted], logits.argmax(0)[counted], labels=[0, 1])
            losses.append(task.loss(logits, label).item())
    assert found.confusion.tolist() == matrix.tolist()
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert (found.seen, found.expected) == (3, 3)
    assert found.counts.sum(0)[:, 0].tolist() == matrix.diagonal().tolist()


def test_output_that_is_not_finite_is_no_measure(tmp_path):
    from softless.errors import DivergedError

    task = opened(tmp_path)
    model = built(task)
    torch.nn.init.constant_(model.get_parameter("head.head.4.bias"), float("nan"))
    with pytest.raises(DivergedError, match="not finite"):
        evaluate(model, task.eval_loader(task.splits.val, 0, 1), task.splits.classes, task.values)


def test_baselines(tmp_path):
    task = opened(tmp_path)
    other = tmp_path / "labels_other"
    for part, count in {"train": 4, "val": 2, "test": 3}.items():
        (other / part).mkdir(parents=True)
        for index in range(count):
            image = Image.open(tmp_path / f"labels/{part}/{index}.png")
            moved = np.roll(np.asarray(image), 2, axis=0)
            image.close()
            Image.fromarray(moved).save(other / part / f"{index}.png")
    task = open_task(task.recipe.with_fields(**{"segmentation.observer": "labels_other"}))
    assert task.splits.test is not None
    found = task.baselines(task.splits.test)
    assert list(found) == ["always ground", "another person (labels_other)"]
    truth = np.concatenate([task.splits.test.target(index).reshape(-1) for index in range(3)])
    assert found["always ground"]["pixel_accuracy"] == pytest.approx(
        (truth == 0).sum() / (truth != IGNORE).sum()
    )
    assert found["always ground"]["dice"] == 0.0
    assert 0 < found["another person (labels_other)"]["dice"] < 1


def test_the_papers_schedule():
    """160,000 steps of 16 crops at 6e-5, which falls in a straight line after the warm-up."""
    recipe = get_recipe("ade20k_softnorm_upernet")
    steps = 20_210 // recipe.batch_size
    optimizer = torch.optim.AdamW([torch.zeros(1)], lr=recipe.effective_lr)
    moved, epochs = scheduler(recipe, optimizer, steps)
    assert abs(epochs * steps - 160_000) < steps
    assert recipe.schedule.warmup_epochs * steps == pytest.approx(1500, abs=steps)
    for share in (0.25, 0.5, 0.75):
        moved.step_update(round(share * epochs * steps))
        assert optimizer.param_groups[0]["lr"] == pytest.approx(6e-5 * (1 - share), rel=1e-3)
    assert (recipe.optim.weight_decay, recipe.batch_size) == (0.01, 16)
    assert recipe.segmentation is not None
    assert (recipe.segmentation.crop, recipe.segmentation.scale) == ((512, 512), (0.5, 2.0))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A trained run, on images of several sizes."""
    root = tmp_path_factory.mktemp("run")
    data = label_set(
        root / "data",
        SIZES,
        names={0: "background", 3: "water"},
        counts={"train": 8, "val": 2, "test": 3},
    )
    recipe = segmentation_recipe(data, TRAINED, host="xcit_tiny_12_p8_224")
    fit(recipe, root / "out", device="cpu", progress=False)
    return root / "out"


def test_it_learns(run: Path):
    result = json.loads((run / "result.json").read_text())
    assert result["test"]["miou"] > 0.7
    assert result["test"]["seen"] == 3


def test_the_run_leaves_label_images_of_the_sets_own_values(run: Path):
    loaded = load_run(run)
    assert loaded.model.values == (0, 3)
    data = run.parent / "data/images/test"
    for index in range(3):
        with Image.open(data / f"{index}.png") as image, torch.no_grad():
            said = loaded.model(loaded.transform(image)[None])[0].argmax(0).numpy()
        assert np.array_equal(read_values(run / f"predictions/{index}.png"), np.array([0, 3])[said])
    scores = json.loads((run / "predictions/scores.json").read_text())
    result = json.loads((run / "result.json").read_text())
    assert scores["miou"] == result["test"]["miou"]
    assert scores["classes"] == ["background", "water"]


def test_eval_knows_a_class_by_its_name(run: Path, tmp_path: Path):
    shutil.copytree(run.parent / "data", tmp_path / "other")
    for file in (tmp_path / "other/labels").rglob("*.png"):
        Image.fromarray(np.where(read_values(file) == 0, 9, 4).astype(np.uint8)).save(file)
    (tmp_path / "other/classes.json").write_text('{"9": "background", "4": "water"}')
    before, after = (
        eval_run(run, data, device="cpu").outcome for data in (None, tmp_path / "other")
    )
    assert before.to_dict() == after.to_dict()
    result = json.loads((run / "result.json").read_text())["test"]
    assert {name: before.to_dict()[name] for name in ("miou", "per_class", "loss")} == {
        name: result[name] for name in ("miou", "per_class", "loss")
    }
    said = np.asarray(Image.open(io.BytesIO(after.labels[0])))
    assert set(np.unique(said)) == {4, 9}, "answers in the other set's values"
    assert np.array_equal(said == 4, np.asarray(Image.open(io.BytesIO(before.labels[0]))) == 3)


def test_a_loaded_run_is_counted_at_the_size_of_its_images(run: Path):
    loaded = load_run(run)
    assert loaded.pixels != (224, 224), "or the test says nothing"
    assert softless.cost(loaded.model).input_size == (loaded.in_chans, *loaded.pixels)


def test_predict_writes_labels_and_pictures(run: Path, tmp_path: Path):
    images = tmp_path / "images"
    (images / "more").mkdir(parents=True)
    label = label_of(5, (50, 70), (0, 3))
    Image.fromarray((30 * label[..., None] + np.zeros(3)).astype(np.uint8)).save(
        images / "more/a.png"
    )
    (images / "b.png").write_text("no image")
    found = predict(run, images, tmp_path / "out", device="cpu")
    assert found.exit_code == 4
    assert "1 image cannot be read and so has no answer:\n  b.png: " in str(found)
    assert not (tmp_path / "out/labels/b.png").exists()
    with Image.open(tmp_path / "out/labels/more/a.png") as answer:
        assert (answer.mode, answer.size) == ("P", (70, 50))
    values = read_values(tmp_path / "out/labels/more/a.png")
    assert (values == label).mean() > 0.8
    assert found.shares == {
        "background": pytest.approx((values == 0).mean()),
        "water": pytest.approx((values == 3).mean()),
    }
    with Image.open(tmp_path / "out/overlays/more/a.png") as picture:
        assert picture.width == 70
        assert picture.height > 50, "a legend below"
        seen = np.asarray(picture)[:50]
    assert np.array_equal(seen[values == 0], np.repeat(30 * label[values == 0][:, None], 3, 1)), (
        "the background keeps its pixels"
    )
    assert (seen[values == 3].max(1) > 100).all()
    assert "water" in str(found)
    assert set(found.to_dict()) == {
        "labels",
        "overlays",
        "images",
        "shares",
        "precision",
        "counted",
        "notes",
        "foreign",
        "unread",
    }
    assert (found.counted, found.notes) == (1, ())
    predict(run, images, tmp_path / "plain", overlays=False, device="cpu")
    assert not (tmp_path / "plain/overlays").exists()


def test_predict_counts_within_the_field_of_view_alone(run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "run")
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["segmentation"] |= {"fov": "fov", "ignore": ["unknown"]}
    (tmp_path / "run/recipe.json").write_text(json.dumps(recipe))
    label = label_of(5, (50, 70), (0, 3))
    seen = np.zeros((50, 70), dtype=np.uint8)
    seen[10:40, 10:60] = 255
    for place, pixels in (
        ("images", (30 * label[..., None] + np.zeros(3)).astype(np.uint8)),
        ("fov", seen),
    ):
        (tmp_path / place / "new").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / place / "new/a.png")
    found = predict(tmp_path / "run", tmp_path / "images/new", tmp_path / "out", device="cpu")
    values = read_values(tmp_path / "out/labels/a.png")
    assert (values[seen == 0] == IGNORE).all()
    assert found.shares["water"] == pytest.approx((values == 3).sum() / (seen > 0).sum())
    assert found.counted == 1
    assert "outside the field of view are 255" in str(found)
    assert "ignored in training, so never an answer: unknown" in str(found)
    Image.fromarray(np.zeros((50, 70, 3), np.uint8)).save(tmp_path / "images/new/b.png")
    again = predict(tmp_path / "run", tmp_path / "images", tmp_path / "out", device="cpu")
    assert (again.images, again.counted) == (2, 1)
    assert again.shares == found.shares, "the other image does not count"
    assert "1 of 2 images have no field of view (fov/NAME.png beside them)" in str(again)
    (tmp_path / "fov/new/a.png").unlink()
    none = predict(tmp_path / "run", tmp_path / "images", tmp_path / "out", device="cpu")
    assert none.shares == {"background": None, "water": None}
    assert "not counted" in str(none)
    Image.fromarray(seen[1:]).save(tmp_path / "fov/new/a.png")
    with pytest.raises(DataError, match=r"70 x 49, and its image is 70 x 50"):
        predict(tmp_path / "run", tmp_path / "images", tmp_path / "out", device="cpu")


def test_the_page_shows_pictures_beside_the_truth(run: Path, tmp_path: Path):
    twin = tmp_path / "twin"
    recipe = segmentation_recipe(
        run.parent / "data",
        {**TRAINED, "model.op": "softmax", "schedule.epochs": 1},
        host="xcit_tiny_12_p8_224",
    )
    fit(recipe, twin, device="cpu", progress=False)
    page = write([run, twin], tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg") == 3 * 4, (
        "photograph, truth and two answers of three images"
    )
    assert "SimA reaches" in page
    assert "Dice of water" in page
    assert "One file, no requests" in page


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["one size, BatchNorm in the host", "several sizes"])
def test_two_processes_train_like_one(tmp_path: Path, kind: str):
    """Same global batches, same augmentation, same sums of pixels: the same losses and the same
    measures.

    Images of several sizes run one by one, so a host with BatchNorm would see other batches in two
    processes; a ViT with DPT has none.
    """
    mixed = kind == "several sizes"
    root = label_set(
        tmp_path / "data", SIZES if mixed else SIZES[:1], counts={"train": 4, "val": 3, "test": 5}
    )
    fields = {"segmentation.vflip": 0.5, "segmentation.color_jitter": 0.2, "optim.lr": 1e-3}
    recipe = segmentation_recipe(
        root, fields, host="vit_tiny_patch16_224" if mixed else "xcit_tiny_12_p16_224"
    )
    (tmp_path / "recipe.pickle").write_bytes(pickle.dumps(recipe))
    one = fit(recipe, tmp_path / "one", device="cpu", progress=False)
    run_ranks(TWO, str(tmp_path))
    for a, b in zip(logged(tmp_path / "one"), logged(tmp_path / "two"), strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-4)
        assert b["val"] == pytest.approx(a["val"], rel=1e-4)
    assert one.test is not None
    for rank in range(2):
        test = json.loads((tmp_path / f"rank{rank}.json").read_text())["test"]
        assert test.pop("reasons") == one.test["reasons"]
        assert test.pop("intervals") == one.test["intervals"], "five images are too few for any"
        for name, by_class in test.pop("per_class").items():
            assert by_class == pytest.approx(one.test["per_class"][name], rel=1e-4)
        flat = {name: value for name, value in one.test.items() if not isinstance(value, dict)}
        assert test == pytest.approx(flat, rel=1e-4)
        assert test["seen"] == test["expected"] == 5
    names = [f"{index}.png" for index in range(5)]
    assert all(
        np.array_equal(
            read_values(tmp_path / f"one/predictions/{name}"),
            read_values(tmp_path / f"two/predictions/{name}"),
        )
        for name in names
    )


def test_values_that_the_recipe_names_go_through_a_run(tmp_path: Path):
    """Trained, tested again, drawn on the page and predicted with: two of the stored values are one
    class, whose answers have the lower one.
    """
    data = label_set(tmp_path / "data", SIZES, names={0: "a", 3: "b", 7: "c", 200: "d"})
    (data / "classes.json").unlink()
    fields = {
        "segmentation.values": "{0: ground, 3: cell, 7: cell, 200: void}",
        "segmentation.ignore": (),
    }
    fit(segmentation_recipe(data, fields), tmp_path / "out", device="cpu", progress=False)
    loaded = load_run(tmp_path / "out")
    assert (loaded.classes, loaded.model.values) == (("ground", "cell"), (0, 3))
    again = eval_run(tmp_path / "out", device="cpu").to_dict()
    assert again["miou"] == json.loads((tmp_path / "out/result.json").read_text())["test"]["miou"]
    predict(tmp_path / "out", data / "images/test", tmp_path / "answers", device="cpu")
    assert set(np.unique(read_values(tmp_path / "answers/labels/0.png"))) <= {0, 3}
    page = write([tmp_path / "out"], tmp_path / "report.html")
    assert "the truth of 0" in Path(page).read_text()
    with pytest.raises(
        DataError, match=r"it holds the values 7 \(\d+ pixels\), 200 \(\d+ pixels\); allowed are"
    ):
        open_task(
            segmentation_recipe(data, {**fields, "segmentation.values": "{0: ground, 3: cell}"})
        )


def test_pixels_of_many_classes_are_counted_without_a_table_for_each() -> None:
    """Under deterministic torch, torchmetrics compares every pixel with every pair of classes: 47
    GB here.
    """
    random = np.random.default_rng(0)
    truth = random.integers(0, 151, (1024, 2048)).astype(np.int64)
    predicted = random.integers(0, 150, truth.shape)
    truth[truth == 150] = IGNORE
    counted = truth != IGNORE
    torch.use_deterministic_algorithms(mode=True)
    try:
        found = confusion_of(predicted, truth, 150)
    finally:
        torch.use_deterministic_algorithms(mode=False)
    assert np.array_equal(
        found, confusion_matrix(truth[counted], predicted[counted], labels=range(150))
    )
