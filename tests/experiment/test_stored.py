"""recipe.json is read as one shape, a `Recipe`, by whoever reads a run."""

import json
from pathlib import Path
from typing import Any

import pytest

from softless.errors import DataError
from softless.experiment.folder import RunFolder
from softless.experiment.recipe import as_json, read_stored
from softless.recipes import RECIPES, get_recipe
from softless.report.runs import read_run
from softless.tasks.loaded import load_run
from softless.training import fit


def written(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "recipe.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_comes_back(name: str, tmp_path: Path):
    recipe = get_recipe(name)
    notes = {"torch": "2.0", "machine": {"cores": 2}, "fitted": {"schedule.epochs": 7}}
    stored = read_stored(written(tmp_path, {**as_json(recipe), **notes}))
    assert as_json(stored.recipe) == as_json(recipe)
    assert stored.recipe == RunFolder(tmp_path).recipe()
    assert stored.versions == {"torch": "2.0"}
    assert stored.machine == {"cores": 2}
    assert stored.epochs == 7


def test_what_another_softless_wrote(tmp_path: Path):
    """Its own fields are passed over, and what it did not write is at its default."""
    content = as_json(get_recipe("digits"))
    content["optim"] |= {"newest": 1}
    del content["schedule"]["patience"], content["amp"]
    stored = read_stored(written(tmp_path, {**content, "also": [1]}))
    assert stored.recipe.schedule.patience is None
    assert stored.recipe.amp == "none"
    assert stored.recipe.optim == get_recipe("digits").optim
    assert stored.epochs == content["schedule"]["epochs"], "nothing was fitted"


@pytest.mark.parametrize(
    ("group", "field", "value", "named"),
    [
        ("optim", "lr", "fast", "optim.lr"),
        ("data", "image_size", -3, "data.image_size"),
        ("schedule", "epochs", None, "schedule.epochs"),
    ],
)
def test_a_value_that_no_recipe_has(group: str, field: str, value: Any, named: str, tmp_path: Path):
    content = as_json(get_recipe("digits"))
    content[group][field] = value
    path = written(tmp_path, content)
    with pytest.raises(DataError, match=rf"recipe\.json is damaged: .*{named}") as refused:
        read_stored(path)
    assert "\n" not in str(refused.value)


def test_who_reads_a_run_has_the_same_recipe(tmp_path: Path):
    run = tmp_path / "run"
    fit(get_recipe("medmnist").quick(tmp_path / "data"), run, device="cpu", progress=False)
    shown, loaded = read_run(run).recipe, load_run(run).recipe
    assert shown == read_stored(run / "recipe.json").recipe
    assert (loaded.model, loaded.optim, loaded.seed) == (shown.model, shown.optim, shown.seed)
    best = json.loads((run / "best.json").read_text())
    assert loaded.data.mean == tuple(best["mean"]), "what the run measured"
