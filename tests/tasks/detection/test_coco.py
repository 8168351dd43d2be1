"""COCO annotations: each fault by file, annotation and reason, all in one pass; good ones come out
clean.
"""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from softless.errors import UsageError
from softless.tasks.check import check
from softless.tasks.detection.coco import run_lengths
from tests.data.making import noise

Content = dict[str, Any]


def text_runs(runs: list[int]) -> str:
    """Runs as COCO writes them (pycocotools, rleToString)."""
    text = ""
    for place, run in enumerate(runs):
        value, more = run - (runs[place - 2] if place > 2 else 0), True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            text += chr((bits | 32 if more else bits) + 48)
    return text


def runs_of(mask: np.ndarray) -> list[int]:
    flat = np.concatenate([[0], mask.ravel(order="F"), [2]])
    ends = np.flatnonzero(np.diff(flat)) - 0
    runs = np.diff(np.concatenate([[0], ends])).tolist()
    return [0, *runs] if mask.ravel(order="F")[0] else runs


def block(height: int, width: int, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


RUNS = runs_of(block(30, 40, 5, 6, 15, 26))
BOX = [5, 6, 10, 20]
SQUARE = [5, 6, 15, 6, 15, 26, 5, 26]


def base() -> Content:
    """Three images of 40 x 30 and an annotation of each form; nothing is wrong."""
    forms: list[Any] = [
        [SQUARE],
        {"size": [30, 40], "counts": RUNS},
        {"size": [30, 40], "counts": text_runs(RUNS)},
        [],
        None,
        [[5, 6, 10, 6, 10, 26], [9, 6, 15, 6, 15, 20]],
    ]
    annotations = [
        {
            "id": 10 + place,
            "image_id": place % 3 + 1,
            "category_id": 1 + place % 2,
            "bbox": BOX,
            "segmentation": form,
            "area": 200.0,
            "iscrowd": int(isinstance(form, dict)),
        }
        for place, form in enumerate(forms)
    ]
    return {
        "info": {},
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in (1, 2, 3)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": annotations,
    }


@pytest.fixture
def write(tmp_path):
    """Write content, as an object or as text, with its images beside; returns the json file."""

    def put(content: Content | str, name: str = "instances_train.json"):
        (tmp_path / "images" / "train").mkdir(parents=True, exist_ok=True)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        for index in (1, 2, 3):
            if not (tmp_path / "images" / "train" / f"{index}.png").exists():
                noise(40, 30, seed=index).save(tmp_path / "images" / "train" / f"{index}.png")
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "annotations" / name).write_text(text, encoding="utf-8")
        return tmp_path / "annotations" / name

    return put


def rows(found) -> list[tuple[str, Any, str]]:
    return [(fault.path.rpartition("/")[2], fault.annotation, fault.kind) for fault in found.bad]


def annotation(place: int, **changed: Any) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        content["annotations"][place].update(changed)

    return change


def image(place: int, **changed: Any) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        content["images"][place].update(changed)

    return change


def category(place: int, **changed: Any) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        content["categories"][place].update(changed)

    return change


def without(key: str) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        del content[key]

    return change


def more(key: str, entry: Any) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        content[key].append(entry)

    return change


NAN = float("nan")
FILE = "instances_train.json"
# what is changed, the rows [file, annotation, kind] it must give and no others, and what the first
# reason says
FAULTS: dict[str, tuple[Callable[[Content], None], list[tuple[str, Any, str]], str]] = {
    "zero width": (
        annotation(3, bbox=[5, 6, 0, 20]),
        [("1.png", 13, "empty box")],
        "both must be positive",
    ),
    "zero height": (
        annotation(3, bbox=[5, 6, 10, 0]),
        [("1.png", 13, "empty box")],
        "both must be positive",
    ),
    "negative side": (
        annotation(3, bbox=[5, 6, -10, 20]),
        [("1.png", 13, "empty box")],
        "width -10",
    ),
    "outside right": (
        annotation(3, bbox=[35, 6, 10, 20]),
        [("1.png", 13, "box outside")],
        "outside the image of 40 x 30",
    ),
    "outside left": (
        annotation(3, bbox=[-4, 6, 10, 20]),
        [("1.png", 13, "box outside")],
        "outside",
    ),
    "far outside": (
        annotation(3, bbox=[500, 600, 10, 20]),
        [("1.png", 13, "box outside")],
        "outside",
    ),
    "nan in box": (annotation(3, bbox=[5, NAN, 10, 20]), [("1.png", 13, "box not finite")], "NaN"),
    "infinite box": (
        annotation(3, bbox=[5, 6, float("inf"), 20]),
        [("1.png", 13, "box not finite")],
        "infinite",
    ),
    "three numbers": (
        annotation(3, bbox=[5, 6, 10]),
        [("1.png", 13, "box")],
        r"a box is four numbers",
    ),
    "no box": (annotation(3, bbox=None), [("1.png", 13, "box")], "its bbox is missing"),
    "words in box": (annotation(3, bbox=["a", 1, 2, 3]), [("1.png", 13, "box")], "four numbers"),
    "huge number in box": (
        annotation(3, bbox=[10**400, 1, 2, 3]),
        [("1.png", 13, "box")],
        "four numbers",
    ),
    "unknown category": (
        annotation(3, category_id=7),
        [("1.png", 13, "unknown category")],
        "known: 1, 2",
    ),
    "no category": (
        annotation(3, category_id=None),
        [("1.png", 13, "unknown category")],
        "the id missing",
    ),
    "category as list": (
        annotation(3, category_id=[1]),
        [("1.png", 13, "unknown category")],
        r"the id \[1\]",
    ),
    "unknown image": (
        annotation(3, image_id=99),
        [(FILE, 13, "unknown image")],
        "no image has the id 99",
    ),
    "duplicate annotation id": (
        annotation(3, id=12),
        [("1.png", 12, "duplicate id")],
        "12 is given more than once",
    ),
    "no annotation id": (
        annotation(3, id=None),
        [("1.png", "annotations[3]", "annotations")],
        "its id is missing",
    ),
    "area": (annotation(3, area=-1), [("1.png", 13, "area")], "area is -1"),
    "crowd": (annotation(3, iscrowd=2), [("1.png", 13, "iscrowd")], "it is 0 or 1"),
    "two points": (
        annotation(0, segmentation=[[5, 6, 15, 26]]),
        [("1.png", 10, "polygon")],
        "has 2 points",
    ),
    "odd numbers": (
        annotation(0, segmentation=[[*SQUARE, 3]]),
        [("1.png", 10, "polygon")],
        "has 9 numbers",
    ),
    "no area": (
        annotation(0, segmentation=[[5, 6, 5, 16, 5, 26]]),
        [("1.png", 10, "polygon")],
        "on one line",
    ),
    "nan in polygon": (
        annotation(0, segmentation=[[*SQUARE[:-1], NAN]]),
        [("1.png", 10, "polygon not finite")],
        "NaN",
    ),
    "polygon outside": (
        annotation(0, segmentation=[[5, 6, 55, 6, 15, 26]], bbox=[5, 6, 35, 20]),
        [("1.png", 10, "polygon outside"), ("1.png", 10, "mask and box")],
        "reaches outside",
    ),
    "polygon of words": (
        annotation(0, segmentation=[["a"] * 6]),
        [("1.png", 10, "polygon")],
        "list of numbers",
    ),
    "polygon not nested": (
        annotation(0, segmentation=SQUARE),
        [("1.png", 10, "mask")],
        "a flat list of numbers",
    ),
    "mask of another kind": (
        annotation(0, segmentation="x"),
        [("1.png", 10, "mask")],
        "segmentation is 'x'",
    ),
    "mask and box disagree": (
        annotation(0, bbox=[20, 6, 10, 20]),
        [("1.png", 10, "mask and box")],
        r"mask is \[5.0, 6.0, 10.0",
    ),
    "runs and box disagree": (
        annotation(1, bbox=[5, 0, 10, 26]),
        [("2.png", 11, "mask and box")],
        r"\[5.0, 6.0, 10.0, 20.0\]",
    ),
    "text and box disagree": (
        annotation(2, bbox=[5, 6, 10, 10]),
        [("3.png", 12, "mask and box")],
        r"\[5.0, 6.0, 10.0, 20.0\]",
    ),
    "runs too short": (
        annotation(1, segmentation={"size": [30, 40], "counts": RUNS[:-1]}),
        [("2.png", 11, "run lengths")],
        "add up to",
    ),
    "negative run": (
        annotation(1, segmentation={"size": [30, 40], "counts": [-1, 1201]}),
        [("2.png", 11, "run lengths")],
        "-1 is no length",
    ),
    "fraction of a run": (
        annotation(1, segmentation={"size": [30, 40], "counts": [0.5, 1199.5]}),
        [("2.png", 11, "run lengths")],
        "0.5 is no",
    ),
    "no runs": (
        annotation(1, segmentation={"size": [30, 40]}),
        [("2.png", 11, "run lengths")],
        "there are no runs",
    ),
    "text cut off": (
        annotation(2, segmentation={"size": [30, 40], "counts": text_runs(RUNS)[:1]}),
        [("3.png", 12, "run lengths")],
        "ends within",
    ),
    "text of another kind": (
        annotation(2, segmentation={"size": [30, 40], "counts": "né"}),
        [("3.png", 12, "run lengths")],
        "'é', which no run",
    ),
    "empty mask": (
        annotation(1, segmentation={"size": [30, 40], "counts": [1200]}),
        [("2.png", 11, "mask")],
        "is empty",
    ),
    "mask of another size": (
        annotation(1, segmentation={"size": [40, 30], "counts": RUNS}),
        [("2.png", 11, "mask size")],
        r"size is \[height, width\]",
    ),
    "mask without size": (
        annotation(1, segmentation={"counts": RUNS}),
        [("2.png", 11, "run lengths")],
        "size of its mask",
    ),
    "duplicate image id": (
        image(1, id=1),
        [(FILE, None, "duplicate id"), (FILE, 11, "unknown image"), (FILE, 14, "unknown image")],
        "image id 1 is given twice",
    ),
    "duplicate file": (
        image(1, file_name="1.png"),
        [(FILE, None, "duplicate file")],
        "both image 1 and image 2",
    ),
    "missing file": (
        image(1, file_name="gone.png"),
        [("gone.png", None, "missing")],
        "no such file",
    ),
    "no file name": (
        image(1, file_name=None),
        [(FILE, None, "images")],
        "image 2 has the file name missing",
    ),
    "file outside": (
        image(1, file_name="../../1.png"),
        [(FILE, None, "images")],
        "lies outside the image folder",
    ),
    "size differs": (
        image(1, width=400),
        [("2.png", None, "image size"), ("2.png", 11, "mask size")],
        "it is 40 x 30, and the json says 400 x 30",
    ),
    "no size": (image(1, height=0), [("2.png", None, "image size")], "in the json are 40 x 0"),
    "image of another kind": (
        more("images", 5),
        [(FILE, None, "images")],
        r"images\[3\] is no object but 5",
    ),
    "image id as text": (
        image(1, id="2"),
        [(FILE, None, "images"), (FILE, 11, "unknown image"), (FILE, 14, "unknown image")],
        "whole numbers",
    ),
    "duplicate category id": (
        more("categories", {"id": 1, "name": "cow"}),
        [(FILE, None, "duplicate id")],
        "'cat' and 'cow'",
    ),
    "duplicate category name": (
        more("categories", {"id": 3, "name": "cat"}),
        [(FILE, None, "categories")],
        "'cat' is given twice",
    ),
    "case of a category": (
        more("categories", {"id": 3, "name": "Cat"}),
        [(FILE, None, "categories")],
        "differ only in case",
    ),
    "category without name": (
        category(1, name=" "),
        [(FILE, None, "categories")],
        "has the name ' '",
    ),
    "category without id": (
        more("categories", {"name": "cow"}),
        [(FILE, None, "categories")],
        r"categories\[2\] has the id missing",
    ),
    "no categories": (
        without("categories"),
        [(FILE, None, "json"), (FILE, None, "categories")]
        + [(f"{i % 3 + 1}.png", 10 + i, "unknown category") for i in range(6)],
        "'categories' is missing",
    ),
    "no annotations": (
        without("annotations"),
        [(FILE, None, "json")],
        "'annotations' is missing, and must be a list",
    ),
    "annotation of another kind": (
        more("annotations", [1]),
        [(FILE, None, "annotations")],
        r"annotations\[6\] is no object",
    ),
}


def test_good_annotations_are_clean(write):
    found = check(write(base()))
    assert (found.layout, found.seen, found.good, found.annotations) == ("COCO", 3, 3, 6)
    assert (found.bad, found.warnings, found.duplicates, found.exit_code) == ((), (), (), 0)
    assert found.counts == {"instances_train": {"cat": 3, "dog": 3}}
    assert found.to_dict()["clean"] is True
    assert str(found).endswith("clean")


@pytest.mark.bar("B15", "a fault of COCO annotations, by kind: named with file and annotation")
@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_named(write, name):
    change, expected, reason = FAULTS[name]
    content = base()
    change(content)
    found = check(write(content))
    assert rows(found) == expected
    assert re.search(reason, found.bad[0].reason)
    assert found.exit_code == 1
    written = json.loads(json.dumps(found.to_dict()))["bad"]
    assert [row[1] for row in written] == [row[1] for row in expected]
    assert all(len(row) == 3 and row[2] for row in written)
    assert found.bad[0].reason in str(found)


@pytest.mark.bar("B15", "all faults of one COCO file: in one pass")
def test_all_faults_come_in_one_pass(write):
    """Each fault of an annotation on an annotation of its own, in one file of more than forty."""
    content, expected = base(), []
    single = {
        name: fault
        for name, fault in FAULTS.items()
        if all(row[1] in range(10, 14) for row in fault[1])
    }
    single.pop("duplicate annotation id")
    for number, (change, wanted, _) in enumerate(single.values()):
        fresh = base()
        change(fresh)
        broken = copy.deepcopy(fresh["annotations"][wanted[0][1] - 10])
        broken["id"] = 1000 + number
        content["annotations"].append(broken)
        expected += [(file, 1000 + number, kind) for file, _, kind in wanted]
    found = check(write(content))
    assert len(single) >= 30
    assert rows(found) == expected
    assert found.annotations == 6 + len(single)
    assert sum(found.by_reason.values()) == len(expected)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (json.dumps(base())[:300], "it is no complete JSON: .*line 1 column"),
        ("", "no complete JSON"),
        ("<html>", "no complete JSON"),
        ("[1, 2]", "it holds a list, and COCO is an object"),
        ("9" * 5000, "it cannot be read"),
    ],
)
def test_what_is_no_annotation_file(write, text, reason):
    found = check(write(text))
    assert rows(found) == [(FILE, None, "json")]
    assert re.search(reason, found.bad[0].reason)
    assert found.exit_code == 1


def test_a_lists_of_another_type(write):
    content = base()
    content["images"] = {"1": {}}
    found = check(write(content))
    assert rows(found)[0] == (FILE, None, "json")
    assert "'images' is a dict, and must be a list" in found.bad[0].reason
    assert [row[2] for row in rows(found)[1:]] == ["unknown image"] * 6


def test_images_are_read_in_full(write, tmp_path):
    file = write(base())
    (tmp_path / "images" / "train" / "2.png").write_bytes(b"broken")
    found = check(file)
    assert rows(found) == [("2.png", None, "no image")]
    assert (found.seen, found.good) == (3, 2)


def test_a_size_from_before_the_exif_orientation_is_named(write, tmp_path):
    file = write(base())
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(40, 30, seed=2).save(tmp_path / "images" / "train" / "2.png", exif=exif)
    found = check(file)
    assert rows(found) == [("2.png", None, "image size")]
    assert (
        "it is 30 x 40, and the json says 40 x 30; the json has the size before the EXIF "
        "orientation" in str(found)
    )


@pytest.mark.parametrize(
    ("orientation", "size", "said"),
    [
        (6, (40, 40), True),
        (3, (40, 30), True),
        (2, (40, 30), True),
        (1, (40, 40), False),
        (6, (30, 40), False),
    ],
)
def test_a_turn_that_leaves_the_size_is_remarked(write, tmp_path, orientation, size, said):
    """Boxes drawn on the stored picture would lie elsewhere, and the size in the json cannot say
    so.
    """
    content = base()
    upright = size[::-1] if orientation >= 5 else size
    content["images"][1] |= {"width": upright[0], "height": upright[1]}
    file, exif = write(content), Image.Exif()
    exif[0x0112] = orientation
    noise(size[0], size[1], seed=2).save(tmp_path / "images" / "train" / "2.png", exif=exif)
    found = check(file)
    turned = [fault for fault in found.warnings if fault.kind == "EXIF"]
    assert [Path(fault.path).name for fault in turned] == (["2.png"] if said else [])
    assert all(
        "whether boxes and masks were drawn on the upright image" in fault.reason
        for fault in turned
    )


def test_warnings(write):
    content = base()
    content["annotations"].append({**content["annotations"][3], "id": 77})
    content["categories"].append({"id": 3, "name": "cow"})
    found = check(write(content))
    assert found.bad == ()
    assert [(fault.kind, fault.annotation) for fault in found.warnings] == [
        ("repeated box", 77),
        ("categories", None),
    ]
    assert "the same box and category as annotation 13" in found.warnings[0].reason
    assert "no annotation has the category 'cow'" in found.warnings[1].reason
    assert (found.exit_code, check(write(content), strict=True).exit_code) == (0, 1)


def test_a_folder_of_splits(write, tmp_path):
    """Categories that differ (a misspelt class) and the same picture in two splits."""
    write(base())
    other = base()
    other["categories"][1]["name"] = "dgo"
    other["images"] = [{"id": 1, "file_name": "new.png", "width": 40, "height": 30}]
    other["annotations"] = [{**entry, "image_id": 1} for entry in other["annotations"][:2]]
    (tmp_path / "images" / "val").mkdir()
    noise(40, 30, seed=3).save(tmp_path / "images" / "val" / "new.png")
    write(other, "instances_val.json")
    found = check(tmp_path)
    assert rows(found) == [("instances_val.json", None, "categories")]
    assert "they differ in 2: dgo, 2: dog" in found.bad[0].reason
    assert found.duplicates == (("images/train/3.png", "images/val/new.png"),)
    assert (found.seen, found.annotations) == (4, 8)


def test_the_image_folder_can_be_named(write, tmp_path):
    file = write(base())
    (tmp_path / "images" / "train").rename(tmp_path / "elsewhere")
    assert check(file).by_reason == {"missing": 3}
    assert check(file, images=tmp_path / "elsewhere").exit_code == 0
    with pytest.raises(UsageError, match="is for COCO annotations"):
        check(tmp_path / "elsewhere", images=tmp_path)


def test_text_of_runs():
    """The texts are those of pycocotools 2.0.11 for these masks."""
    small = block(9, 7, 3, 2, 6, 5)
    small[8, 0] = 1
    large = block(120, 90, 20, 10, 60, 100)
    for mask, text in ((small, "81d02B0007"), (large, "Z[2j2n0" + "0" * 77 + "V`3")):
        assert run_lengths(text) == runs_of(mask)
        assert text_runs(runs_of(mask)) == text
    for seed in range(20):
        mask = (np.random.default_rng(seed).random((31, 17)) < 0.2).astype(np.uint8)
        assert run_lengths(text_runs(runs_of(mask))) == runs_of(mask)


@pytest.mark.parametrize("form", ["list", "text"])
def test_the_box_around_runs(write, form):
    """A mask of any shape agrees with the box around it, and not with one that is three pixels
    off.
    """
    content, off = base(), base()
    for seed in range(12):
        draw = np.random.default_rng(seed)
        mask = (draw.random((30, 40)) < 0.01).astype(np.uint8)
        mask[draw.integers(2, 20) :, draw.integers(2, 30) :][:8, :9] = 1
        rows_, columns = np.nonzero(mask)
        left, top, right, bottom = (
            int(x) for x in (columns.min(), rows_.min(), columns.max() + 1, rows_.max() + 1)
        )
        counts = runs_of(mask) if form == "list" else text_runs(runs_of(mask))
        entry = {
            **content["annotations"][1],
            "id": 100 + seed,
            "segmentation": {"size": [30, 40], "counts": counts},
        }
        content["annotations"].append({**entry, "bbox": [left, top, right - left, bottom - top]})
        off["annotations"].append({
            **entry,
            "bbox": [left, top, right - left, max(1, bottom - top - 3)],
        })
    assert check(write(content)).bad == ()
    assert rows(check(write(off))) == [("2.png", 100 + seed, "mask and box") for seed in range(12)]


def test_a_run_that_goes_on_in_the_next_column(write):
    """It takes in the bottom row of one column and the top row of the next."""
    mask = np.zeros((30, 40), np.uint8)
    mask[20:, 3], mask[:6, 4] = 1, 1
    assert len(runs_of(mask)) == 3
    content = base()
    content["annotations"][1].update(
        bbox=[3, 0, 2, 30], segmentation={"size": [30, 40], "counts": runs_of(mask)}
    )
    assert check(write(content)).bad == ()


def test_nuclei_and_cards(data_root):
    for name, seen, annotations in (("nuclei_dsb2018", 16, 1056), ("playing_cards", 20, 40)):
        found = check(data_root / name / "annotations" / "instances_val.json")
        assert (found.bad, found.warnings, found.duplicates) == ((), (), ())
        assert (found.seen, found.good, found.annotations) == (seen, seen, annotations)


def test_a_moved_nucleus_is_found(data_root, tmp_path):
    """The control of the test above: one box in a thousand, moved by five pixels."""
    folder = data_root / "nuclei_dsb2018"
    content = json.loads((folder / "annotations" / "instances_val.json").read_text())
    wrong = content["annotations"][500]
    wrong["bbox"][2] += 5
    (tmp_path / "instances_val.json").write_text(json.dumps(content))
    found = check(tmp_path / "instances_val.json", images=folder / "images" / "val")
    assert [fault.annotation for fault in found.bad] == [wrong["id"]]
