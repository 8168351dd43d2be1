"""`softless train`: a run and its report from one command, and every wrong word in one sentence."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import softless
from softless.cli.main import main
from softless.recipes import get_recipe
from softless.training import Recipe

SMALL = (
    "model.args.depth=1 model.args.embed_dim=16 model.args.num_heads=2 schedule.epochs=1 "
    "schedule.warmup_epochs=0 threads=1"
)


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    return Path(str(get_recipe("medmnist").quick(tmp_path).data.path))


def train(out: Path, data: Path, *more: str, batch: int = 8) -> int:
    words = [
        "train",
        "--recipe",
        "medmnist",
        "--data",
        str(data),
        "--out",
        str(out),
        "--device",
        "cpu",
    ]
    return main([*words, *more, "--set", *SMALL.split(), f"batch_size={batch}"])


def test_a_run_and_its_report(tmp_path: Path, npz: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "run"
    small = ["--set", "data.image_size=32", "model.args.img_size=32"]
    assert train(out, npz, "--seed", "3", "--amp", "bfloat16", *small, "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["test"]["expected"] == 8
    assert "epoch 1/1" in said.err
    recipe = json.loads((out / "recipe.json").read_text())
    assert (recipe["seed"], recipe["amp"], recipe["model"]["args"]["depth"]) == (3, "bfloat16", 1)
    assert (out / "report.html").read_text().lstrip().lower().startswith("<!doctype html>")
    assert train(out, npz, "--seed", "3", "--amp", "bfloat16", *small) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert train(out, npz, "--seed", "3", "--amp", "bfloat16", *small, "--resume") == 0
    assert "best epoch 1 of 1" in capsys.readouterr().out


def test_the_python_function_takes_a_recipe(tmp_path: Path, npz: Path):
    recipe: Recipe = replace(get_recipe("digits").quick(tmp_path / "d"), name="mine")
    result = softless.train(recipe, out=tmp_path / "run", device="cpu", seed=4)
    assert result.run_dir == tmp_path / "run"
    assert json.loads((tmp_path / "run/recipe.json").read_text())["name"] == "mine"


def test_the_run_folder_has_the_recipes_name(
    tmp_path: Path, npz: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    result = softless.train(get_recipe("medmnist").quick(tmp_path / "d"), device="cpu")
    assert result.run_dir == Path("runs/medmnist")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--recipe digit", "no recipe named 'digit'. Did you mean 'digits'"),
        ("--recipe digits --set optim.rl=1", "no field named 'optim.rl'. Did you mean 'optim.lr'"),
        (
            "--recipe digits --set optim.lr=fast",
            "optim.lr='fast' does not fit: the field takes a number",
        ),
        ("--recipe digits --set optim.lr", "--set takes field=value"),
        (
            "--recipe digits --set model.name=vit_tinny_patch16_224",
            "no model named 'vit_tinny_patch16_224'. Did you mean",
        ),
        ("--recipe digits --set model.op=smia", "no operator named 'smia'. Did you mean 'sima'"),
        ("--recipe digits --set data.image_size=30 model.args.img_size=30", "30"),
        ("--recipe digits --set data.image_size=2 model.args.img_size=2", "2"),
        ("--recipe digits --set batch_size=5000", "batch_size=5000"),
        ("--recipe digits --data somewhere", "--data somewhere has no effect"),
        ("--recipe digits --device gpu", "no device named 'gpu'"),
        ("--recipe digits --amp half", "invalid choice: 'half'"),
        ("--recipe digits --overwrit", "has no option '--overwrit'. Did you mean '--overwrite'"),
        ("--recipe folder", "needs a path: give --data"),
        ("--recipe folder --data nowhere", "nowhere"),
        ("--data x", "softless train needs --recipe"),
    ],
)
def test_bad_input_is_one_sentence(
    words: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *words.split()]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.startswith("softless: ")
    assert len(said.err.splitlines()) == 1
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_divergence_ends_with_three(tmp_path: Path, npz: Path, capsys: pytest.CaptureFixture[str]):
    fields = [
        "--set",
        "data.image_size=32",
        "model.args.img_size=32",
        "optim.name=sgd",
        "optim.lr=1e30",
    ]
    assert train(tmp_path / "run", npz, *fields, "optim.clip_grad=none") == 3
    assert "nothing of this step was kept" in capsys.readouterr().err
