"""Folders of boxes as tools export them, names, keys and order as their writers have them: read, or
one sentence that names the tool.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from softless.cli.data import data
from softless.data.exports import export_in
from softless.data.folder import folder_parts
from softless.errors import DataError, UsageError
from softless.experiment.groups import DataSpec
from softless.tasks.check import check
from softless.tasks.detection.samples import open_boxes

BOX = [10.0, 5.0, 30.0, 20.0]
AROUND = [10.0, 5.0, 40.0, 5.0, 40.0, 25.0, 10.0, 25.0]
NAMES = ("disc", "square")


def pictures(folder: Path, count: int = 6, ending: str = "png") -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(folder.name))
    names = [f"{index}.{ending}" for index in range(count)]
    for name in names:
        Image.fromarray(rng.integers(0, 250, (60, 80, 3), dtype=np.uint8)).save(folder / name)
    return names


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def coco(files: list[str], *, first: int = 1, **more: Any) -> dict[str, Any]:
    """COCO's own order and keys."""
    return {
        "info": {"description": "COCO 2017 Dataset", "year": 2017},
        "licenses": [{"url": "", "id": 1, "name": ""}],
        "images": [
            {
                "license": 1,
                "file_name": file,
                "coco_url": "",
                "height": 60,
                "width": 80,
                "id": index,
            }
            for index, file in enumerate(files)
        ],
        "annotations": [
            {
                "segmentation": [AROUND],
                "area": 600.0,
                "iscrowd": 0,
                "image_id": index,
                "bbox": BOX,
                "category_id": first + index % 2,
                "id": 1 + index,
                **more,
            }
            for index in range(len(files))
        ],
        "categories": [
            {"supercategory": "shape", "id": first + place, "name": name}
            for place, name in enumerate(NAMES)
        ],
    }


def downloaded(root: Path) -> None:
    for part in ("train2017", "val2017"):
        files = pictures(root / part)
        write(root / "annotations" / f"instances_{part}.json", coco(files))
        write(
            root / "annotations" / f"captions_{part}.json",
            {"images": [], "annotations": [{"image_id": 0, "id": 1, "caption": "x"}]},
        )
        write(
            root / "annotations" / f"person_keypoints_{part}.json", coco(files, keypoints=[0] * 51)
        )
        write(root / "annotations" / f"stuff_{part}.json", coco(files))


def cvat(folder: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        content = coco(pictures(root / folder), attributes={"occluded": False})
        write(
            root / "annotations" / "instances_default.json",
            {
                "licenses": [{"name": "", "id": 0, "url": ""}],
                "info": {"contributor": ""},
                **content,
            },
        )

    return make


def roboflow(root: Path) -> None:
    for part in ("train", "valid", "test"):
        content = coco(pictures(root / part, ending="jpg"), first=1) | {
            "info": {"year": "2024", "description": "Exported from roboflow.com"}
        }
        content["categories"] = [
            {"id": 0, "name": "shapes", "supercategory": "none"},
            *content["categories"],
        ]
        for one in content["annotations"]:
            one["segmentation"] = []
        write(root / part / "_annotations.coco.json", content)
    (root / "README.roboflow.txt").write_text("shapes > 2024-01-01\n")


def label_studio(root: Path) -> None:
    files = [f"images/{file}" for file in pictures(root / "images")]
    content = coco(files, first=0, ignore=0)
    write(
        root / "result.json",
        {key: content[key] for key in ("images", "categories", "annotations", "info")},
    )


def labelme(root: Path) -> None:
    files = [f"JPEGImages/{file}" for file in pictures(root / "JPEGImages", ending="jpg")]
    content = coco(files, first=0)
    write(
        root / "annotations.json",
        {
            "info": content["info"],
            "licenses": content["licenses"],
            "images": content["images"],
            "type": "instances",
            "annotations": content["annotations"],
            "categories": content["categories"],
        },
    )


def fiftyone(root: Path) -> None:
    write(root / "labels.json", coco(pictures(root / "data"), first=0))


def beside(root: Path) -> None:
    for part in ("train", "val"):
        write(root / f"{part}.json", coco(pictures(root / part)))
    write(root / "package.json", {"name": "site"})


def spelled(root: Path) -> None:
    for part in ("Training", "Validation", "Testing"):
        write(root / "annotations" / f"{part.lower()}.json", coco(pictures(root / "images" / part)))


def split_of_splits(root: Path) -> None:
    for part in ("train", "val"):
        write(
            root / part / "annotations" / "instances.json", coco(pictures(root / part / "images"))
        )


READ: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "COCO as it is downloaded": (downloaded, {"train", "val"}),
    "CVAT": (cvat("images"), {"train"}),
    "CVAT, images by subset": (cvat("images/default"), {"train"}),
    "Roboflow": (roboflow, {"train", "val", "test"}),
    "Label Studio": (label_studio, {"train"}),
    "labelme2coco": (labelme, {"train"}),
    "FiftyOne": (fiftyone, {"train"}),
    "json files beside the folders": (beside, {"train", "val"}),
    "other spellings": (spelled, {"train", "val", "test"}),
    "annotations in each split": (split_of_splits, {"train", "val"}),
}


@pytest.mark.parametrize("tool", READ)
def test_exports_that_are_read(tmp_path: Path, tool: str):
    make, parts = READ[tool]
    make(tmp_path)
    splits = open_boxes(
        DataSpec("coco", str(tmp_path), mean=(0.5,) * 3, std=(0.2,) * 3, val_fraction=0.5),
        seed=0,
        masks=False,
    )
    assert len(splits.train) == (6 if "val" in parts else 3)
    assert (splits.test is not None) == ("test" in parts)
    names = [
        splits.classes[int(label)]
        for place in range(len(splits.train))
        for label in splits.train.target(place)["labels"]
    ]
    assert set(names) == set(NAMES)
    found = check(tmp_path)
    assert (found.layout, found.exit_code, found.good) == ("COCO", 0, 6 * len(parts))


def test_json_files_that_are_not_read_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    downloaded(tmp_path)
    write(tmp_path / "annotations" / "mine.json", coco([]))
    write(tmp_path / "settings.json", [1, 2])
    open_boxes(
        DataSpec("coco", str(tmp_path), mean=(0.5,) * 3, std=(0.2,) * 3), seed=0, masks=False
    )
    warned = {fault.path: fault.reason for fault in check(tmp_path).warnings}
    for name, why in {
        "captions_train2017": "COCO's captions",
        "person_keypoints_val2017": "COCO's keypoints",
        "stuff_val2017": "COCO's stuff",
        "mine": "no name of a split in it",
    }.items():
        assert f"annotations/{name}.json ({why})" in caplog.text
        assert warned[f"annotations/{name}.json"] == f"not read: {why}"
    assert "settings.json (not in COCO's form)" in caplog.text


def several(root: Path) -> None:
    for name in ("one", "two"):
        write(root / "annotations" / f"{name}.json", coco(pictures(root / "images")))


def twice(root: Path) -> None:
    for name in ("valid", "val2017"):
        write(root / "annotations" / f"{name}.json", coco(pictures(root / "images")))


def yolo(root: Path) -> None:
    for part in ("train", "val"):
        for name in pictures(root / "images" / part):
            (root / "labels" / part).mkdir(parents=True, exist_ok=True)
            (root / "labels" / part / name).with_suffix(".txt").write_text(
                "0 0.3125 0.25 0.375 0.3333\n"
            )
    (root / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\n\nnc: 2\nnames: ['disc', 'square']\n"
    )


def voc(root: Path) -> None:
    for name in pictures(root / "JPEGImages", ending="jpg"):
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / name).with_suffix(".xml").write_text(
            "<annotation>\n\t<folder>VOC2012</folder>\n</annotation>\n"
        )


def labelme_own(root: Path) -> None:
    for name in pictures(root):
        write(
            (root / name).with_suffix(".json"),
            {
                "version": "5.4.1",
                "flags": {},
                "shapes": [{"label": "disc", "points": [[1, 2]]}],
                "imagePath": name,
            },
        )


def via(root: Path) -> None:
    names = pictures(root)
    write(
        root / "via_region_data.json",
        {name: {"fileref": "", "size": 1, "filename": name, "regions": {}} for name in names},
    )


def createml(root: Path) -> None:
    annotations = [
        {
            "image": name,
            "annotations": [
                {"label": "disc", "coordinates": {"x": 1, "y": 2, "width": 3, "height": 4}}
            ],
        }
        for name in pictures(root / "train")
    ]
    write(root / "train" / "_annotations.createml.json", annotations)


def table(root: Path) -> None:
    pictures(root / "train")
    (root / "train" / "_annotations.csv").write_text(
        "filename,width,height,class,xmin,ymin,xmax,ymax\n0.png,80,60,disc,10,5,40,25\n"
    )


def cvat_xml(root: Path) -> None:
    pictures(root / "images")
    (root / "annotations.xml").write_text(
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  '
        "<version>1.1</version>\n</annotations>\n"
    )


def studio_json(root: Path) -> None:
    pictures(root)
    write(
        root / "project-1.json",
        [
            {
                "id": 1,
                "annotations": [{"id": 1, "completed_by": 1, "result": []}],
                "data": {"image": "0.png"},
            }
        ],
    )


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "YOLO": (yolo, r"labels of YOLO \(data\.yaml\): boxes are read from COCO json"),
    "Pascal VOC": (voc, r"annotations of Pascal VOC \(Annotations/0\.xml\)"),
    "labelme": (labelme_own, r"labelme's files \(0\.json\): .*labelme2coco"),
    "VIA": (
        via,
        r"annotations of the VGG Image Annotator \(via_region_data\.json\): let it export COCO",
    ),
    "CreateML": (createml, r"annotations for CreateML \(train/_annotations\.createml\.json\)"),
    "a table": (table, r"boxes in a table \(train/_annotations\.csv\)"),
    "CVAT for images": (
        cvat_xml,
        r"annotations of CVAT in its own xml \(annotations\.xml\): let it export COCO 1\.0",
    ),
    "Label Studio's json": (
        studio_json,
        r"an export of Label Studio in its own json \(project-1\.json\)",
    ),
    "several without a split": (
        several,
        (
            r"several files of boxes, and no name says a split: annotations/one\.json, "
            r"annotations/two\.json"
        ),
    ),
    "two for a split": (
        twice,
        r"several files for val: annotations/val2017\.json and annotations/valid\.json; keep one",
    ),
}


@pytest.mark.parametrize("tool", REFUSED)
def test_exports_that_are_named(tmp_path: Path, tool: str):
    make, message = REFUSED[tool]
    make(tmp_path)
    with pytest.raises(DataError, match=message) as raised:
        open_boxes(DataSpec("coco", str(tmp_path)), seed=0, masks=False)
    assert "\n" not in str(raised.value)


def test_a_text_beside_images_is_no_export(tmp_path: Path):
    pictures(tmp_path / "a")
    pictures(tmp_path / "b")
    (tmp_path / "a" / "notes.txt").write_text("five words stand here now\n")
    write(tmp_path / "settings.json", {"name": "site", "size": [1, 2]})
    (tmp_path / "shapes.csv").write_text("name,x,y\n")
    assert export_in(tmp_path) is None
    assert folder_parts(tmp_path, 3)[1] == ("a", "b")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("C:\\images\\0.png", "has an absolute path"),
        ("/data/upload/1/0.png", "has an absolute path"),
        ("sub\\0.png", "has backslashes in its path"),
        ("../0.png", "lies outside the image folder"),
    ],
)
def test_paths_of_other_machines_are_said(tmp_path: Path, name: str, message: str):
    files = pictures(tmp_path / "images" / "train")
    write(tmp_path / "annotations" / "instances_train.json", coco([*files[:-1], name]))
    with pytest.raises(DataError, match=message):
        open_boxes(DataSpec("coco", str(tmp_path)), seed=0, masks=False)
    assert any(message in fault.reason for fault in check(tmp_path).bad)


def test_pointers_of_git_lfs_are_said(tmp_path: Path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    files = pictures(tmp_path / "coco" / "images" / "train")
    write(tmp_path / "coco/annotations/instances_train.json", coco(files))
    (tmp_path / "coco/annotations/instances_val.json").write_text(pointer)
    (tmp_path / "coco/images/train/0.png").write_text(pointer)
    (tmp_path / "data.npz").write_text(pointer)
    found = check(tmp_path / "coco")
    said = {fault.path: fault.reason for fault in found.bad}
    for path in ("annotations/instances_val.json", "images/train/0.png"):
        assert (
            "it is a Git LFS pointer and not the file itself: fetch it with git lfs pull"
            in said[path]
        )
    assert "a Git LFS pointer" in str(check(tmp_path / "data.npz"))


def test_crowds_alone_are_nothing_to_learn(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """CVAT writes iscrowd 1 for every mask drawn with its brush."""
    data = DataSpec("coco", str(tmp_path), mean=(0.5,) * 3, std=(0.2,) * 3)
    runs = {"size": [60, 80], "counts": [305, *[20, 40] * 29, 20, 2735]}
    content = coco(pictures(tmp_path / "images"), iscrowd=1, segmentation=runs)
    write(tmp_path / "annotations/instances_default.json", content)
    with pytest.raises(
        DataError, match=r"all of its 6 annotations have iscrowd 1, .* set iscrowd to 0"
    ):
        open_boxes(data, seed=0, masks=True)
    assert check(tmp_path).by_reason["crowds"] == 1
    for one in content["annotations"][::2]:
        one["iscrowd"] = 0
    write(tmp_path / "annotations/instances_default.json", content)
    open_boxes(data, seed=0, masks=False)
    assert "all 3 annotations of 'square' have iscrowd 1" in caplog.text
    assert "no object of square is trained on" in caplog.text


def test_faults_of_masks_are_warnings_where_no_mask_is_learnt(tmp_path: Path):
    """Two corners of a box in the place of a polygon: boxes are learnt from, all of them."""
    files = pictures(tmp_path / "images/train")
    write(
        tmp_path / "annotations/instances_train.json",
        coco(files, segmentation=[[10.0, 5.0, 40.0, 25.0]]),
    )
    data = DataSpec("coco", str(tmp_path), mean=(0.5,) * 3, std=(0.2,) * 3)
    splits = open_boxes(data, seed=0, masks=False, faults="skip")
    assert sum(
        len(splits.train.target(place)["boxes"]) for place in range(len(splits.train))
    ) == len(splits.train)
    with pytest.raises(DataError, match=r"polygon 0 of its segmentation has 2 points"):
        open_boxes(data, seed=0, masks=True)


def test_the_check_refuses_what_a_recipe_refuses(tmp_path: Path):
    """The head decides whether a polygon of two points matters; other layouts than the recipe's are
    refused as in training.
    """
    files = pictures(tmp_path / "boxes/images/train")
    write(
        tmp_path / "boxes/annotations/instances_train.json",
        coco(files, segmentation=[[10.0, 5.0, 40.0, 25.0]]),
    )
    assert data("check", tmp_path / "boxes", recipe="nuclei").by_reason == {"polygon": 6}
    found = data("check", tmp_path / "boxes", recipe="nuclei", set="detection.head=fasterrcnn")
    assert (found.exit_code, len(found.warnings)) == (0, 6)
    write(tmp_path / "boxes/annotations/instances_train.json", coco(files, segmentation=None))
    assert data("check", tmp_path / "boxes").exit_code == 0
    assert data("check", tmp_path / "boxes", recipe="nuclei").by_reason == {"no mask": 6}
    yolo(tmp_path / "yolo")
    with pytest.raises(DataError, match=r"not in COCO's layout: .*it holds labels of YOLO"):
        data("check", tmp_path / "yolo", recipe="cards")
    with pytest.raises(UsageError, match="give --recipe too"):
        data("check", tmp_path / "yolo", set="data.limit=3")
