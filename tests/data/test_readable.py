"""Every image of every split is decoded before anything is done with one; what cannot be read stops
the work or is left out with a count.
"""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from softless.data import notices, open_parts, open_splits, progress, readable
from softless.data.findings import Fault, refusal
from softless.errors import DataError, Faults, UsageError
from softless.experiment.groups import DataSpec
from softless.experiment.ranges import Range
from softless.tasks.check import check
from softless.tasks.dino.samples import open_unlabelled
from tests.data.making import class_folders, medmnist, split_folders


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory):
    monkeypatch.setattr(readable, "_known", {})
    monkeypatch.setenv("SOFTLESS_CACHE", str(tmp_path_factory.mktemp("cache")))


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damaged(tmp_path: Path) -> Path:
    """Splits of two classes with a bad file in each."""
    counts = {"a": 4, "b": 4}
    root = split_folders(tmp_path / "data", {"train": counts, "val": counts, "test": counts})
    for name in ("train/a/01.png", "val/b/02.png", "test/b/03.png"):
        cut_off(root / name)
    return root


def spec(root: Path, **more: Any) -> DataSpec:
    return DataSpec(source="folder", path=str(root), mean=(0.5,) * 3, std=(0.25,) * 3, **more)


def test_the_faults_of_all_splits_are_in_one_error(tmp_path: Path):
    root = damaged(tmp_path)
    with pytest.raises(
        DataError, match=r"3 faults before the first step; .*data\.faults=skip"
    ) as caught:
        open_splits(spec(root), seed=0)
    said = str(caught.value)
    assert all(name in said for name in ("train/a/01.png: ", "val/b/02.png: ", "test/b/03.png: "))
    assert [fault.path for fault in check(root).bad] == [
        "train/a/01.png",
        "val/b/02.png",
        "test/b/03.png",
    ]


def test_a_long_list_of_faults_is_cut_with_a_true_count(tmp_path: Path):
    """A sentence that many files share is said once, with their number; other lists end with how
    many lines are left.
    """
    root = class_folders(tmp_path / "data", {"a": 60, "b": 2})
    for file in (root / "a").iterdir():
        cut_off(file)
    with pytest.raises(Faults, match=r"60 faults") as raised:
        open_splits(spec(root), seed=0)
    (line,) = raised.value.lines
    assert (
        line
        == "  60 times: image file is truncated; replace or remove the file (a/00.png, a/01.png, "
        "a/02.png, …)"
    )
    several = refusal(
        root,
        [Fault(f"{number}.png", f"it lacks {number} bytes", "damaged") for number in range(60)],
        "mend them",
    )
    assert (
        several.lines[-1] == f"  … and 10 more lines: `softless data check {root} --json` lists all"
    )
    again = pickle.loads(pickle.dumps(several))
    assert (str(again), again.lines) == (str(several), several.lines)


def test_skip_leaves_files_out_of_every_split_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    root = damaged(tmp_path)
    splits = open_splits(spec(root, faults="skip"), seed=0)
    assert splits.test is not None
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [7, 7, 7]
    assert "a/01.png" not in " ".join(splits.train.files)  # type: ignore[attr-defined]
    assert {part: [one.path for one in found] for part, found in splits.left_out.items()} == {
        "train": ["train/a/01.png"],
        "val": ["val/b/02.png"],
        "test": ["test/b/03.png"],
    }
    assert (
        "leaves out 1 of 8 images of train, 1 of 8 images of val, 1 of 8 images of test"
        in caplog.text
    )
    assert "scores are of the images of val and test that are left" in caplog.text
    for name in ("train/a/01.png", "val/b/02.png", "test/b/03.png"):
        (root / name).unlink()
    # the set that a resumed run is held to
    assert open_splits(spec(root), seed=0).fingerprint == splits.fingerprint


def test_a_class_that_would_be_empty_is_an_error(tmp_path: Path):
    root = split_folders(tmp_path / "data", {"train": {"a": 3, "b": 3}, "test": {"a": 1, "b": 1}})
    cut_off(root / "test/b/00.png")
    with pytest.raises(
        DataError, match=r"1 classes of test have none left \(such as test/b/00\.png\)"
    ):
        open_splits(spec(root, faults="skip"), seed=0)


def test_images_without_classes_too(tmp_path: Path):
    class_folders(tmp_path, {"all": 5})
    cut_off(tmp_path / "all/02.png")
    with pytest.raises(DataError, match=r"1 fault before the first step[\s\S]*02\.png"):
        open_unlabelled(spec(tmp_path / "all"), seed=0)
    splits = open_unlabelled(spec(tmp_path / "all", faults="skip", val_fraction=0.5), seed=0)
    assert len(splits.train) + len(splits.val) == 4
    assert [one.path for one in splits.left_out["train"]] == ["02.png"]


def test_policies_that_cannot_be_meant(tmp_path: Path):
    class_folders(tmp_path, {"a": 2, "b": 2})
    with pytest.raises(
        UsageError, match=r"no policy for faults named 'drop'.* Known: clip, skip, stop"
    ):
        open_parts(spec(tmp_path, faults="drop"))
    with pytest.raises(
        UsageError, match="clip cuts boxes to their image, and these data have none"
    ):
        open_parts(spec(tmp_path, faults="clip"))
    with pytest.raises(UsageError, match="clip cuts boxes"):
        open_parts(
            DataSpec(
                source="npz", path=str(medmnist(tmp_path / "toy.npz")), in_chans=1, faults="clip"
            )
        )


def test_a_whole_file_is_decoded_once_and_again_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root = class_folders(tmp_path / "data", {"a": 3, "b": 3})
    decoded: list[str] = []
    real = readable.read_whole

    def counted(path: Path, *given: Any, **named: Any) -> Any:
        decoded.append(path.name)
        return real(path, *given, **named)

    monkeypatch.setattr(readable, "read_whole", counted)
    # as though it had taken long: kept for later processes
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    files = sorted(root.rglob("*.png"))
    assert readable.unreadable(files) == {}
    assert len(decoded) == 6
    monkeypatch.setattr(readable, "_known", {})  # another process
    assert readable.unreadable(files) == {}
    assert len(decoded) == 6
    state = files[0].stat()
    cut_off(files[0])
    os.utime(files[0], ns=(state.st_atime_ns, state.st_mtime_ns))  # its size tells
    assert list(readable.unreadable(files)) == [files[0]]
    assert len(decoded) == 7
    # what is bad is asked about again, not remembered
    assert list(readable.unreadable(files)) == [files[0]]
    monkeypatch.setenv("SOFTLESS_MIN_SIDE", "100")
    assert len(readable.unreadable(files)) == 6


def test_a_cache_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch, caplog: pytest.LogCaptureFixture
):
    root = class_folders(tmp_path / "data", {"a": 2})
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SOFTLESS_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    assert readable.unreadable(sorted(root.rglob("*.png"))) == {}
    assert "decoded again at the next start" in caplog.text


def test_values_outside_a_range_are_said_each_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """Files whose values are cut to the range are not remembered for later processes: the line
    comes again.
    """
    monkeypatch.setenv("SOFTLESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    scale = Range.parse("10..200")
    for name, low in (("inside", 20), ("outside", 0)):
        Image.fromarray(np.full((16, 16), low, np.uint8)).save(tmp_path / f"{name}.png")
    files = sorted(tmp_path.glob("*.png"))
    for _ in range(2):
        monkeypatch.setattr(readable, "_known", {})  # as in another process
        notices._said.clear()
        caplog.clear()
        assert readable.unreadable(files, 1, scale) == {}
        assert (
            "1 image of 2 with values outside data.range=10..200, cut to its ends: 256 below and "
            "0 above" in caplog.text
        )
