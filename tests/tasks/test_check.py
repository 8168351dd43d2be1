"""A data set checked in one pass: every bad file with its reason, counts, duplicates; a good one
comes out clean.
"""

import json
import os
import re
import threading
import zipfile

import numpy as np
import pytest
from PIL import Image

from softless.data import cores, findings, open_splits
from softless.errors import DataError, UsageError
from softless.experiment.groups import DataSpec
from softless.tasks.check import check
from tests.data import test_folder
from tests.data.corpus import BAD, GOOD, ODD, put_bad
from tests.data.making import class_folders, medmnist, noise, split_folders
from tests.tasks.segmentation import test_samples as test_label_images
from tests.tasks.segmentation.labelled import label_set


def kinds(found):
    return {fault.path: fault.kind for fault in found.bad}


def good_split(root):
    """Twelve good files in two splits, no two alike."""
    for number, part in enumerate(("train", "val")):
        for place, name in enumerate(("cat", "dog")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(3):
                noise(seed=100 * number + 10 * place + index).save(folder / f"{index}.png")
    return root


@pytest.mark.bar("B1", "data check over the whole corpus of bad files: every one named")
def test_every_file_of_the_corpus_is_named(tmp_path):
    good_split(tmp_path)
    put_bad(tmp_path / "train" / "cat")
    found = check(tmp_path)
    expected = {f"train/cat/{name}": bad.kind for name, bad in BAD.items()}
    assert kinds(found) == expected
    assert len(found.bad) == len(BAD)
    for fault in found.bad:
        assert re.search(BAD[fault.path.rpartition("/")[2]].reason, fault.reason)
    assert (found.seen, found.good, found.exit_code) == (12 + len(BAD), 12, 1)
    assert sum(found.by_reason.values()) == len(BAD)
    assert found.by_reason["too many pixels"] == sum(
        bad.kind == "too many pixels" for bad in BAD.values()
    )
    assert found.counts["train"] == {"cat": 3 + len(BAD), "dog": 3}
    written = json.loads(json.dumps(found.to_dict()))
    assert {path for path, _ in written["bad"]} == set(expected)
    assert all(reason for _, reason in written["bad"])
    assert (written["clean"], written["seen"], written["good"]) == (False, found.seen, 12)
    text = str(found)
    assert all(f"  train/cat/{name}: " in text for name in BAD)
    assert text.splitlines()[-1] == f"not clean: {len(BAD)} faults"


def test_many_threads_report_what_one_does(tmp_path, monkeypatch):
    """Faults, warnings, duplicates and counts in the same order, whether files are read side by
    side or in a row.
    """
    good_split(tmp_path)
    put_bad(tmp_path / "train" / "cat")
    for number, (name, odd) in enumerate(ODD.items()):
        (tmp_path / "val" / "dog" / name).write_bytes(odd.content)
        (tmp_path / "train" / "dog" / f"{number}-{name}").write_bytes(odd.content)
    monkeypatch.setattr(cores, "cores", lambda: 4)
    reports, threads = [], []
    read_whole = findings.read_whole

    def noted(*args, **options):
        threads.append(threading.current_thread().name)
        return read_whole(*args, **options)

    monkeypatch.setattr(findings, "read_whole", noted)
    for large in (0, 2**40):
        monkeypatch.setattr(cores, "LARGE", large)
        monkeypatch.setattr(cores, "LOOKED_AT", 10**6)  # all are first ones: none is waited for
        threads.clear()
        reports.append(check(tmp_path).to_dict())
        assert (len(set(threads)) > 1) == (large == 0)
    assert reports[0] == reports[1]
    assert reports[0]["bad"]
    assert reports[0]["warnings"]
    assert reports[0]["duplicates"]


def test_a_good_corpus_is_clean(tmp_path):
    good_split(tmp_path)
    for index, (name, content) in enumerate(GOOD.items()):
        ending = name.partition(".")[2]
        # the same pixels as another one
        if ending not in {"png", "ppm", "lzw.tif", "progressive.jpg", "bmp"}:
            (tmp_path / "train" / "dog" / f"{index}.{ending}").write_bytes(content)
    found = check(tmp_path)
    assert (found.bad, found.warnings, found.duplicates) == ((), (), ())
    assert found.seen == found.good > 12
    assert found.exit_code == 0
    assert found.to_dict()["clean"] is True
    assert str(found).endswith("\n\nclean")
    assert check(tmp_path, strict=True).exit_code == 0


def test_unusual_files_are_good_and_what_is_odd_is_said(tmp_path):
    class_folders(tmp_path, {"a": 1, "b": 1})
    for name, odd in ODD.items():
        (tmp_path / "a" / name).write_bytes(odd.content)
    found = check(tmp_path)
    assert found.bad == ()
    assert found.seen == found.good == len(ODD) + 2
    said = sorted((fault.path, fault.kind) for fault in found.warnings)
    assert said == sorted((f"a/{name}", kind) for name, odd in ODD.items() for kind in odd.remarks)
    assert (found.exit_code, check(tmp_path, strict=True).exit_code) == (0, 1)
    assert "wrong ending: 2" in str(found)
    assert "a/film.png: it is a GIF file by its content" in str(found)


def test_limits(tmp_path):
    class_folders(tmp_path, {"a": 2, "b": 2})  # 20 x 16
    assert check(tmp_path, min_side=16, max_pixels=320).exit_code == 0
    assert check(tmp_path, min_side=17).by_reason == {"too small": 4}
    assert check(tmp_path, max_pixels=319).by_reason == {"too many pixels": 4}
    noise(1, 1).save(tmp_path / "a" / "one.png")
    assert kinds(check(tmp_path)) == {"a/one.png": "too small"}
    assert check(tmp_path, min_side=1).exit_code == 0
    with pytest.raises(UsageError, match="SOFTLESS_MIN_SIDE=0: the limit is a whole number"):
        check(tmp_path, min_side=0)


def test_what_is_not_read_is_counted(tmp_path):
    good_split(tmp_path)
    (tmp_path / "LICENSE").write_text("x")
    (tmp_path / "train" / "cat" / "note.txt").write_text("x")
    (tmp_path / "train" / "dog" / "film.gif").write_bytes(b"GIF89a")
    (tmp_path / "val" / "dog" / "film.GIF").write_bytes(b"GIF89a")
    (tmp_path / "train" / "cat" / ".hidden.png").write_bytes(b"x")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "validation").mkdir()
    noise().save(tmp_path / "train" / "loose.png")
    (tmp_path / "train" / "cat" / "loop").symlink_to(tmp_path, target_is_directory=True)
    found = check(tmp_path)
    assert found.passed_over == {".gif": 2, "(no ending)": 1, ".txt": 1}
    assert found.hidden == 2
    assert {fault.path: fault.reason for fault in found.warnings} == {
        "train": "1 images lie outside the class folders and are not read",
        "train/cat": "1 link back to a folder around it, not followed",
        "validation": "a folder beside the splits, not read (splits are named train, val, test)",
    }
    assert (found.seen, found.exit_code) == (12, 0)
    assert "not read because of their ending: .gif: 2" in str(found)
    assert "hidden files and folders, not read: 2" in str(found)


@pytest.mark.bar("B13", "the same image in two splits: reported as a pair")
def test_duplicates_are_pairs(tmp_path):
    good_split(tmp_path)
    twin = noise(seed=1)
    twin.save(tmp_path / "val" / "cat" / "copy.bmp")  # train/cat/1.png in another file type
    twin.save(tmp_path / "train" / "dog" / "other.png")  # the same picture with another label
    twin.save(tmp_path / "train" / "cat" / "again.png")  # more of the same, which leaks nothing
    found = check(tmp_path)
    assert set(found.duplicates) == {
        ("train/cat/1.png", "train/dog/other.png"),
        ("train/cat/1.png", "val/cat/copy.bmp"),
    }
    assert (found.exit_code, check(tmp_path, strict=True).exit_code) == (0, 1)
    assert "  train/cat/1.png = val/cat/copy.bmp" in str(found)
    assert str(found).endswith("clean, with 0 warnings, 2 pairs of duplicates")


@pytest.mark.bar("B14", "what training refuses: data check refuses or reports it")
@pytest.mark.parametrize("case", test_folder.CASES, ids=lambda case: case.__name__)
def test_what_training_refuses_is_refused_or_reported(tmp_path, case):
    root, _ = case(tmp_path)
    if case.__name__ not in {"case_missing", "case_file", "case_empty"}:
        assert check(root).exit_code == 1
        return
    with pytest.raises(DataError) as raised:
        check(root)
    assert str(root) in str(raised.value)
    assert raised.value.exit_code == 2


@pytest.mark.bar("B12", "empty, missing, extra and clashing class folders: all named in one pass")
def test_faults_of_the_layout_come_all_at_once(tmp_path):
    split_folders(
        tmp_path,
        {
            "train": {"Cat": 1, "cat": 1, "dog": 1},
            "val": {"cat": 1, "bird": 1},
            "test": {"only": 1},
        },
    )
    (tmp_path / "train" / "empty").mkdir()
    found = check(tmp_path)
    said = sorted((fault.path, fault.reason.partition(":")[0]) for fault in found.bad)
    assert said == [
        ("test", "it holds 1 class folders, and a classifier needs at least two"),
        ("test/Cat", "the class is missing"),
        ("test/cat", "the class is missing"),
        ("test/dog", "the class is missing"),
        ("test/empty", "the class is missing"),
        ("test/only", "the class is extra"),
        (
            "train/cat",
            (
                "it and 'Cat' differ only in case, or in how an accent is encoded; rename or merge "
                "them"
            ),
        ),
        ("train/empty", "the class folder holds no images; remove it or fill it"),
        ("val/Cat", "the class is missing"),
        ("val/bird", "the class is extra"),
        ("val/dog", "the class is missing"),
        ("val/empty", "the class is missing"),
    ]
    assert found.seen == found.good == 6


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    class_folders(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "a" / "locked").mkdir()
    scandir = os.scandir

    def locked(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    found = check(tmp_path)
    assert [(fault.path, fault.kind) for fault in found.bad] == [("a/locked", "unreadable")]
    with pytest.raises(DataError, match=r"cannot list the folder .*a/locked: Permission denied"):
        open_splits(DataSpec(source="folder", path=str(tmp_path)), seed=0)


@pytest.mark.bar("B18", "names with line breaks: reports stay one line")
def test_names_stay_one_line(tmp_path):
    class_folders(tmp_path, {"a": 1, "b": 1})
    names = [b"line\nbreak.png", b"not \xff utf8.png", b"long" + b"g" * 240 + b".png"]
    for name in names:
        # bytes
        with open(os.path.join(os.fsencode(tmp_path / "a"), name), "wb") as file:  # noqa: PTH118, PTH123
            file.write(b"broken")
    found = check(tmp_path)
    assert sorted(os.fsencode(fault.path) for fault in found.bad) == sorted(
        b"a/" + name for name in names
    )
    lines = str(found).encode("utf-8").decode().splitlines()  # printable everywhere
    assert sum("begins with b'broken'" in line for line in lines) == 3
    assert r"  a/line\nbreak.png: " in str(found)
    assert r"  a/not \udcff utf8.png: " in str(found)
    assert json.loads(json.dumps(found.to_dict()))["by_reason"] == {"no image": 3}


def test_images_without_classes(tmp_path):
    for index in range(3):
        noise(seed=index).save(tmp_path / f"{index}.png")
    (tmp_path / "bad.png").write_bytes(b"x")
    found = check(tmp_path)
    assert (found.layout, found.seen, found.good, kinds(found)) == (
        "images",
        4,
        3,
        {"bad.png": "no image"},
    )


def test_an_npz_is_clean(tmp_path):
    found = check(medmnist(tmp_path / "toy.npz"))
    assert (found.layout, found.seen, found.good, found.exit_code) == ("npz", 27, 27, 0)
    assert found.counts["test"] == {"0": 3, "1": 3, "2": 3}
    assert (found.bad, found.warnings, found.duplicates) == ((), (), ())


def images(n=12, dtype=np.uint8):
    return np.random.default_rng(5).integers(0, 256, (n, 10, 10)).astype(dtype)


def with_nan():
    values = images(dtype=np.float32)
    values[3, 0, :2] = np.nan
    values[7, 0, 0] = np.inf
    return values


def labels(*changed, n=12):
    values = np.arange(n) % 3
    for index, value in changed:
        values[index] = value
    return values


NPZ = {
    "float": ({"train_images": images(dtype=np.float32)}, {"toy.npz/train_images": "pixel format"}),
    "nan": (
        {"train_images": with_nan()},
        {"toy.npz/train_images": "pixel format", "train/3": "not finite", "train/7": "not finite"},
    ),
    "deep": ({"val_images": images(6, np.uint16)}, {"toy.npz/val_images": "pixel format"}),
    "shape": ({"train_images": np.zeros((12, 10), np.uint8)}, {"toy.npz/train_images": "shape"}),
    "none": ({"val_images": np.zeros((0, 10, 10), np.uint8)}, {"toy.npz/val_images": "shape"}),
    "unpaired": ({"val_labels": None}, {"toy.npz": "layout"}),
    "no train": ({"train_images": None, "train_labels": None}, {"toy.npz": "layout"}),
    "count": ({"train_labels": labels(n=11)}, {"toy.npz/train_images": "labels"}),
    "negative": (
        {"train_labels": labels((4, -1), (5, -7))},
        {"train/4": "labels", "train/5": "labels"},
    ),
    "fractions": ({"train_labels": labels() / 2}, {"toy.npz/train_labels": "labels"}),
    "columns": (
        {"train_labels": np.eye(12, 14, dtype=np.uint8)},
        {
            "toy.npz/train_labels": "classes",
            "toy.npz/val_labels": "labels",
            "toy.npz/test_labels": "labels",
        },
    ),
    "unknown class": ({"test_labels": labels((0, 5), n=9)}, {"toy.npz/test_labels": "classes"}),
    "class without images": (
        {"val_labels": np.zeros(6, np.uint8)},
        {"toy.npz/val_labels": "classes"},
    ),
    "gap": ({"train_labels": labels() * 2}, {"toy.npz/train_labels": "classes"}),
    "objects": (
        {"train_labels": np.array([{}] * 12, dtype=object)},
        {"toy.npz/train_labels": "damaged"},
    ),
}


@pytest.mark.bar("B1", "faults of an npz file: named")
@pytest.mark.parametrize("name", NPZ)
def test_faults_of_an_npz(tmp_path, name):
    replaced, expected = NPZ[name]
    found = check(medmnist(tmp_path / "toy.npz", **replaced))
    assert expected.items() <= kinds(found).items()
    assert found.exit_code == 1
    assert all(fault.kind == "classes" for fault in found.bad if fault.path not in expected)
    assert found.good <= found.seen <= 27


def test_damaged_npz_files(tmp_path):
    whole = medmnist(tmp_path / "toy.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    assert kinds(check(tmp_path / "cut.npz")) == {"cut.npz": "damaged"}
    np.save(tmp_path / "one.npy", images())
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    assert kinds(check(tmp_path / "one.npz")) == {"one.npz": "damaged"}
    # inside the pixels: the archive's checksum finds it
    place = whole.index(b"train_images.npy") + 300
    (tmp_path / "flip.npz").write_bytes(
        whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    )
    assert kinds(check(tmp_path / "flip.npz"))["flip.npz/train_images"] == "damaged"
    header = (
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 1000, 1000), }".ljust(
            117
        )
        + b"\n"
    )
    with zipfile.ZipFile(tmp_path / "lie.npz", "w") as archive:
        archive.writestr("train_images.npy", b"\x93NUMPY\x01\0" + bytes([118, 0]) + header)
        archive.writestr("train_labels.npy", b"no array")
    found = check(tmp_path / "lie.npz")
    assert {"lie.npz/train_images", "lie.npz/train_labels"} <= set(kinds(found))
    for name in ("cut", "one", "flip", "lie"):
        with pytest.raises(DataError, match=f"{name}.npz"):
            open_splits(
                DataSpec(source="npz", path=str(tmp_path / f"{name}.npz"), in_chans=1), seed=0
            )


def test_duplicates_in_an_npz(tmp_path):
    val = np.random.default_rng(9).integers(0, 256, (6, 10, 10), dtype=np.uint8)
    test = np.random.default_rng(8).integers(0, 256, (9, 10, 10), dtype=np.uint8)
    test[4] = val[2]
    found = check(
        medmnist(tmp_path / "toy.npz", val_images=val, test_images=test, note=np.zeros(3))
    )
    assert found.duplicates == (("val/2", "test/4"),)
    assert [(fault.path, fault.kind) for fault in found.warnings] == [("toy.npz/note", "layout")]


def test_misuse_is_one_sentence(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    class_folders(tmp_path / "folders", {"a": 1, "b": 1})
    for path, words, error in (
        (tmp_path / "gone", "no data at .*gone: give a folder", DataError),
        (tmp_path / "a.txt", "a.txt is neither a folder, a COCO json file", DataError),
        (tmp_path, "holds 1 class folders", None),
    ):
        if error is None:
            assert words in check(path).bad[0].reason
            continue
        with pytest.raises(error, match=words) as raised:
            check(path)
        assert raised.value.exit_code == 2
    with pytest.raises(
        UsageError, match=r"images=there is for COCO annotations, and .*folders holds none"
    ):
        check(tmp_path / "folders", images="there")


def test_clothing10(data_root):
    found = check(data_root / "clothing10" / "test")
    assert (found.layout, found.seen, found.good, found.exit_code) == ("class folders", 240, 240, 0)
    assert found.counts["all"]["dress"] == 24
    assert (found.warnings, found.duplicates) == ((), ())


def test_pneumoniamnist_has_its_known_duplicates(data_root):
    found = check(data_root / "pneumoniamnist" / "pneumoniamnist.npz")
    assert (found.seen, found.good, len(found.bad)) == (5856, 5856, 0)
    assert len(found.duplicates) == 8
    assert all(
        one.startswith("train/") and other.startswith("val/") for one, other in found.duplicates
    )


def test_label_images_come_out_clean(tmp_path):
    found = check(label_set(tmp_path))
    assert (found.layout, found.seen, found.good, found.exit_code) == ("label images", 9, 9, 0)
    assert list(found.counts) == ["train", "val", "test"]
    assert sum(found.counts["train"].values()) == 4 * 48 * 64, "pixels"
    assert found.counts["train"].keys() == {"ground", "water", "unknown"}


@pytest.mark.bar(
    "B16",
    "data check names label values and sizes that do not fit, in every folder of label images",
)
def test_faults_of_label_images_are_named(tmp_path):
    expected = test_label_images.spoil(label_set(tmp_path))
    label_set(tmp_path / "more")
    (tmp_path / "more/labels").rename(tmp_path / "labels_second")
    Image.fromarray(np.full((48, 64), 8, dtype=np.uint8)).save(
        tmp_path / "labels_second/train/3.png"
    )
    found = check(tmp_path)
    reasons = [(fault.path, fault.reason) for fault in found.bad]
    for path, said in {
        **expected,
        "labels_second/train/3.png": "the values 8 (3072 pixels)",
    }.items():
        assert any(path == where and said in why for where, why in reasons), path
    assert len(reasons) == len(set(reasons))
    assert found.seen == 8, "each image once"
    assert found.exit_code == 1


def test_images_without_label_images(tmp_path):
    label_set(tmp_path)
    (tmp_path / "labels").rename(tmp_path / "drawings")
    assert "no label images" in check(tmp_path).bad[0].reason


@pytest.mark.bar("B10", "images that are very slender: told")
def test_formats_without_checksums_are_counted_and_slender_images_told(tmp_path):
    class_folders(tmp_path, {"a": 2, "b": 2})
    assert "without checksums" not in str(check(tmp_path))
    noise(seed=7).save(tmp_path / "a" / "x.jpg")
    noise(seed=8).save(tmp_path / "b" / "y.tif", compression="tiff_lzw")
    noise(500, 9, seed=9).save(tmp_path / "b" / "strip.png")
    found = check(tmp_path)
    assert found.to_dict()["unguarded"] == {"JPEG": 1, "TIFF (lzw)": 1}
    assert (
        "formats without checksums, in which altered pixels are not seen: JPEG: 1, TIFF (lzw): 1"
        in str(found)
    )
    assert [(fault.path, fault.kind) for fault in found.warnings] == [("b/strip.png", "slender")]
    assert "500 x 9 pixels" in found.warnings[0].reason
    assert found.exit_code == 0
