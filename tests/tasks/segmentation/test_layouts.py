"""Folders of images and label images as tools and people lay them out, and what the values of masks
mean: training and the check read the same.
"""

import json
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from softless.errors import DataError, UsageError
from softless.experiment.groups import DataSpec
from softless.tasks.check import check
from softless.tasks.segmentation.samples import IGNORE, open_label_images
from tests.tasks.segmentation.labelled import photograph

CLASSES = {"0": "ground", "1": "water"}


def mask(seed: int, values: Sequence[int] = (0, 1), size: tuple[int, int] = (24, 32)) -> np.ndarray:
    label = np.full(size, values[0], dtype=np.uint8)
    for place, value in enumerate(values[1:]):
        label[3 * place : 3 * place + 9, seed % 5 : seed % 5 + 12] = value
    return label


def pairs(
    images: Path,
    labels: Path,
    count: int,
    ends: str = "",
    values: Sequence[int] = (0, 1),
    kind: str = "png",
    seed: int = 0,
) -> None:
    for folder in (images, labels):
        folder.mkdir(parents=True, exist_ok=True)
    for index in range(seed, seed + count):
        label = mask(index, values)
        photograph(label % 8, index).save(images / f"{index}.{kind}")
        Image.fromarray(label).save(labels / f"{index}{ends}.png")


def splits(root: Path, images: str, labels: str, names: Sequence[str], ends: str = "") -> None:
    for number, name in enumerate(names):
        pairs(root / images.format(name), root / labels.format(name), 4, ends, seed=10 * number)
    (root / "classes.json").write_text(json.dumps(CLASSES))


def flat(root: Path, images: str, labels: str, ends: str = "") -> None:
    pairs(root / images, root / labels, 8, ends)
    (root / "classes.json").write_text(json.dumps(CLASSES))


LAYOUTS: dict[str, tuple[Callable[[Path], None], tuple[int, int, int]]] = {
    "ours": (
        lambda root: splits(root, "images/{}", "labels/{}", ("train", "val", "test")),
        (4, 4, 4),
    ),
    "mmsegmentation": (
        lambda root: splits(root, "img_dir/{}", "ann_dir/{}", ("train", "val")),
        (4, 4, 0),
    ),
    "ADE20K's folders, own classes": (
        lambda root: splits(root, "images/{}", "annotations/{}", ("training", "validation")),
        (4, 4, 0),
    ),
    "a folder for each split": (
        lambda root: splits(root, "{}/images", "{}/masks", ("train", "valid", "test")),
        (4, 4, 4),
    ),
    "no splits": (lambda root: flat(root, "images", "masks"), (6, 2, 0)),
    "Pascal VOC's folders": (lambda root: flat(root, "JPEGImages", "SegmentationClass"), (6, 2, 0)),
    "Carvana's names": (
        lambda root: splits(root, "images/{}", "masks/{}", ("train", "val"), "_mask"),
        (4, 4, 0),
    ),
    "ISIC's names": (
        lambda root: splits(
            root, "Images/{}", "GroundTruth/{}", ("Training", "Test"), "_segmentation"
        ),
        (3, 1, 4),
    ),
}


def opened(root: Path, **options):
    data = DataSpec("masks", str(root), mean=(0.5,) * 3, std=(0.2,) * 3, val_fraction=0.25)
    return open_label_images(data, 0, **options)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_that_are_read(tmp_path: Path, name: str):
    make, counts = LAYOUTS[name]
    make(tmp_path)
    found, layout = opened(tmp_path)
    assert (
        len(found.train),
        len(found.val),
        0 if found.test is None else len(found.test),
    ) == counts
    assert found.classes == ("ground", "water")
    key = found.val.key(0)
    assert np.array_equal(found.val.target(0), mask(int(key)))
    assert check(tmp_path).exit_code == 0
    assert check(tmp_path).layout == "label images"
    assert layout.ignored == {IGNORE}


VALUES: dict[str, tuple[tuple[int, ...], dict | None, tuple[str, ...], str]] = {
    "0 and 1, named": ((0, 1), CLASSES, ("ground", "water"), ""),
    "0 and 255, nothing named": (
        (0, 255),
        None,
        ("background", "object"),
        "0 as background and 255 as object",
    ),
    "0 and 255, 0 and 1 named": (
        (0, 255),
        CLASSES,
        ("ground", "water"),
        "0 as ground and 255 as water",
    ),
    "0 and 255, both named": ((0, 255), {"0": "ground", "255": "water"}, ("ground", "water"), ""),
    "127 and 254, nothing named": (
        (127, 254),
        None,
        ("background", "object"),
        "127 as background and 254 as object",
    ),
    "127 and 254, 0 and 1 named": (
        (127, 254),
        CLASSES,
        ("ground", "water"),
        "127 as ground and 254 as water",
    ),
    "three, all named": (
        (0, 7, 9),
        {"0": "ground", "7": "water", "9": "road"},
        ("ground", "water", "road"),
        "",
    ),
    "0, 1 and void": (
        (0, 1, 255),
        CLASSES,
        ("ground", "water"),
        "the value 255 has no name in classes.json and counts nowhere",
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_what_values_mean(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture):
    values, names, classes, said = VALUES[name]
    pairs(tmp_path / "images/train", tmp_path / "labels/train", 4, values=values)
    pairs(tmp_path / "images/val", tmp_path / "labels/val", 2, values=values, seed=10)
    if names is not None:
        (tmp_path / "classes.json").write_text(json.dumps(names))
    found, _ = opened(tmp_path)
    assert found.classes == classes
    stored = mask(0, values)
    expected = np.select(
        [stored == value for value in values[: len(classes)]], range(len(classes)), IGNORE
    )
    assert np.array_equal(found.train.target(0), expected)
    report = check(tmp_path)
    assert report.exit_code == 0
    assert said in caplog.text
    assert said in str(report)


@pytest.mark.parametrize("values", [(0, 1, 2), (0, 128, 255)])
def test_values_that_nothing_names(tmp_path: Path, values: tuple[int, ...]):
    pairs(tmp_path / "images/train", tmp_path / "labels/train", 4, values=values)
    shown = ", ".join(map(str, values))
    with pytest.raises(
        DataError, match=rf"classes\.json: no such file; .* the first label images hold {shown}"
    ):
        opened(tmp_path)
    assert check(tmp_path).exit_code == 1
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    with pytest.raises(DataError, match=rf"holds the values {values[1] if values[1] > 1 else 2}"):
        opened(tmp_path)


def palette(label: np.ndarray) -> Image.Image:
    image = Image.fromarray(label).convert("P")
    image.putpalette([0, 0, 0, 200, 30, 30])
    return image


FILES: dict[str, tuple[Callable[[np.ndarray], Image.Image], str]] = {
    "grey": (Image.fromarray, ""),
    "one bit": (lambda label: Image.fromarray(label.astype(bool)), ""),
    "palette": (palette, ""),
    "grey stored as RGB": (lambda label: Image.fromarray(label).convert("RGB"), ""),
    "grey stored with alpha": (lambda label: Image.fromarray(label).convert("RGBA"), ""),
    "colours": (lambda label: palette(label).convert("RGB"), "holds colours"),
    "16 bits": (
        lambda label: Image.fromarray(label.astype(np.uint16)),
        "more than 8 bits per pixel",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_how_label_images_are_stored(tmp_path: Path, name: str):
    save, refused = FILES[name]
    flat(tmp_path, "images", "masks")
    for index in range(8):
        save(mask(index)).save(tmp_path / f"masks/{index}.png")
    if refused:
        with pytest.raises(DataError, match=refused):
            opened(tmp_path)
        assert check(tmp_path).exit_code == 1
        return
    found, _ = opened(tmp_path)
    assert np.array_equal(found.train.target(0), mask(int(found.train.key(0))))
    assert check(tmp_path).exit_code == 0


def test_boxes_of_yolo_are_named(tmp_path: Path):
    pairs(tmp_path / "images/train", tmp_path / "unused", 4)
    (tmp_path / "labels/train").mkdir(parents=True)
    for index in range(4):
        (tmp_path / f"labels/train/{index}.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    with pytest.raises(
        DataError, match=r"no label images: .*; it holds labels of YOLO \(labels/train/0\.txt\)"
    ):
        opened(tmp_path)


def test_a_class_of_value_255_and_a_field_of_view_do_not_go_together(tmp_path: Path):
    pairs(tmp_path / "images/train", tmp_path / "labels/train", 4, values=(0, 255))
    pairs(tmp_path / "unused", tmp_path / "fov/train", 4)
    with pytest.raises(
        UsageError,
        match=r"segmentation\.fov=fov: pixels outside are written as 255, which is a class",
    ):
        opened(tmp_path, fov="fov")


@pytest.mark.parametrize("twin", ["Water", unicodedata.normalize("NFD", "wáter")])
def test_classes_that_people_read_as_one(tmp_path: Path, twin: str):
    flat(tmp_path, "images", "masks")
    first = "water" if twin == "Water" else unicodedata.normalize("NFC", "wáter")
    (tmp_path / "classes.json").write_text(json.dumps({"0": first, "1": twin}))
    with pytest.raises(DataError, match="differ only in case, or in how an accent is encoded"):
        opened(tmp_path)


def test_colours_that_classes_json_names(tmp_path: Path):
    """Colour-coded masks, as Cityscapes' and many annotation tools' are; a colour that is not named
    is said with its pixels and file.
    """
    flat(tmp_path, "images", "masks")
    table = np.array([[0, 0, 0], [200, 30, 30], [1, 2, 3]], dtype=np.uint8)
    (tmp_path / "classes.json").write_text(json.dumps({"#000000": "ground", "#c81e1e": "water"}))
    for index in range(8):
        Image.fromarray(table[mask(index)]).save(tmp_path / f"masks/{index}.png")
    found, layout = opened(tmp_path)
    assert (found.classes, layout.values) == (("ground", "water"), (0, 1))
    for place in range(len(found.train)):
        assert np.array_equal(found.train.target(place), mask(int(found.train.key(place))))
    assert check(tmp_path).exit_code == 0
    strange = mask(3)
    strange[:2, :2] = 2
    Image.fromarray(table[strange]).save(tmp_path / "masks/3.png")
    with pytest.raises(
        DataError,
        match=r"masks/3\.png: it holds colours that classes\.json does not name: #010203 \(4 "
        r"pixels\)",
    ):
        opened(tmp_path)


def test_many_empty_masks_do_not_hide_the_second_value(tmp_path: Path):
    """The first masks hold no lesion: 255 is still the second class, and not void."""
    flat(tmp_path, "images", "masks")
    for index in range(8):
        Image.fromarray(mask(index, (0, 255)) * (index > 5)).save(tmp_path / f"masks/{index}.png")
    found, layout = opened(tmp_path)
    assert layout.values == (0, 255)
    assert (
        sum(
            int((part.target(place) == 1).sum())
            for part in (found.train, found.val)
            for place in range(len(part))
        )
        == 2 * 9 * 12
    )


def test_two_label_images_for_an_image_are_not_chosen_between(tmp_path: Path):
    flat(tmp_path, "images", "masks", ends="_mask")
    Image.fromarray(mask(0)).save(tmp_path / "masks/0_label.png")
    with pytest.raises(DataError, match=r"it has no label image masks/0\.png") as raised:
        opened(tmp_path)
    assert "0_label.png" in str(raised.value)


def test_a_second_folder_of_label_images_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    flat(tmp_path, "images", "labels")
    flat(tmp_path, "images", "masks")
    assert opened(tmp_path)[1].labels == "labels"
    assert "labels is read, and masks is not: segmentation.labels chooses" in caplog.text
    assert opened(tmp_path, labels="masks")[1].labels == "masks"


@pytest.mark.parametrize(("orientation", "size"), [(6, (24, 24)), (3, (24, 32)), (6, (24, 32))])
def test_an_image_that_is_turned_beside_its_label_image(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, orientation, size
):
    """Where the turn leaves the size it is remarked; where it does not, the fault says what the
    size is.
    """
    flat(tmp_path, "images", "masks")
    label, exif = mask(0, size=size), Image.Exif()
    exif[0x0112] = orientation
    photograph(label % 8, 0).save(tmp_path / "images/0.png", exif=exif)
    Image.fromarray(label).save(tmp_path / "masks/0.png")
    if orientation == 6 and size[0] != size[1]:
        with pytest.raises(
            DataError,
            match=r"masks/0\.png: .*; it has the size that the image has before its EXIF "
            r"orientation",
        ):
            opened(tmp_path)
        return
    opened(tmp_path)
    assert (
        "images/0.png: its EXIF orientation turns it and leaves its size, so nothing tells "
        "whether its label image was" in caplog.text
    )
    assert [fault.path for fault in check(tmp_path).warnings if fault.kind == "EXIF"] == [
        "images/0.png"
    ]
