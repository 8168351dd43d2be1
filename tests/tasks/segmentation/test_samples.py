"""Label images: values become class indices, palettes stay indices, what is ignored has none; all
faults of a set in one error; joint transforms.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from softless.data import train_loader
from softless.errors import DataError, UsageError
from softless.experiment.groups import DataSpec
from softless.tasks.segmentation.layout import is_label_layout
from softless.tasks.segmentation.samples import IGNORE, open_label_images
from softless.tasks.segmentation.settings import SegmentationSpec
from softless.tasks.segmentation.transforms import eval_pipeline, train_pipeline
from softless.tasks.segmentation.values import read_values
from tests.tasks.segmentation.labelled import STEP, label_of, label_set

PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3}


def spec(root: Path, **fields) -> DataSpec:
    return DataSpec("masks", str(root), **{**PLAIN, **fields})


def test_values_become_indices_and_ignored_ones_none(tmp_path):
    splits, layout = open_label_images(spec(label_set(tmp_path)), 0, ignore=("unknown",))
    assert (splits.classes, layout.values) == (("ground", "water"), (0, 3))
    stored = label_of(200, (48, 64))
    expected = np.select([stored == 0, stored == 3], [0, 1], IGNORE)
    assert splits.test is not None
    assert np.array_equal(splits.test.target(0), expected)
    assert splits.train.counts.sum(0).tolist() == [  # type: ignore[attr-defined]
        sum(int((label_of(seed, (48, 64)) == value).sum()) for seed in range(4)) for value in (0, 3)
    ]
    assert splits.train.name(0) == "images/train/0.png"


def test_a_value_can_be_ignored_that_has_no_name(tmp_path):
    label_set(tmp_path)
    (tmp_path / "classes.json").write_text('["ground", "a", "b", "water"]')
    splits, layout = open_label_images(spec(tmp_path), 0, ignore=(7, "a", "b"))
    assert layout.values == (0, 3)
    assert splits.classes == ("ground", "water")


@pytest.mark.parametrize(
    ("ignore", "said"),
    [
        (("watr",), "Did you mean 'water'"),
        ((300,), "lie in 0..255"),
        (("water", "unknown"), "takes two"),
    ],
)
def test_what_cannot_be_ignored(tmp_path, ignore, said):
    with pytest.raises(UsageError, match=said):
        open_label_images(spec(label_set(tmp_path)), 0, ignore=ignore)


def test_palettes_stay_indices_and_masks_of_one_bit_are_read(tmp_path):
    stored = label_of(1, (20, 30), (0, 1))
    palette = Image.fromarray(stored).convert("P")
    palette.putpalette([255, 255, 255, 9, 9, 9])
    palette.save(tmp_path / "palette.png")
    Image.fromarray(stored.astype(bool)).save(tmp_path / "bits.png")
    for name, mode in (("palette", "P"), ("bits", "1")):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.mode == mode
        assert np.array_equal(read_values(tmp_path / f"{name}.png"), stored)


def test_outside_the_field_of_view_nothing_counts(tmp_path):
    label_set(tmp_path)
    seen = np.zeros((48, 64), dtype=bool)
    seen[10:30] = True
    for part, count in {"train": 4, "val": 2, "test": 3}.items():
        (tmp_path / "fov" / part).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(seen).save(tmp_path / "fov" / part / f"{index}.png")
    splits, _ = open_label_images(spec(tmp_path), 0, fov="fov")
    target = splits.train.target(0)
    assert (target[~seen] == IGNORE).all()
    assert (target[seen] != IGNORE).all()
    assert splits.train.counts.sum() == 4 * seen.sum()  # type: ignore[attr-defined]
    (tmp_path / "fov/train/2.png").unlink()
    with pytest.raises(DataError, match=r"images/train/2.png: it has none"):
        open_label_images(spec(tmp_path), 0, fov="fov")


def spoil(root: Path) -> dict[str, str]:
    """One fault of each kind; path -> what is said of it."""
    labels = root / "labels/train"
    strange = label_of(0, (48, 64))
    strange[:2, :3] = 9
    Image.fromarray(strange).save(labels / "0.png")
    Image.fromarray(label_of(1, (48, 63))).save(labels / "1.png")
    (labels / "2.png").unlink()
    (labels / "3.png").write_bytes((labels / "3.png").read_bytes()[:60])
    Image.fromarray(np.zeros((48, 64), dtype=np.uint16)).save(root / "labels/val/0.png")
    Image.fromarray(np.eye(3, dtype=np.uint8)[label_of(1, (48, 64), (0, 1))]).save(
        root / "labels/val/1.png"
    )
    (root / "images/test/0.png").write_bytes(b"no image")
    (root / "images/test/1.png").unlink()
    return {
        "labels/train/0.png": "it holds the values 9 (6 pixels); allowed are 0 ground, 3 water, 7 "
        "unknown",
        "labels/train/1.png": "it is 63 x 48, and its image is 64 x 48",
        "images/train/2.png": "it has no label image labels/train/2.png",
        "labels/train/3.png": "replace or remove the file",
        "labels/val/0.png": "it holds more than 8 bits per pixel",
        "labels/val/1.png": "it holds colours (mode RGB)",
        "images/test/0.png": "it is empty or no image",
        "labels/test/1.png": "there is no image of this name in images/test",
    }


@pytest.mark.bar(
    "B16",
    "label values outside the classes and sizes unlike the image: [path, values, allowed], before "
    "the first step",
)
def test_every_fault_is_named_at_once(tmp_path):
    expected = spoil(label_set(tmp_path))
    with pytest.raises(DataError) as raised:
        open_label_images(spec(tmp_path), 0)
    lines = str(raised.value).splitlines()
    assert "8 faults" in lines[0]
    for path, said in expected.items():
        assert any(line.strip().startswith(f"{path}: ") and said in line for line in lines), path
    assert len(lines) == 1 + len(expected)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        ("{", "no complete JSON"),
        ("7", "an object from value to name"),
        ('{"300": "a"}', "0 to 255"),
        ('{"0": "a", "1": "a"}', "twice"),
    ],
)
def test_classes_that_are_none(tmp_path, content, said):
    label_set(tmp_path)
    (tmp_path / "classes.json").unlink()
    if content is not None:
        (tmp_path / "classes.json").write_text(content)
    with pytest.raises(DataError, match=said):
        open_label_images(spec(tmp_path), 0)


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(DataError, match="holds no label images"):
        open_label_images(spec(tmp_path), 0)
    (tmp_path / "images/val").mkdir(parents=True)
    (tmp_path / "classes.json").write_text('["a", "b"]')
    with pytest.raises(DataError, match="it has val but no train"):
        open_label_images(spec(tmp_path), 0)
    with pytest.raises(DataError, match="needs a path"):
        open_label_images(DataSpec("masks"), 0)


def test_a_policy_without_effect_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"data\.faults=skip has no effect on label images"):
        open_label_images(spec(label_set(tmp_path), faults="skip"), 0)


@pytest.mark.parametrize("named", [True, False])
def test_ade20k_as_it_comes(tmp_path, named):
    rng = np.random.default_rng(0)
    for part in ("training", "validation"):
        for place in ("images", "annotations"):
            (tmp_path / place / part).mkdir(parents=True)
        for index in range(2):
            Image.fromarray(rng.integers(0, 255, (16, 20, 3)).astype(np.uint8)).save(
                tmp_path / f"images/{part}/{index}.jpg"
            )
            Image.fromarray(rng.integers(0, 151, (16, 20)).astype(np.uint8)).save(
                tmp_path / f"annotations/{part}/{index}.png"
            )
    if named:
        (tmp_path / "objectInfo150.txt").write_text(
            "Idx\tRatio\tName\n1\t0.2\twall\n150\t0.1\tflag, standard\n"
        )
    splits, layout = open_label_images(spec(tmp_path), 0)
    assert layout.values == tuple(range(1, 151))
    assert (splits.classes[0], splits.classes[149]) == (("wall", "flag") if named else ("1", "150"))
    assert (len(splits.train), len(splits.val), splits.test) == (2, 2, None)
    stored = read_values(tmp_path / "annotations/validation/1.png")
    assert np.array_equal(splits.val.target(1), np.where(stored == 0, IGNORE, stored - 1))


def test_without_a_validation_part_some_are_cut_off(tmp_path):
    label_set(tmp_path, counts={"train": 8})
    splits, _ = open_label_images(spec(tmp_path, val_fraction=0.25), 0)
    assert (len(splits.train), len(splits.val), splits.test) == (6, 2, None)
    thin, _ = open_label_images(spec(tmp_path, val_fraction=0.25, limit=3), 0)
    assert (len(thin.train), len(thin.val)) == (3, 2)
    assert set(thin.train.files) <= set(splits.train.files)  # type: ignore[attr-defined]


def test_one_pixel_tells_two_sets_apart(tmp_path):
    before = open_label_images(spec(label_set(tmp_path)), 0)[0].fingerprint
    assert open_label_images(spec(tmp_path), 0)[0].fingerprint == before
    file = tmp_path / "labels/train/0.png"
    changed = read_values(file)
    changed[0, 0] = 3 - changed[0, 0]
    Image.fromarray(changed).save(file)
    assert open_label_images(spec(tmp_path), 0)[0].fingerprint != before


def test_a_layout_is_told_from_class_folders(tmp_path):
    assert is_label_layout(label_set(tmp_path / "a"))
    (tmp_path / "b/images/train").mkdir(parents=True)
    assert not is_label_layout(tmp_path / "b")


AUGMENTED = {
    "whole": SegmentationSpec(hflip=0.5, vflip=0.5),
    "turned": SegmentationSpec(quarter_turns=True),
    "cropped": SegmentationSpec(crop=(56, 40), crop_share=0.9),
}


@pytest.mark.parametrize("name", AUGMENTED)
def test_labels_move_with_their_pixels(tmp_path, name):
    """The brightness of each pixel still says its class, whatever was drawn; what a crop adds
    counts nowhere.
    """
    splits, layout = open_label_images(spec(label_set(tmp_path)), 0)
    pipeline = train_pipeline(AUGMENTED[name], splits.mean, splits.std)
    loader = train_loader(splits.train, pipeline, batch=1, seed=0)
    values = torch.tensor(layout.values)
    shapes = set()
    for epoch in range(4):
        loader.set_epoch(epoch)
        for (image,), (label,) in loader:
            shapes.add(tuple(label.shape))
            assert image.shape == (3, *label.shape)
            assert type(label) is torch.Tensor
            inside = label != IGNORE
            assert torch.equal(
                image[0][inside].mul(255).round() // STEP, values[label[inside].long()].float()
            )
            assert label.numel() - int(inside.sum()) == (8 * 40 if name == "cropped" else 0)
    assert (
        shapes == {"whole": {(48, 64)}, "turned": {(48, 64), (64, 48)}, "cropped": {(56, 40)}}[name]
    )


def test_scaled_labels_hold_no_new_values(tmp_path):
    splits, _ = open_label_images(spec(label_set(tmp_path)), 0)
    pipeline = train_pipeline(
        SegmentationSpec(scale=(0.5, 2.0), color_jitter=0.3, photometric=True),
        splits.mean,
        splits.std,
    )
    loader = train_loader(splits.train, pipeline, batch=4, seed=0)
    images, labels = next(iter(loader))
    assert len({image.shape for image in images}) == 4
    assert all(image.shape[1:] == label.shape for image, label in zip(images, labels, strict=True))
    assert set(torch.cat([label.flatten() for label in labels]).tolist()) == {0, 1, 2}


def test_evaluation_takes_the_whole_image(tmp_path):
    splits, _ = open_label_images(spec(label_set(tmp_path)), 0)
    assert splits.test is not None
    image, label = eval_pipeline(splits.mean, splits.std)((
        splits.test.image(0),
        splits.test.target(0),
    ))
    assert (image.shape, label.shape) == ((3, 48, 64), (48, 64))
    assert torch.equal(
        image.mul(255).round().byte(),
        torch.from_numpy(np.array(splits.test.image(0))).permute(2, 0, 1),
    )


@pytest.mark.parametrize("fields", [{"crop": (16, 64)}, {"scale": (2.0, 1.0)}, {"crop_share": 0.0}])
def test_settings_that_cannot_be_used(fields):
    with pytest.raises(UsageError, match=f"segmentation.{next(iter(fields))}="):
        train_pipeline(SegmentationSpec(**fields), (0.5,), (0.5,))


@pytest.mark.parametrize(
    ("name", "sizes"), [("chase_db1", {(960, 999)}), ("hrf_av", {(1168, 1752)})]
)
def test_real_sets(data_root, name, sizes):
    root = data_root / name
    classes = json.loads((root / "classes.json").read_text())
    folder = "labels_observer1" if name == "chase_db1" else "labels"
    splits, layout = open_label_images(spec(root, limit=2), 0, labels=folder)
    assert splits.classes == tuple(classes.values())
    assert {splits.train.target(index).shape for index in range(2)} == sizes
    assert layout.values == tuple(range(len(classes)))
