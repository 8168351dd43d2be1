"""Fields in a YAML file: the same run as by `--set`, and a run's recipe.yaml trains it again."""

from pathlib import Path
from typing import Any

import pytest

import softless
from softless.errors import UsageError
from softless.experiment.configuration import read_configuration, written
from softless.experiment.folder import RECIPE_YAML, RunFolder
from softless.experiment.recipe import as_json
from softless.recipes import RECIPES, get_recipe
from tests.data.making import split_folders

TINY = """
recipe: classify
schedule: {epochs: 1, warmup_epochs: 0}
data:
  path: %s
  image_size: 32
  crop_pct: 1
batch_size: 4
model.args: {embed_dim: 32, num_heads: 2, depth: 1}
threads: 1
optim: {lr: 3e-4, betas: [0.9, 0.95]}
"""


def configuration(folder: Path, text: str) -> Path:
    file = folder / "my_run.yaml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    counts = {"a": 6, "b": 6}
    root = split_folders(tmp_path / "data", {"train": counts, "val": counts, "test": counts})
    return configuration(tmp_path, TINY % root)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_reads_back(name: str, tmp_path: Path) -> None:
    recipe = get_recipe(name)
    file = configuration(tmp_path, written(recipe))
    assert as_json(get_recipe(str(file))) == as_json(recipe)


def test_a_run_by_a_file_is_the_run_by_set_and_its_own_file_trains_it_again(
    tiny: Path, tmp_path: Path
) -> None:
    first: Any = softless.train(config=tiny, out=tmp_path / "a", device="cpu")
    again: Any = softless.train(
        config=tmp_path / "a" / RECIPE_YAML, out=tmp_path / "b", device="cpu"
    )
    recipe = RunFolder(tmp_path / "a").recipe()
    assert recipe is not None
    assert (recipe.optim.lr, recipe.optim.betas, recipe.name) == (3e-4, (0.9, 0.95), "classify")
    assert RunFolder(tmp_path / "b").recipe() == recipe
    assert again.val["loss"] == first.val["loss"]


def test_set_replaces_what_the_file_says(tiny: Path, tmp_path: Path) -> None:
    softless.train(
        config=tiny, set={"optim": {"lr": 1e-2}}, seed=7, out=tmp_path / "a", device="cpu"
    )
    recipe = RunFolder(tmp_path / "a").recipe()
    assert recipe is not None
    assert (recipe.optim.lr, recipe.optim.betas, recipe.seed) == (1e-2, (0.9, 0.95), 7)


def test_values_are_what_they_look_like(tmp_path: Path) -> None:
    file = configuration(
        tmp_path,
        "a: 3e-4\nb: 1:30\nc: on\nd: no\ne: 0777\nf: 2026-11-30\ng: null\nh: [1, 2]\ni: -1.5\n"
        "j: .5\nk: True\nl: '3'\n",
    )
    assert dict(read_configuration(file).fields) == {
        "a": 3e-4,
        "b": "1:30",
        "c": "on",
        "d": "no",
        "e": "0777",
        "f": "2026-11-30",
        "g": None,
        "h": (1, 2),
        "i": -1.5,
        "j": 0.5,
        "k": True,
        "l": "3",
    }


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("recipe: classify\noptim.lr: 1\noptim: {lr: 2}\n", "optim.lr is set twice"),
        ("recipe: classify\nseed: 1\nseed: 2\n", "'seed' stands twice"),
        ("recipe: classify\noptim:\n  lr: 1\n  lr: 1\n", "'lr' stands twice"),
        ("recipe: classify\noptim.rl: 1\n", "optim.rl"),
        ("recipe: clasify\n", "classify"),
        ("recipe: [a]\n", "names the recipe"),
        ("recipe: classify\nname: mine\n", "leave one out"),
        ("name: mine\n", "summary"),
        ("- a\n- b\n", "holds no settings"),
        ("", "holds no settings"),
        ("a: [1\n", "is no YAML"),
        ("a: !!python/object/apply:os.system ['true']\n", "is no YAML"),
        ("a: &x [*x]\n", "write the part out"),
        ("schedule.epochs: 3\n", "--recipe"),
        ("recipe: classify\nseed: -1\n", "out of range"),
        ("recipe: classify\nema_evaluate: yes\n", "does not fit"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=r".") as caught:
        softless.train(config=configuration(tmp_path, text), data=tmp_path)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("recipe: ärger".encode("latin-1"))
    (tmp_path / "large.yaml").write_bytes(b"#" * (1 << 20) + b"\na: 1")
    for name, sentence in (("none", "no file"), ("latin", "UTF-8"), ("large", "larger")):
        with pytest.raises(UsageError, match=sentence):
            softless.train(config=tmp_path / f"{name}.yaml")


def test_two_recipes_are_refused(tiny: Path) -> None:
    with pytest.raises(UsageError, match="two recipes"):
        softless.train("digits", config=tiny)
