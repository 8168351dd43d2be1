"""Boxes in COCO's layout: what is read, what is refused before the first step, and what the
transforms keep true.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from softless.data import notices
from softless.data.loader import train_loader
from softless.errors import DataError, UsageError
from softless.experiment.groups import DataSpec
from softless.tasks.detection.samples import BoxSamples, open_boxes
from softless.tasks.detection.settings import DetectionSpec
from softless.tasks.detection.transforms import eval_pipeline, train_pipeline

CATEGORIES = [{"id": 7, "name": "disc"}, {"id": 3, "name": "square"}]
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def annotation(
    number: int, image: int, box: list[float], category: int = 7, **more: Any
) -> dict[str, Any]:
    left, top, width, height = box
    around = [left, top, left + width, top, left + width, top + height, left, top + height]
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": width * height,
        "iscrowd": 0,
        "segmentation": [around],
        **more,
    }


def write(
    root: Path, part: str, annotations: list[dict], images: int = 4, *, coco: bool = False
) -> Path:
    """Dark images of 80 x 60 pixels with a bright rectangle for each annotation."""
    named = f"{part}2017" if coco else part
    folder = root / named if coco else root / "images" / part
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for index in range(images):
        pixels = rng.integers(0, 60, (60, 80, 3))
        for one in annotations:
            if one["image_id"] == index and isinstance(one.get("bbox"), list):
                left, top, width, height = (round(value) for value in np.nan_to_num(one["bbox"]))
                pixels[max(top, 0) : top + height, max(left, 0) : left + width] += 150
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")
    entries = [
        {"id": index, "file_name": f"{index}.png", "width": 80, "height": 60}
        for index in range(images)
    ]
    file = root / "annotations" / f"instances_{named}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(
        json.dumps({"images": entries, "annotations": annotations, "categories": CATEGORIES})
    )
    return root


GOOD = [
    annotation(1, 0, [10, 5, 30, 20]),
    annotation(2, 0, [50, 30, 20, 25], 3),
    annotation(3, 1, [0, 0, 80, 60], 3),
    annotation(4, 2, [5, 5, 10, 10], iscrowd=1, segmentation={"size": [60, 80], "counts": [4800]}),
]
# columns 5 to 14, rows 5 to 14
GOOD[3]["segmentation"] = {"size": [60, 80], "counts": [305, *[10, 50] * 9, 10, 3945]}


@pytest.fixture
def spec(tmp_path: Path) -> DataSpec:
    for part in ("train", "val", "test"):
        write(tmp_path, part, GOOD)
    return DataSpec(source="coco", path=str(tmp_path), mean=MEAN, std=STD)


def test_what_is_read(spec: DataSpec):
    splits = open_boxes(spec, 0, masks=True)
    train = splits.train
    assert isinstance(train, BoxSamples)
    assert (splits.classes, tuple(train.categories)) == (("disc", "square"), (7, 3))
    assert [len(part) for part in (train, splits.val, splits.test or ())] == [4, 4, 4]
    target = train.target(0)
    assert target["boxes"].tolist() == [[10, 5, 40, 25], [50, 30, 70, 55]]
    assert target["labels"].tolist() == [0, 1]
    assert len(train.target(2)["labels"]) == 0, "a crowd is nothing to learn"
    assert train.target(3)["boxes"].shape == (0, 4)
    document = train.document()
    assert [one["category_id"] for one in document["annotations"]] == [7, 3, 3, 7], "COCO's own ids"
    assert [one["iscrowd"] for one in document["annotations"]] == [0, 0, 0, 1]
    assert train.name(1) == "images/train/1.png"


def test_cocos_own_layout(tmp_path: Path):
    for part in ("train", "val"):
        write(tmp_path, part, GOOD, coco=True)
    splits = open_boxes(DataSpec(source="coco", path=str(tmp_path)), 0, masks=False)
    assert splits.test is None
    assert splits.train.name(0) == "train2017/0.png"
    assert len(splits.mean) == 3, "measured where it is not given"


def test_a_validation_part_is_cut_by_the_seed(tmp_path: Path):
    write(tmp_path, "train", GOOD, images=20)
    data = DataSpec(source="coco", path=str(tmp_path), mean=MEAN, std=STD, val_fraction=0.25)
    one, same, other = (open_boxes(data, seed, masks=False) for seed in (0, 0, 1))
    names = [{part.name(place) for place in range(len(part))} for part in (one.train, one.val)]
    assert (len(names[0]), len(names[1]), len(names[0] | names[1])) == (15, 5, 20)
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert len(open_boxes(replace(data, limit=3), 0, masks=False).train) == 3


FAULTS: dict[str, list[float]] = {
    "box": [10, 10, 0, 5],
    "outside": [70, 50, 30, 30],
    "nan": [float("nan"), 0, 10, 10],
    "negative": [-9, 5, 20, 20],
}


@pytest.mark.bar(
    "B15", "training on faulty COCO annotations: refused before the first step, every fault named"
)
def test_all_faults_are_named_before_the_first_step(spec: DataSpec, tmp_path: Path):
    bad = [
        annotation(10 + number, 1, box, segmentation=None)
        for number, box in enumerate(FAULTS.values())
    ]
    bad += [
        annotation(20, 1, [1, 1, 9, 9], 99),
        annotation(21, 77, [1, 1, 9, 9]),
        annotation(21, 1, [1, 1, 9, 9]),
    ]
    bad += [
        annotation(22, 1, [1, 1, 9, 9], segmentation=[[1, 1, 9, 9]]),
        annotation(23, 1, [1, 1, 9, 9], segmentation=[[40, 40, 60, 40, 60, 55]]),
    ]
    write(tmp_path, "train", GOOD + bad)
    (tmp_path / "images/train/3.png").unlink()
    with pytest.raises(DataError) as error:
        open_boxes(spec, 0, masks=True)
    said = str(error.value)
    for number in (*range(10, 14), 20, 21, 22, 23):
        assert f"annotation {number}" in said, number
    assert "3.png" in said
    assert "no category has the id 99" in said
    assert "detection.faults=skip" in said


@pytest.mark.bar(
    "B15", "policies skip and clip: faulty annotations left out or cut, with their counts"
)
def test_faults_are_skipped_or_cut_with_counts(
    spec: DataSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    bad = [
        annotation(10 + number, 3, box, segmentation=None)
        for number, box in enumerate(FAULTS.values())
    ]
    write(tmp_path, "train", GOOD + bad)
    notices._said.clear()
    skipped = open_boxes(spec, 0, masks=False, faults="skip")
    assert [len(skipped.train.target(place)["labels"]) for place in range(4)] == [2, 1, 0, 0]
    assert "2 left out (box outside)" in caplog.text
    assert "1 left out (box not finite)" in caplog.text
    clipped = open_boxes(spec, 0, masks=False, faults="clip")
    assert clipped.train.target(3)["boxes"].tolist() == [[70, 50, 80, 60], [0, 5, 11, 25]]
    assert "2 cut to the image" in caplog.text


@pytest.mark.parametrize("policy", ["skip", "clip"])
def test_an_unknown_class_and_a_missing_image_never_pass(
    spec: DataSpec, tmp_path: Path, policy: str
):
    write(tmp_path, "train", [*GOOD, annotation(9, 1, [1, 1, 9, 9], 99)])
    with pytest.raises(DataError, match="no category has the id 99"):
        open_boxes(spec, 0, masks=False, faults=policy)
    write(tmp_path, "train", GOOD)
    (tmp_path / "images/train/3.png").unlink()
    with pytest.raises(DataError, match=r"3\.png"):
        open_boxes(spec, 0, masks=False, faults=policy)


def test_images_that_are_cut_off_stop_the_run_or_are_left_out(
    spec: DataSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Their headers are whole, so that only decoding finds them."""
    for name in ("train/2.png", "val/1.png"):
        path = tmp_path / "images" / name
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(
        DataError,
        match=r"2 faults before the first step; "
        r".*data\.faults=skip[\s\S]*train/2\.png[\s\S]*val/1\.png",
    ):
        open_boxes(spec, 0, masks=False)
    notices._said.clear()
    splits = open_boxes(replace(spec, faults="skip"), 0, masks=False)
    assert "images/train/2.png" not in splits.train.files  # type: ignore[attr-defined]
    assert {part: [one.path for one in bad] for part, bad in splits.left_out.items()} == {
        "train": ["images/train/2.png"],
        "val": ["images/val/1.png"],
    }
    assert "leaves out 1 of 4 images of train, 1 of " in caplog.text


def test_splits_have_the_same_classes(spec: DataSpec, tmp_path: Path):
    file = tmp_path / "annotations/instances_val.json"
    content = json.loads(file.read_text())
    content["categories"][0]["name"] = "disk"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="disk"):
        open_boxes(spec, 0, masks=False, faults="skip")


def test_a_mask_head_needs_masks(spec: DataSpec, tmp_path: Path):
    write(tmp_path, "train", [*GOOD, annotation(9, 1, [1, 1, 9, 9], segmentation=None)])
    open_boxes(spec, 0, masks=False)
    with pytest.raises(
        DataError, match=r"annotation 9: it has no segmentation, and this head learns masks"
    ):
        open_boxes(spec, 0, masks=True)


def test_folders_that_are_not_coco(tmp_path: Path):
    with pytest.raises(DataError, match="no data at"):
        open_boxes(DataSpec(source="coco", path=str(tmp_path / "absent")), 0, masks=False)
    with pytest.raises(DataError, match="not in COCO's layout"):
        open_boxes(DataSpec(source="coco", path=str(tmp_path)), 0, masks=False)
    write(tmp_path, "train", GOOD)
    write(tmp_path, "train", GOOD, coco=True)
    with pytest.raises(DataError, match="several files for train"):
        open_boxes(DataSpec(source="coco", path=str(tmp_path)), 0, masks=False)


def agree(image: Tensor, target: dict[str, Tensor]) -> None:
    """Objects are bright and all else dark, so boxes and masks can be held against the pixels; each
    moved as the image was.
    """
    bright = image.mean(0) > 0.0
    assert torch.equal(
        target["masks"].flatten(1).any(1), torch.ones(len(target["boxes"]), dtype=torch.bool)
    )
    covered = target["masks"].bool().any(0) if len(target["masks"]) else torch.zeros_like(bright)
    assert (bright != covered).float().mean() < 0.04
    for mask, (left, top, right, bottom) in zip(
        target["masks"], target["boxes"].tolist(), strict=True
    ):
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        assert [
            int(columns.min()),
            int(rows.min()),
            int(columns.max()) + 1,
            int(rows.max()) + 1,
        ] == [
            left,
            top,
            right,
            bottom,
        ]


@pytest.mark.parametrize(
    "detection",
    [
        DetectionSpec(canvas=(64, 64), scale=(0.5, 2.0), vflip=0.5, quarter_turns=True),
        DetectionSpec(canvas=(32, 96), scale=(0.4, 0.8)),
        DetectionSpec(shortest=(48, 64, 96), longest=120),
    ],
    ids=["canvas", "canvas that is not square", "shortest side"],
)
def test_boxes_and_masks_move_with_the_pixels(spec: DataSpec, detection: DetectionSpec):
    train = open_boxes(spec, 0, masks=True).train.take([0, 1])
    pipeline = train_pipeline(detection, MEAN, STD)
    loader = train_loader(train, pipeline, batch=2)
    objects = 0
    for epoch in range(25):
        loader.set_epoch(epoch)
        for images, targets in loader:
            for image, target in zip(images, targets, strict=True):
                agree(image, target)
                assert set(target) == {"boxes", "labels", "masks", "key"}
                assert target["boxes"].dtype == torch.float32
                assert target["labels"].dtype == torch.int64
                assert type(target["boxes"]) is Tensor
                objects += len(target["labels"])
                if detection.canvas:
                    assert image.shape == (3, *detection.canvas)
                else:
                    assert max(image.shape) <= 120
    assert objects > 40


def test_a_sample_is_drawn_from_seed_epoch_and_position(spec: DataSpec):
    train = open_boxes(spec, 0, masks=True).train
    pipeline = train_pipeline(DetectionSpec(canvas=(64, 64), photometric=True), MEAN, STD)

    def first(epoch: int, batch: int) -> dict[int, tuple[Tensor, Tensor]]:
        loader = train_loader(train, pipeline, batch=batch)
        loader.set_epoch(epoch)
        order = loader.batch_sampler.positions()  # type: ignore[union-attr]
        found = [
            (image, target["key"])
            for images, targets in loader
            for image, target in zip(images, targets, strict=True)
        ]
        return dict(zip(order.tolist(), found, strict=True))

    whole, pairs, later = first(0, 4), first(0, 2), first(1, 4)
    for position, (image, key) in whole.items():
        assert torch.equal(image, pairs[position][0])
        assert torch.equal(key, pairs[position][1])
        assert not torch.equal(key, later[position][1])


def test_evaluation_sees_the_whole_image(spec: DataSpec):
    train = open_boxes(spec, 0, masks=True).train
    image, target = eval_pipeline(MEAN, STD)((train.image(0), train.target(0)))
    assert (image.shape, target) == ((3, 60, 80), {})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"canvas": (60, 64)}, "multiples of 32"),
        ({"canvas": (64, 64), "scale": (2.0, 1.0)}, "the smaller first"),
        ({"quarter_turns": True}, "square canvas"),
        ({"shortest": ()}, "sides of at least 32 pixels"),
    ],
)
def test_settings_that_cannot_be_used(changes: dict[str, Any], said: str):
    with pytest.raises(UsageError, match=said):
        train_pipeline(DetectionSpec(**changes), MEAN, STD)


def test_a_byte_order_mark_is_no_fault(spec: DataSpec, tmp_path: Path):
    file = tmp_path / "annotations/instances_train.json"
    file.write_text(file.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert open_boxes(spec, 0, masks=True).classes == ("disc", "square")
