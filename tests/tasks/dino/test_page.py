"""The page of self-supervised runs: what it says of features, and neighbours that are the
nearest.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from softless.report.groups import Group, grouped
from softless.report.runs import read_run
from softless.tasks.dino import page as view
from softless.tasks.page import write
from softless.training import fit
from tests.data.making import split_folders
from tests.tasks.dino.test_dino import tiny_recipe


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> list[Group]:
    root = tmp_path_factory.mktemp("dino")
    split_folders(
        root / "data",
        {p: {"cat": n, "dog": n} for p, n in (("train", 12), ("val", 4), ("test", 3))},
    )
    recipe = tiny_recipe(root / "data")
    data = replace(recipe.data, source="folder", in_chans=3)
    runs = []
    for op in ("sima", "xca"):
        one = replace(
            recipe,
            data=data,
            model=replace(recipe.model, op=op),
            schedule=replace(recipe.schedule, epochs=2),
        )
        fit(one, root / op, device="cpu", progress=False)
        runs.append(root / op)
    return grouped([read_run(run) for run in runs])


def test_the_headline_tells_accuracy_with_its_interval(groups: list[Group]):
    text = view.headline(groups)
    assert "By their 20 nearest neighbours" in text or "has collapsed" in text
    for word in (
        "20-NN accuracy on test images",
        "spread of features",
        "loss, last epoch",
        "SimA",
        "XCA",
    ):
        assert word in text, word


def test_each_test_image_has_its_neighbours_by_every_model(groups: list[Group]):
    text = view.samples(groups)
    assert text.count("<article") == 6
    assert text.count('alt="training image ') == 6 * 2 * view.NEIGHBOURS
    assert "said right" in text
    look = view._looked(groups[0].first.folder)
    assert not isinstance(look, str)
    assert (look.similar[:, :-1] >= look.similar[:, 1:]).all()


def test_the_page_is_written(groups: list[Group], tmp_path: Path):
    out = write([group.first.folder for group in groups], tmp_path / "report.html")
    assert "no label and no validation score chooses it" in out.read_text(encoding="utf-8")


def test_a_collapse_is_said(groups: list[Group]):
    run = groups[0].first
    last = {**run.epochs[-1], "val": {**run.epochs[-1]["val"], "spread": 0.001}}
    sunk = replace(groups[0], runs=(replace(run, epochs=[*run.epochs[:-1], last]),))
    assert "has collapsed: all images have nearly the same features" in view.headline([sunk])
