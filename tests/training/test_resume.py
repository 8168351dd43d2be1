"""A run knows its own recipe: it is continued by its folder alone, from any folder, and nothing of
it changes in silence.
"""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import softless
from softless.cli.main import main
from softless.errors import DataError, ResumeMismatch, UsageError
from softless.experiment.folder import RunFolder
from softless.experiment.recipe import as_json
from softless.training import Recipe, fit
from tests.training.conftest import tiny_recipe, write_npz
from tests.training.test_loop import same, state, untimed


def stop_after(monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    """The next training is killed just before the state of this epoch is written."""
    save = softless.training.checkpoint.save

    def killed(run):
        if run.epoch == epochs:
            raise KeyboardInterrupt
        save(run)

    monkeypatch.setattr(softless.training.checkpoint, "save", killed)


@pytest.fixture
def cut(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was started with fields of its own from another folder, and killed in its second
    epoch.
    """
    start = tmp_path / "start"
    start.mkdir()
    shutil.move(str(tiny.data.path), start / "images.npz")
    monkeypatch.chdir(start)
    own = replace(tiny, seed=5, data=replace(tiny.data, path="images.npz"))
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            fit(own, tmp_path / "cut", device="cpu", progress=False)
    fit(own, tmp_path / "whole", device="cpu", progress=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cut"


def same_run(a: Path, b: Path) -> bool:
    return same(state(a), state(b)) and untimed(a) == untimed(b)


def test_the_folder_alone_continues_it_from_elsewhere(cut: Path):
    assert main(["train", "--resume", "--out", str(cut), "--device", "cpu"]) == 0
    assert same_run(cut.parent / "whole", cut)


def test_in_python_no_recipe_is_needed(cut: Path):
    assert fit(None, cut, resume=True, device="cpu", progress=False).epochs == 3
    assert same_run(cut.parent / "whole", cut)
    assert softless.train(out=cut, resume=True, device="cpu").epochs == 3


def test_fields_given_again_must_agree(cut: Path, capsys: pytest.CaptureFixture[str]):
    words = ["train", "--resume", "--out", str(cut), "--device", "cpu"]
    assert main([*words, "--set", "optim.lr=0.1"]) == 2
    assert "its recipe differs in optim.lr (0.005 there, 0.1 asked)" in capsys.readouterr().err
    assert main([*words, "--seed", "6"]) == 2
    assert "seed (5 there, 6 asked)" in capsys.readouterr().err
    assert main([*words, "--recipe", "digits"]) == 2
    assert "it is a run of recipe 'tiny', and 'digits' was asked" in capsys.readouterr().err
    assert main([*words, "--seed", "5", "--set", "optim.lr=0.005"]) == 0


def test_what_may_change_is_said(cut: Path, caplog: pytest.LogCaptureFixture):
    moved = cut.parent / "moved.npz"
    shutil.move(cut.parent / "start/images.npz", moved)
    with pytest.raises(
        DataError, match=r"data of the run .*cut are not at .*start/images.npz: .* --data PATH"
    ):
        fit(None, cut, resume=True, device="cpu", progress=False)
    with caplog.at_level(logging.WARNING):
        softless.train(out=cut, resume=True, data="moved.npz", set=["save.keep=1"], device="cpu")
    assert f"data.path is {moved} now, {cut.parent / 'start/images.npz'} before" in caplog.text
    assert "save.keep is 1 now, 2 before" in caplog.text
    assert same_run(cut.parent / "whole", cut)


def test_a_finished_run_needs_no_data(tiny: Recipe, tmp_path: Path):
    first = fit(tiny, tmp_path / "run", device="cpu", progress=False)
    Path(str(tiny.data.path)).unlink()
    assert fit(None, tmp_path / "run", resume=True, device="cpu") == first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--resume", "softless train --resume needs --out RUN"),
        ("--resume --out nowhere", "no run to continue in nowhere"),
        ("--out nowhere", "softless train needs --recipe"),
    ],
)
def test_without_a_run_a_recipe_is_needed(
    words: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *words.split()]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="no run to continue in"):
        fit(None, tmp_path / "nowhere", resume=True)


def test_a_damaged_recipe_is_one_sentence(cut: Path):
    (cut / "recipe.json").write_text('{"name": "ti')
    with pytest.raises(UsageError, match=r"its recipe.json cannot be read .*--overwrite"):
        fit(None, cut, resume=True)


def test_a_recipe_reads_back_as_it_was(tiny: Recipe, tmp_path: Path):
    odd = replace(
        tiny,
        model=replace(
            tiny.model, args={**tiny.model.args, "img_size": (16, 16), "pair": ((1, 2), 3)}
        ),
    )
    folder = RunFolder(tmp_path)
    folder.write_json("recipe.json", as_json(odd))
    assert folder.recipe() == odd


def test_places_are_found_from_anywhere_and_told_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Paths are whole in recipe.json, and no file that is passed on holds one."""
    home = tmp_path / "secret-home"
    home.mkdir()
    write_npz(home / "images.npz")
    monkeypatch.chdir(home)
    recipe = replace(tiny_recipe(Path("images.npz")), name="mine")
    fit(recipe, "first", device="cpu", progress=False)
    again = recipe.with_fields(**{
        "model.weights": "first",
        "data.path": "../secret-home/images.npz",
    })
    softless.train(again, out="second", device="cpu")
    stored = json.loads((home / "second/recipe.json").read_text())
    assert stored["data"]["path"] == str(home / "images.npz")
    assert stored["model"]["weights"] == str(home / "first")
    assert any((home / "second/model").iterdir())
    shared = [home / "second/best.json", home / "second/report.html", home / "second/result.json"]
    for file in [*shared, *(home / "second/model").iterdir()]:
        assert b"secret-home" not in file.read_bytes(), file.name
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "secret-home/second", "--device", "cpu"]) == 0
    (home / "images.npz").unlink()
    softless.train(out=home / "second", resume=True, device="cpu")
    page = (home / "second/report.html").read_text()
    assert "The test images cannot be shown: " in page
    assert "secret-home" not in page


def test_eval_says_where_to_put_data_that_moved(
    tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    fit(tiny, tmp_path / "run", device="cpu", progress=False)
    moved = Path(str(tiny.data.path)).rename(tmp_path / "moved.npz")
    assert main(["eval", str(tmp_path / "run"), "--device", "cpu"]) == 2
    assert "images.npz: pass their place, softless eval RUN DATA" in capsys.readouterr().err
    assert main(["eval", str(tmp_path / "run"), str(moved), "--device", "cpu"]) == 0


def test_a_run_of_an_older_softless_continues_from_where_it_was_started(
    cut: Path, monkeypatch: pytest.MonkeyPatch
):
    stored = json.loads((cut / "recipe.json").read_text())
    stored["data"]["path"] = "images.npz"
    (cut / "recipe.json").write_text(json.dumps(stored))
    with pytest.raises(DataError, match="--data PATH"):
        fit(None, cut, resume=True, device="cpu", progress=False)
    monkeypatch.chdir(cut.parent / "start")
    fit(None, cut, resume=True, device="cpu", progress=False)
    assert same_run(cut.parent / "whole", cut)


def test_another_place_of_the_same_weights_is_no_mismatch(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fit(tiny, tmp_path / "first", device="cpu", progress=False)
    monkeypatch.chdir(tmp_path)
    started = tiny.with_fields(**{"model.weights": "first"})
    fit(started, "second", device="cpu", progress=False)
    stored = json.loads((tmp_path / "second/recipe.json").read_text())
    stored["model"]["weights"] = "first"  # as an older softless wrote it
    (tmp_path / "second/recipe.json").write_text(json.dumps(stored))
    assert fit(started, "second", resume=True).epochs == 3
    with pytest.raises(ResumeMismatch, match=r"model\.weights"):
        fit(tiny.with_fields(**{"model.weights": "other"}), "second", resume=True)
