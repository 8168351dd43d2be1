"""A recipe in a file of one's own goes wherever a name goes; what is wrong is one sentence."""

from pathlib import Path
from typing import Any

import pytest

import softless
from softless.cli.data import data
from softless.errors import UsageError
from softless.experiment.folder import RunFolder
from softless.experiment.recipe import as_json
from softless.recipes import get_recipe
from tests.data.making import split_folders

MINE = """
from softless.recipes import get_recipe

def recipe():
    return get_recipe("classify").with_fields(**{"name": "mine", "optim.lr": 0.01})
"""
QUICK = [
    "schedule.epochs=1",
    "schedule.warmup_epochs=0",
    "data.image_size=32",
    "batch_size=4",
    "model.args.embed_dim=32",
    "model.args.num_heads=2",
    "model.args.depth=1",
    "threads=1",
]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    file = tmp_path / "my_recipe.py"
    file.write_text(MINE)
    return file


def test_it_is_the_recipe_that_the_file_returns(mine: Path) -> None:
    named = get_recipe("classify").with_fields(**{"name": "mine", "optim.lr": 0.01})
    assert as_json(get_recipe(str(mine))) == as_json(named)


def test_it_trains_and_goes_on_without_the_file(mine: Path, tmp_path: Path) -> None:
    counts = {"a": 6, "b": 6}
    root = split_folders(tmp_path / "data", {"train": counts, "val": counts, "test": counts})
    out = tmp_path / "run"
    softless.train(str(mine), data=root, out=out, set=QUICK, device="cpu")
    mine.unlink()
    held = RunFolder(out).recipe()
    assert held is not None
    assert (held.name, held.optim.lr) == ("mine", 0.01)
    longer: Any = softless.train(resume=True, out=out, set=["schedule.epochs=2"], device="cpu")
    assert longer.epochs == 2


def test_other_verbs_take_it_too(mine: Path, tmp_path: Path) -> None:
    root = split_folders(tmp_path / "data", {"train": {"a": 2, "b": 2}, "val": {"a": 2, "b": 2}})
    assert data("check", path=root, recipe=str(mine)).exit_code == 0
    listed = softless.list("recipes", str(mine))
    assert "0.01" in str(listed)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, r"no recipe file .*my_recipe\.py: name a file that holds recipe\(\), or a recipe"),
        ("x = 1", r"my_recipe\.py has no recipe\(\): it must hold `def recipe\(\)`"),
        ("recipe = 3", r"my_recipe\.py gives NoneType by recipe\(\): it must hold"),
        ("def recipe():\n    return 3", r"my_recipe\.py gives int by recipe\(\): it must hold"),
        ("def recipe(:", r"my_recipe\.py ends in an error \(SyntaxError: .*\): mend it"),
        ("import nowhere_to_be_found", r"ends in an error \(ModuleNotFoundError: No module named"),
        ("def recipe():\n    return 1 / 0", r"ends in an error \(ZeroDivisionError: division by"),
        (MINE.replace("optim.lr", "optim.rate"), r"no field .*optim\.rate"),
    ],
    ids=["missing", "no recipe", "no function", "a number", "syntax", "import", "error", "field"],
)
def test_what_is_wrong_is_one_sentence(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "my_recipe.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UsageError, match=said) as raised:
        get_recipe(str(file))
    assert "\n" not in str(raised.value)
