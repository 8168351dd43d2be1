"""A fault of any split is met before the first step; what is left out on request is written into
the run folder.
"""

import json
from pathlib import Path

import pytest

from softless.errors import DataError, ResumeMismatch
from softless.recipes import get_recipe
from softless.training import Recipe, fit
from tests.data.making import split_folders


def small(root: Path, **fields: str) -> Recipe:
    recipe = get_recipe("folder").quick(root / "unused")
    counts = {"a": 8, "b": 8}
    split_folders(root / "data", {"train": counts, "val": counts, "test": counts})
    return recipe.with_fields(**{"data.path": str(root / "data"), **fields})


def cut_off(root: Path, *names: str) -> None:
    for name in names:
        path = root / "data" / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_test_image_that_cannot_be_read_is_named_before_the_first_step(tmp_path: Path):
    recipe = small(tmp_path)
    cut_off(tmp_path, "test/b/03.png", "val/a/01.png")
    with pytest.raises(
        DataError, match=r"2 faults before the first step[\s\S]*val/a/01\.png[\s\S]*test/b/03\.png"
    ):
        fit(recipe, tmp_path / "run", device="cpu", progress=False)
    assert not (tmp_path / "run").exists()


def test_skipped_images_are_counted_in_the_result_and_listed_in_the_folder(tmp_path: Path):
    recipe = small(tmp_path, **{"data.faults": "skip"})
    cut_off(tmp_path, "train/a/00.png", "test/b/03.png")
    result = fit(recipe, tmp_path / "run", device="cpu", progress=False)
    assert result.left_out == {"train": 1, "test": 1}
    assert result.test is not None
    assert result.test["expected"] == 15
    assert "images that cannot be used were left out: 1 of train, 1 of test" in str(result)
    listed = json.loads((tmp_path / "run" / "left_out.json").read_text(encoding="utf-8"))
    assert [name for name, _ in listed["train"]] == ["train/a/00.png"]
    assert [name for name, _ in listed["test"]] == ["test/b/03.png"]
    assert fit(recipe, tmp_path / "run", resume=True, device="cpu", progress=False) == result


def test_a_resumed_run_has_the_same_set_or_is_refused(tmp_path: Path):
    recipe = small(tmp_path, **{"data.faults": "skip", "schedule.epochs": "2"})
    whole = (tmp_path / "data/train/a/00.png").read_bytes()
    cut_off(tmp_path, "train/a/00.png")
    fit(recipe, tmp_path / "run", device="cpu", progress=False)
    (tmp_path / "run/result.json").unlink()
    (tmp_path / "data/train/a/00.png").write_bytes(whole)
    with pytest.raises(ResumeMismatch):
        fit(recipe, tmp_path / "run", resume=True, device="cpu", progress=False)
