"""Class folders: what is read, in which order, and each way they can be wrong."""

import logging
import os
import shutil
from pathlib import Path, PurePosixPath
from threading import Barrier

import numpy as np
import pytest

from softless.data import notices, open_splits
from softless.data.folder import _ending, folder_parts, images_at, listing
from softless.errors import DataError
from softless.experiment.groups import DataSpec
from softless.tasks.check import check
from tests.data.making import class_folders, noise, split_folders


def spec(root, **fields):
    return DataSpec(source="folder", path=str(root), **fields)


@pytest.fixture(autouse=True)
def fresh_notices(monkeypatch):
    monkeypatch.setattr(notices, "_said", set())


def test_three_parts(tmp_path):
    split_folders(
        tmp_path, {p: {"dog": n, "cat": n + 1} for p, n in (("train", 4), ("val", 2), ("test", 3))}
    )
    splits = open_splits(spec(tmp_path), seed=0)
    assert splits.classes == ("cat", "dog")
    assert splits.test is not None
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [9, 5, 7]
    assert [splits.val.name(i) for i in range(5)] == [
        "val/cat/00.png",
        "val/cat/01.png",
        "val/cat/02.png",
        "val/dog/00.png",
        "val/dog/01.png",
    ]
    assert splits.val.targets.tolist() == [0, 0, 0, 1, 1]
    assert splits.val.targets.dtype == np.int64
    assert splits.test.image(0).mode == "RGB"


def test_val_is_cut_from_train_per_class_and_test_may_be_absent(tmp_path):
    split_folders(tmp_path, {"train": {"a": 20, "b": 10}})
    splits = open_splits(spec(tmp_path, val_fraction=0.2), seed=3)
    assert splits.test is None
    assert np.bincount(splits.val.targets).tolist() == [4, 2]
    names = {s.name(i) for s in (splits.train, splits.val) for i in range(len(s))}
    assert len(names) == 30


def test_class_folders_alone(tmp_path):
    class_folders(tmp_path, {"a": 6, "b": 6})
    splits = open_splits(spec(tmp_path, val_fraction=0.5), seed=0)
    assert (len(splits.train), len(splits.val), splits.test) == (6, 6, None)


def test_a_class_may_be_called_train(tmp_path):
    class_folders(tmp_path, {"bus": 3, "train": 2})
    parts, classes = folder_parts(tmp_path, 3)
    assert classes == ("bus", "train")
    assert len(parts["all"]) == 5


def test_subfolders_endings_and_links(tmp_path):
    class_folders(tmp_path, {"a": 1, "b": 1})
    class_folders(tmp_path / "a", {"deeper": 2}, ending="JPG")
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "a" / "deeper" / "up").symlink_to(tmp_path, target_is_directory=True)
    noise().save(tmp_path / "b" / "line\nbreak.png")
    elsewhere = class_folders(tmp_path.with_name("elsewhere"), {"c": 2})
    (tmp_path / "b" / "linked").symlink_to(elsewhere, target_is_directory=True)
    files = [
        "a/00.png",
        "a/deeper/00.JPG",
        "a/deeper/01.JPG",
        "b/00.png",
        "b/line\nbreak.png",
        "b/linked/c/00.png",
        "b/linked/c/01.png",
    ]
    parts, _ = folder_parts(tmp_path, 3)
    assert parts["all"].files == files
    assert images_at(tmp_path, 3).files == files  # what predict reads
    found = check(tmp_path)
    assert (found.seen, found.counts["all"]) == (7, {"a": 3, "b": 4})
    assert [fault.reason for fault in found.warnings] == [
        "2 links back to a folder around it, not followed"
    ]


def test_what_is_not_read_is_counted_and_said_once(tmp_path, caplog):
    split_folders(tmp_path, {"train": {"a": 2, "b": 2}, "more": {"a": 1, "b": 1}})
    (tmp_path / "train" / "a" / "note.txt").write_text("x")
    (tmp_path / "train" / "b" / "film.gif").write_bytes(b"GIF89a")
    (tmp_path / "train" / "b" / ".hidden.png").write_bytes(b"x")
    with caplog.at_level(logging.WARNING, "softless.data"):
        folder_parts(tmp_path, 3)
        folder_parts(tmp_path, 3)
    text = "\n".join(caplog.messages)
    assert len(caplog.messages) == 3
    assert "2 files are not images by their ending" in text
    assert "1 hidden files" in text
    assert "the folders more beside train are not read" in text


def case_missing(root):
    return root / "gone", "no data folder at"


def case_file(root):
    (root / "data.zip").write_bytes(b"x")
    return root / "data.zip", "is a file, not a folder"


def case_empty(root):
    return root, "holds no class folders"


def case_empty_train(root):
    (root / "train").mkdir()
    return root, "train holds no class folders"


def case_one_class(root):
    return class_folders(root, {"only": 3}), r"only one class \('only'\)"


def case_class_without_images(root):
    class_folders(root, {"a": 2, "c": 2})
    (root / "b").mkdir()
    (root / "b" / "notes.txt").write_text("x")
    return root, r"no images in .*b: every class folder"


def case_class_missing_in_test(root):
    split_folders(root, {"train": {"a": 2, "b": 2, "c": 2}, "test": {"a": 1, "c": 1}})
    return root, r"classes of .*test are not those of .*train \(missing: b\)"


def case_extra_class_in_val(root):
    split_folders(root, {"train": {"a": 2, "b": 2}, "val": {"a": 1, "b": 1, "dresses": 1}})
    return root, r"\(extra: dresses\)"


def case_no_train(root):
    return split_folders(
        root, {"test": {"a": 2, "b": 2}, "val": {"a": 1, "b": 1}}
    ), "has val and test but no train"


def case_letters(root):
    return class_folders(root, {"Cat": 1, "cat": 1}), "'Cat' and 'cat' differ only in case"


CASES = [
    case_missing,
    case_file,
    case_empty,
    case_empty_train,
    case_one_class,
    case_class_without_images,
    case_class_missing_in_test,
    case_extra_class_in_val,
    case_no_train,
    case_letters,
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_bad_folders(tmp_path, case):
    root, message = case(tmp_path)
    with pytest.raises(DataError, match=message) as raised:
        open_splits(spec(root), seed=0)
    assert str(tmp_path) in str(raised.value)
    assert raised.value.exit_code == 2


def test_an_unreadable_image_is_named_when_the_data_are_opened(tmp_path):
    class_folders(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "b" / "01.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"1 fault before the first step[\s\S]*b/01\.png: "):
        open_splits(spec(tmp_path, val_fraction=0.5), seed=0)


def test_a_path_is_needed(tmp_path):
    with pytest.raises(DataError, match="needs a path: give --data PATH"):
        open_splits(DataSpec(source="folder"), seed=0)


def test_other_channel_counts_are_for_npz(tmp_path):
    class_folders(tmp_path, {"a": 2, "b": 2})
    with pytest.raises(DataError, match="as an npz file"):
        open_splits(spec(tmp_path, in_chans=4), seed=0)


def test_clothing10(data_root):
    splits = open_splits(spec(data_root / "clothing10", mean=(0.5,) * 3, std=(0.25,) * 3), seed=0)
    assert splits.test is not None
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [1000, 120, 240]
    assert len(splits.classes) == 10
    assert splits.classes[0] == "dress"
    assert np.bincount(splits.train.targets).tolist() == [100] * 10
    assert min(splits.train.image(0).size) == 256
    assert splits.train.name(0).startswith("train/dress/")


def test_busi_grey(data_root):
    splits = open_splits(spec(data_root / "busi", in_chans=1), seed=0)
    assert splits.train.image(0).mode == "L"
    assert len(splits.mean) == 1
    assert 0.1 < splits.mean[0] < 0.6


def test_the_order_does_not_depend_on_the_disk(tmp_path):
    class_folders(tmp_path / "one", {"a": 3, "b": 3})
    (tmp_path / "two" / "b").mkdir(parents=True)
    (tmp_path / "two" / "a").mkdir()
    for file in sorted((tmp_path / "one").rglob("*.png"), reverse=True):
        shutil.copy(file, tmp_path / "two" / file.relative_to(tmp_path / "one"))
    first, second = (folder_parts(tmp_path / name, 3)[0]["all"] for name in ("one", "two"))
    assert first.files == second.files


@pytest.mark.parametrize(
    "name",
    ["a.png", "a.PNG", ".png", "a.", "a", "a.b.png", "a.tar.gz", "..png", "é.jpg", "a.p\u00dfg"],
)
def test_an_ending_is_what_paths_call_a_suffix(name):
    assert _ending(name) == PurePosixPath(name).suffix.lower()


def test_folders_that_take_their_time_are_listed_at_once(tmp_path, monkeypatch):
    class_folders(tmp_path, dict.fromkeys("abcd", 1))
    waiting = Barrier(2)
    scan = os.scandir

    def slow(folder):
        if Path(folder).parent == tmp_path:
            waiting.wait(20)  # alone one would wait for ever
        return scan(folder)

    monkeypatch.setattr("os.scandir", slow)
    monkeypatch.setattr("softless.data.folder.class_splits", lambda _: {})
    parts, _ = folder_parts(tmp_path, 3)
    assert [parts["all"].name(i) for i in range(4)] == [f"{name}/00.png" for name in "abcd"]


def test_a_link_back_is_no_folder_of_images(tmp_path):
    class_folders(tmp_path, {"a": 2})
    (tmp_path / "a" / "deep").mkdir()
    (tmp_path / "a" / "deep" / "up").symlink_to(tmp_path / "a")
    found = listing(tmp_path / "a")
    assert (found.files, found.loops) == (["00.png", "01.png"], 1)
