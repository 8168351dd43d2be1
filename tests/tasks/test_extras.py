"""An optional package that a task needs at some time is asked for before its data are opened, in
every verb that works for long.
"""

import sys
from pathlib import Path

import pytest

from lab import __main__ as lab
from softless import errors
from softless.cli.bench import bench
from softless.errors import MissingExtra, need
from softless.recipes import RECIPES, get_recipe
from softless.tasks.table import TASKS, open_task
from softless.training import fit


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch):
    def block(*modules: str) -> None:
        for module in modules:
            monkeypatch.setitem(sys.modules, module, None)

    return block


@pytest.mark.parametrize("task", [name for name, kind in TASKS.items() if kind.needs])
def test_a_task_asks_before_it_opens_its_data(task: str, absent, tmp_path: Path):
    recipe = next(one for one in map(get_recipe, RECIPES) if one.task == task)
    recipe = recipe.with_fields(**{"data.path": str(tmp_path / "there is nothing here")})
    for module in TASKS[task].needs:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(MissingExtra, match=errors.EXTRAS[module][0]):
                open_task(recipe)
    absent(*TASKS[task].needs)
    with pytest.raises(MissingExtra) as caught:
        fit(recipe, tmp_path / "run", device="cpu", progress=False)
    # all in one error
    assert all(errors.EXTRAS[module][0] in str(caught.value) for module in TASKS[task].needs)
    assert not (tmp_path / "run").exists()


def test_the_digits_need_theirs(absent):
    absent("sklearn")
    with pytest.raises(MissingExtra, match="scikit-learn"):
        open_task(get_recipe("digits"))


@pytest.mark.parametrize(
    ("kind", "module"), [("resolution", "matplotlib"), ("dino", "sklearn"), ("dino", "lightly")]
)
def test_a_comparison_asks_for_what_it_uses_last(kind, module, absent):
    absent(module)
    with pytest.raises(MissingExtra, match=errors.EXTRAS[module][0]):
        bench(kind)


def test_a_figure_of_the_laboratory_asks_too(absent):
    absent("matplotlib")
    with pytest.raises(MissingExtra, match=errors.EXTRAS["matplotlib"][0]):
        lab.run(["speed", "--figure", "block"])


def test_the_message_of_a_checkout_and_of_an_installed_package(
    absent, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    absent("lightly", "matplotlib")
    with pytest.raises(
        MissingExtra,
        match=r'lightly and matplotlib, which are not installed: pip install -e "\.\[ssl,train\]"',
    ):
        need("lightly", "matplotlib")
    monkeypatch.setattr(errors, "ROOT", tmp_path)
    with pytest.raises(
        MissingExtra, match=r'matplotlib, which is not installed: pip install "softless\[train\]"'
    ):
        need("matplotlib")
