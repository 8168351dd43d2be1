"""Detection: what AP says, that a run learns, predicts and reports, and that two processes are one
run.
"""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from softless.cli.eval import eval as eval_run
from softless.cli.predict import predict
from softless.errors import DataError, UsageError
from softless.experiment.groups import AugmentSpec
from softless.recipes import get_recipe
from softless.tasks import page
from softless.tasks.detection.measure import average_precision
from softless.tasks.detection.model import Detector
from softless.tasks.detection.pictures import draw
from softless.tasks.detection.samples import BoxSamples, pixels_of
from softless.tasks.detection.settings import DetectionSpec
from softless.tasks.detection.task import Detection
from softless.tasks.loaded import load_run
from softless.tasks.table import open_task
from softless.training import Recipe, fit
from softless.training.model import build_for
from tests.processes import run_ranks
from tests.training.test_world import logged


def small(name: str, folder: Path) -> Recipe:
    """The quick form of a recipe, in float32."""
    return get_recipe(name).quick(folder).with_fields(amp="none")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mask R-CNN on generated rectangles, three epochs."""
    folder = tmp_path_factory.mktemp("detection")
    recipe = small("nuclei", folder / "data").with_fields(**{
        "detection.min_score": 0.0,
        "schedule.epochs": 3,
        "optim.lr": 3e-3,
    })
    fit(recipe, folder / "run", device="cpu", progress=False)
    return folder


DOCUMENT: dict[str, Any] = {
    "images": [{"id": 1, "width": 100, "height": 100}, {"id": 2, "width": 100, "height": 100}],
    "categories": [{"id": 3, "name": "one"}, {"id": 5, "name": "other"}],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 3,
            "bbox": [10, 10, 40, 40],
            "area": 1600,
            "iscrowd": 0,
        },
        {
            "id": 2,
            "image_id": 2,
            "category_id": 3,
            "bbox": [10, 10, 40, 40],
            "area": 1600,
            "iscrowd": 0,
        },
    ],
}


def answer(image: int, box: list[float], score: float, category: int = 3) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def test_average_precision_is_the_papers():
    right = [answer(1, [10, 10, 40, 40], 0.9), answer(2, [10, 10, 40, 40], 0.8)]
    measures, per_class = average_precision(DOCUMENT, right, masks=False)
    assert measures == {"box_ap": 1.0, "box_ap50": 1.0, "box_ap75": 1.0}
    assert per_class == {"box_ap": {"one": 1.0, "other": None}}, "a class without objects has no AP"
    half, _ = average_precision(DOCUMENT, right[:1], masks=False)
    assert half["box_ap"] == pytest.approx(51 / 101), "one of two found: recalls 0.00 to 0.50"
    shifted = [answer(1, [10, 10, 40, 28], 0.9), answer(2, [10, 10, 40, 28], 0.8)]  # IoU 0.7
    loose, _ = average_precision(DOCUMENT, shifted, masks=False)
    assert (loose["box_ap50"], loose["box_ap75"]) == (1.0, 0.0)
    assert loose["box_ap"] == pytest.approx(0.5)
    none, _ = average_precision(DOCUMENT, [], masks=False)
    assert none["box_ap"] == 0.0
    nothing, _ = average_precision({**DOCUMENT, "annotations": []}, right, masks=False)
    assert nothing == {"box_ap": None, "box_ap50": None, "box_ap75": None}


@pytest.mark.parametrize("order", [1, -1], ids=["by id", "against it"])
def test_ap_stands_beside_its_class_in_whatever_order_the_file_lists_them(order: int):
    document = {**DOCUMENT, "categories": DOCUMENT["categories"][::order]}
    right = [answer(1, [10, 10, 40, 40], 0.9), answer(2, [10, 10, 40, 40], 0.8)]
    right += [answer(1, [60, 60, 20, 20], 0.9, category=5)]
    wanted = {
        "image_id": 2,
        "category_id": 5,
        "bbox": [10, 10, 30, 30],
        "area": 900,
        "iscrowd": 0,
        "id": 3,
    }
    _, per_class = average_precision(
        {**document, "annotations": [*document["annotations"], wanted]}, right, masks=False
    )
    assert per_class == {"box_ap": {"one": 1.0, "other": 0.0}}


def test_only_so_many_answers_count():
    noise = [answer(1, [60, 60, 20, 20], 0.95 - 0.001 * number) for number in range(5)]
    told = [*noise, answer(1, [10, 10, 40, 40], 0.5), answer(2, [10, 10, 40, 40], 0.5)]
    few, _ = average_precision(DOCUMENT, told, masks=False, detections=5)
    all_of_them, _ = average_precision(DOCUMENT, told, masks=False, detections=6)
    assert few["box_ap"] is not None
    assert all_of_them["box_ap"] is not None
    assert few["box_ap"] < all_of_them["box_ap"]


def test_a_crowd_counts_neither_way():
    crowd = {
        "id": 3,
        "image_id": 1,
        "category_id": 3,
        "bbox": [55, 55, 40, 40],
        "area": 1600,
        "iscrowd": 1,
        "segmentation": {"size": [100, 100], "counts": [0, 10000]},
    }
    told = [
        answer(1, [60, 60, 20, 20], 0.99),
        answer(1, [10, 10, 40, 40], 0.9),
        answer(2, [10, 10, 40, 40], 0.8),
    ]
    with_crowd, _ = average_precision(
        {**DOCUMENT, "annotations": [*DOCUMENT["annotations"], crowd]}, told, masks=False
    )
    without, _ = average_precision(DOCUMENT, told, masks=False)
    assert with_crowd["box_ap"] == 1.0
    assert without["box_ap"] == pytest.approx(2 / 3, abs=0.01)


def test_a_run_leaves_what_cocos_tools_read(trained: Path):
    run, truth = trained / "run", trained / "data/images/annotations/instances_test.json"
    result = json.loads((run / "result.json").read_text())
    assert result["test"]["seen"] == result["test"]["expected"] == 8
    assert set(result["test"]["per_class"]) == {"box_ap", "mask_ap"}
    coco = COCO(str(truth))
    answers = coco.loadRes(str(run / "predictions.json"))
    assert {one["category_id"] for one in answers.anns.values()} <= {1, 2}
    first = next(iter(answers.anns.values()))
    assert pixels_of([first["segmentation"]]).shape == (64, 64, 1)
    again, _ = average_precision(
        json.loads(truth.read_text()),
        json.loads((run / "predictions.json").read_text()),
        masks=True,
        detections=10,
    )
    assert again == {name: result["test"][name] for name in again}


@pytest.mark.parametrize("ids", [(1, 2), (0, 1), (9, 4), (2, 1)], ids=str)
@pytest.mark.parametrize("order", [1, -1], ids=["in order", "reversed"])
def test_eval_knows_a_class_by_its_name(
    trained: Path, tmp_path: Path, ids: tuple[int, int], order: int
):
    shutil.copytree(trained / "data/images", tmp_path / "other")
    number = dict(zip((1, 2), ids, strict=True))
    for file in (tmp_path / "other/annotations").glob("*.json"):
        content = json.loads(file.read_text())
        content["categories"] = [{**one, "id": number[one["id"]]} for one in content["categories"]]
        if not file.stem.endswith("val"):  # the parts of one set may list theirs differently
            content["categories"].reverse() if order < 0 else None
        content["annotations"] = [
            {**one, "category_id": number[one["category_id"]]} for one in content["annotations"]
        ]
        file.write_text(json.dumps(content))
    found = eval_run(trained / "run", tmp_path / "other", device="cpu").outcome
    result = json.loads((trained / "run/result.json").read_text())["test"]
    assert {name: found.to_dict()[name] for name in ("box_ap", "mask_ap", "per_class")} == {
        name: result[name] for name in ("box_ap", "mask_ap", "per_class")
    }
    before = json.loads((trained / "run/predictions.json").read_text())
    assert {one["category_id"] for one in before} == {1, 2}, "or the test says nothing"
    assert [one["category_id"] for one in found.answers] == [
        number[one["category_id"]] for one in before
    ]


def test_eval_refuses_other_classes(trained: Path, tmp_path: Path):
    shutil.copytree(trained / "data/images", tmp_path / "other")
    for file in (tmp_path / "other/annotations").glob("*.json"):
        file.write_text(file.read_text().replace("class 1", "class 7"))
    with pytest.raises(DataError, match="missing: class 1; extra: class 7"):
        eval_run(trained / "run", tmp_path / "other", device="cpu")


def test_a_run_is_loaded_with_its_head(trained: Path):
    loaded = load_run(trained / "run")
    assert loaded.task == "detection"
    assert loaded.model.categories == (1, 2)
    assert isinstance(loaded.model, Detector)
    assert loaded.model.net.transform.as_given is False
    image = loaded.transform(Image.new("RGB", (50, 70)))
    assert image.shape == (3, 70, 50)
    assert loaded.pixels == (64, 64)


def test_predictions_are_a_coco_file_with_pictures(trained: Path, tmp_path: Path):
    images = tmp_path / "images/deep"
    images.mkdir(parents=True)
    for number, size in enumerate([(64, 64), (90, 40)]):
        Image.fromarray(
            np.random.default_rng(number).integers(0, 255, (*size[::-1], 3)).astype(np.uint8)
        ).save(images / f"{number}.png")
    (images / "0b.png").write_text("no image")
    told = predict(trained / "run", tmp_path / "images", tmp_path / "out", device="cpu")
    assert told.exit_code == 4
    assert [name for name, _ in told.to_dict()["unread"]] == ["deep/0b.png"]
    coco = COCO(str(tmp_path / "out/predictions.json"))
    assert [(one["file_name"], one["width"], one["height"]) for one in coco.imgs.values()] == [
        ("deep/0.png", 64, 64),
        ("deep/1.png", 90, 40),
    ]
    assert {one["name"] for one in coco.cats.values()} == {"class 0", "class 1"}
    assert coco.anns
    for one in coco.anns.values():
        left, top, width, height = one["bbox"]
        entry = coco.imgs[one["image_id"]]
        assert left >= 0 <= top
        assert left + width <= entry["width"] + 0.01
        assert top + height <= entry["height"] + 0.01
        assert pixels_of([one["segmentation"]]).shape == (entry["height"], entry["width"], 1)
    with Image.open(tmp_path / "out/overlays/deep/1.png") as picture:
        assert picture.size == (720, 320), "enlarged by a whole number, so that labels can be read"
    assert f"{len(coco.anns):,} answers" in str(told)
    assert told.to_dict()["images"] == 2
    predict(trained / "run", tmp_path / "images", tmp_path / "bare", device="cpu", overlays=False)
    assert not (tmp_path / "bare/overlays").exists()


def test_pictures_show_boxes_masks_and_sure_answers_alone():
    image, classes = Image.new("RGB", (640, 480)), {1: "cat"}
    mask = [[100, 100, 200, 100, 200, 200, 100, 200]]
    sure = {"bbox": [90, 90, 120, 120], "category_id": 1, "score": 0.9, "segmentation": mask}
    pixels = np.asarray(draw(image, [sure], classes))
    assert pixels[150, 150].any(), "the mask"
    assert pixels[150, 90].any(), "the box"
    assert not pixels[300, 300].any()
    assert not np.asarray(draw(image, [{**sure, "score": 0.2}], classes)).any()


def test_the_page_shows_answers_beside_the_truth(trained: Path, tmp_path: Path):
    text = page.write([trained / "run"], tmp_path / "report.html").read_text()
    assert "box AP50" in text
    assert "truth: 1" in text
    assert text.count("data:image/jpeg;base64") == 12, "six images, truth and one model"
    assert "class 1" in text


def test_a_recipe_that_has_no_effect_is_refused(tmp_path: Path):
    recipe = small("cards", tmp_path)
    with pytest.raises(UsageError, match="fields of augment"):
        open_task(replace(recipe, augment=AugmentSpec(hflip=0.0)))
    with pytest.raises(UsageError, match=r"data\.source=folder"):
        open_task(recipe.with_fields(**{"data.source": "folder"}))
    with pytest.raises(UsageError, match="has no masks"):
        open_task(recipe.with_fields(metric="mask_ap"))
    with pytest.raises(UsageError, match="no measure of detection named 'top1'"):
        open_task(recipe.with_fields(metric="top1"))


def test_bad_annotations_stop_a_run_before_its_folder_is_made(tmp_path: Path):
    recipe = small("cards", tmp_path / "data")
    file = tmp_path / "data/images/annotations/instances_val.json"
    content = json.loads(file.read_text())
    content["annotations"][2]["bbox"][2] = -4
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"002\.png, annotation 3: its bbox"):
        fit(recipe, tmp_path / "run", device="cpu", progress=False)
    assert not (tmp_path / "run").exists()
    fit(
        recipe.with_fields(**{"detection.faults": "skip"}),
        tmp_path / "run",
        device="cpu",
        progress=False,
    )


@pytest.mark.parametrize("op", ["softnorm", "sima", "softmax"])
def test_cards_take_the_twins(op: str, tmp_path: Path):
    recipe = small("cards", tmp_path).with_fields(**{"model.op": op})
    assert build_for(open_task(recipe)).host is not None


def test_nuclei_take_xcits_own_attention(tmp_path: Path):
    task = open_task(
        small("nuclei", tmp_path).with_fields(**{"model.op": "xca", "model.args.token_scale": None})
    )
    assert any("temperature" in name for name, _ in build_for(task).named_parameters())


def test_a_classifiers_weights_start_the_host(tmp_path: Path):
    from safetensors.torch import save_file

    from softless.models import create_model

    recipe = small("nuclei", tmp_path / "data")
    args = {**recipe.model.args, "num_classes": 5}
    classifier = create_model(recipe.model.name, recipe.model.op, **args)
    save_file(classifier.state_dict(), tmp_path / "start.safetensors")
    model = build_for(
        open_task(recipe.with_fields(**{"model.weights": str(tmp_path / "start.safetensors")}))
    )
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(model.host.state_dict()[name], classifier.state_dict()[name])  # type: ignore[union-attr]


def test_the_papers_recipe(tmp_path: Path):
    recipe = get_recipe("coco_sima_maskrcnn")
    assert isinstance(recipe.detection, DetectionSpec)
    assert (
        recipe.effective_lr,
        recipe.optim.weight_decay,
        recipe.batch_size,
        recipe.drop_path,
    ) == (
        1e-4,
        0.05,
        16,
        0.05,
    )
    assert (recipe.schedule.epochs, recipe.schedule.decay_epochs, recipe.detection.layers) == (
        36,
        (27, 33),
        (4, 6, 8, 12),
    )
    assert recipe.detection.shortest == tuple(range(480, 801, 32))
    task = open_task(small("coco_sima_maskrcnn", tmp_path))
    assert isinstance(task, Detection)
    assert isinstance(task.splits.train, BoxSamples)
    steps = [type(step).__name__ for step in task.transform(train=True).transforms]
    assert steps == ["function", "function", "Sometimes", "Both", "Both", "Cleaned", "Finished"]


def test_steps_fall_after_the_epochs_named():
    from softless.training.optim import scheduler

    recipe = get_recipe("coco_sima_maskrcnn")
    moved = torch.optim.AdamW([torch.zeros(1)], lr=recipe.effective_lr)
    schedule, total = scheduler(recipe, moved, 10)
    assert total == 36
    rates = []
    for epoch in range(36):
        schedule.step_update(epoch * 10)
        rates.append(moved.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-4] * 27 + [1e-5] * 6 + [1e-6] * 3)
    with pytest.raises(UsageError, match="multistep needs the epochs"):
        scheduler(recipe.with_fields(**{"schedule.decay_epochs": ()}), moved, 10)


RANK = """
import pickle, sys
from pathlib import Path
from softless.training import fit
folder = Path(sys.argv[1])
for name in ("nuclei", "cards"):
    fit(pickle.loads((folder / f"{name}.pickle").read_bytes()), folder / f"{name}-two", device="cpu", progress=False)
"""


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path: Path):
    """Anchors and regions are drawn by each image's key and losses are means over images, so ranks
    make no difference beyond rounding.
    """
    for name in ("nuclei", "cards"):
        recipe = small(name, tmp_path / name).with_fields(**{
            "schedule.epochs": 2,
            "detection.min_score": 0.0,
        })
        (tmp_path / f"{name}.pickle").write_bytes(pickle.dumps(recipe))
        fit(recipe, tmp_path / f"{name}-one", device="cpu", progress=False)
    run_ranks("-c", RANK, str(tmp_path))
    for name in ("nuclei", "cards"):
        for one, two in zip(
            logged(tmp_path / f"{name}-one"), logged(tmp_path / f"{name}-two"), strict=True
        ):
            assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)
            assert two["val"] == pytest.approx(one["val"], abs=1e-3)
        results = [
            json.loads((tmp_path / f"{name}-{which}/result.json").read_text())["test"]
            for which in ("one", "two")
        ]
        assert results[0]["seen"] == results[1]["seen"] == 8
        for measure in ("box_ap", "box_ap50"):
            assert results[1][measure] == pytest.approx(results[0][measure], abs=1e-3)


def test_answers_keep_the_ids_of_an_annotation_file(trained: Path, tmp_path: Path):
    """Ids, order and folders of the file differ from ours; what it lacks is named."""
    images = next((trained / "data").rglob("*.png")).parent
    names = sorted(path.name for path in images.iterdir())
    classes = load_run(trained / "run").classes
    listed: dict[str, Any] = {
        "images": [
            {"id": 900 - place, "file_name": f"somewhere/{name}"}
            for place, name in enumerate(names)
        ],
        "categories": [
            {"id": 70 + place, "name": name} for place, name in enumerate(reversed(classes))
        ],
        "annotations": [],
    }
    file = tmp_path / "listed.json"
    file.write_text(json.dumps(listed))
    plain, known = tmp_path / "plain", tmp_path / "known"
    predict(trained / "run", images, plain, device="cpu", overlays=False)
    predict(trained / "run", images, known, device="cpu", overlays=False, annotations=file)
    one, other = (json.loads((out / "predictions.json").read_text()) for out in (plain, known))
    ids = {image["id"]: image["file_name"] for image in one["images"]}
    own = {image["id"]: image["file_name"] for image in other["images"]}
    assert own == {900 - place: name for place, name in enumerate(names)}
    by_name = {category["id"]: category["name"] for category in one["categories"]}
    renamed = {category["id"]: category["name"] for category in other["categories"]}
    assert renamed == {row["id"]: row["name"] for row in listed["categories"]}
    assert one["annotations"]
    for mine, theirs in zip(one["annotations"], other["annotations"], strict=True):
        assert ids[mine["image_id"]] == own[theirs["image_id"]]
        assert by_name[mine["category_id"]] == renamed[theirs["category_id"]]
        assert mine["bbox"] == theirs["bbox"]
    for change, said in (
        (
            {"images": listed["images"][1:]},
            rf"does not list 1 image of {len(names)}, the first {names[0]}",
        ),
        ({"categories": listed["categories"][1:]}, rf"has no category {classes[-1]}"),
        ({"images": "none"}, r"is not COCO's: images is no list of entries with id and file_name"),
        (
            {"images": [{**row, "id": 5} for row in listed["images"]]},
            r"under an id that another image has too",
        ),
    ):
        file.write_text(json.dumps({**listed, **change}))
        with pytest.raises(DataError, match=said):
            predict(trained / "run", images, tmp_path / "never", device="cpu", annotations=file)
    assert not (tmp_path / "never/predictions.json").exists()
