"""Folds: a run for each, what they reached together, and where a killed command goes on."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import softless
from softless.cli.main import main
from softless.errors import Interrupted, ResumeMismatch, UsageError
from softless.training import folds as module
from softless.training.folds import FoldEstimate
from tests.data.making import class_folders, noise, split_folders, table

SMALL = {
    "model.args.embed_dim": 32,
    "model.args.depth": 2,
    "model.args.num_heads": 2,
    "data.image_size": 32,
    "batch_size": 8,
    "schedule.epochs": 2,
    "schedule.warmup_epochs": 0,
    "schedule.min_epoch_steps": "none",
    "ema_decay": "none",
    "ema_evaluate": "false",
    "threads": 1,
    "augment.mixup": 0,
    "augment.cutmix": 0,
}
ROWS = [(f"images/{n}.png", "cat" if n % 2 else "dog", f"p{n // 4}") for n in range(48)]


def train(out: Path, **options):
    return softless.train(out=out, device="cpu", set=SMALL, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("folds")
    path = table(root, ROWS)
    return path, train(root / "run", table=path, folds=3)


def test_each_image_is_tested_once_and_no_group_stands_in_two_parts(trained):
    _, reached = trained
    tested: list[str] = []
    for fold in range(3):
        with (reached.folder / f"fold{fold}/splits.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(ROWS)
        parts: dict[str, set[str]] = {}
        for row in rows:
            parts.setdefault(row["group"], set()).add(row["part"])
        assert all(len(found) == 1 for found in parts.values())
        tested += [row["file"] for row in rows if row["part"] == "test"]
    assert sorted(tested) == sorted(row[0] for row in ROWS)


def test_means_and_intervals(trained):
    _, reached = trained
    told = json.loads((reached.folder / "folds.json").read_text())
    tests = [
        json.loads((reached.folder / f"fold{fold}/result.json").read_text())["test"]
        for fold in range(3)
    ]
    assert [one["test"] for one in told["results"]] == tests
    for name, one in told["estimates"].items():
        values = np.array([test[name] for test in tests])
        ends = (
            stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
            if values.std()
            else [values.mean()] * 2
        )
        shared = name != "loss"
        assert one["mean"] == pytest.approx(values.mean())
        assert one["deviation"] == pytest.approx(values.std(ddof=1))
        assert [one["low"], one["high"]] == pytest.approx(np.clip(ends, 0, 1) if shared else ends)
    assert {"top1", "balanced_accuracy", "auc", "loss"} <= told["estimates"].keys()
    said = str(reached)
    assert said.startswith("3 folds, each tested on another part")
    assert "  top-1 " in said
    assert all((reached.folder / f"fold{fold}/report.html").is_file() for fold in range(3))


def test_an_interval_of_known_numbers():
    found = FoldEstimate.of([0.8, 0.9, 1.0], share=True)
    assert (found.mean, found.deviation) == pytest.approx((0.9, 0.1))
    assert (found.low, found.high) == pytest.approx((0.9 - 4.302653 * 0.1 / 3**0.5, 1.0), abs=1e-6)
    assert FoldEstimate.of([0.8, 0.9, 1.0], share=False).high == pytest.approx(
        0.9 + 4.302653 * 0.1 / 3**0.5, abs=1e-6
    )


@pytest.mark.extra
def test_a_killed_command_goes_on_with_the_fold_that_is_not_finished(trained, tmp_path):
    """SIGKILL in the second fold; --resume alone finishes, and each fold is what it is in one
    go."""
    path, whole = trained
    out = tmp_path / "run"
    words = [
        "train",
        "--table",
        str(path),
        "--folds",
        "3",
        "--out",
        str(out),
        "--device",
        "cpu",
        "--set",
    ]
    words += [f"{name}={value}" for name, value in SMALL.items()]
    process = subprocess.Popen(
        [sys.executable, "-m", "softless", *words],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    until = time.monotonic() + 240
    while not (out / "fold1/recipe.json").exists():
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (out / "fold0/result.json").is_file()
    assert not (out / "fold1/result.json").is_file()
    assert "estimates" not in json.loads((out / "folds.json").read_text())
    before = (out / "fold0/result.json").read_bytes()
    assert main(["train", "--resume", "--out", str(out), "--device", "cpu"]) == 0
    assert (out / "fold0/result.json").read_bytes() == before
    told, straight = (
        json.loads((place / "folds.json").read_text()) for place in (out, whole.folder)
    )
    assert told["estimates"] == straight["estimates"]
    weights = [(place / "fold1/best.safetensors").read_bytes() for place in (out, whole.folder)]
    assert weights[0] == weights[1]


def test_folds_that_are_there_are_kept(trained, capsys):
    path, reached = trained
    with pytest.raises(UsageError, match="already holds 3 folds: continue them with --resume"):
        train(reached.folder, table=path, folds=3)
    with pytest.raises(ResumeMismatch, match="it has 3 folds, and 4 were asked"):
        train(reached.folder, table=path, folds=4, resume=True)
    with pytest.raises(ResumeMismatch, match=r"its recipe differs in optim\.lr"):
        softless.train(out=reached.folder, device="cpu", resume=True, set={"optim.lr": 0.5})
    with pytest.raises(UsageError, match="holds folds: go on with --folds or --resume"):
        train(reached.folder, table=path)
    again = softless.train(out=reached.folder, device="cpu", resume=True)
    assert again.estimates == reached.estimates
    with pytest.raises(UsageError, match="holds a run that is no fold"):
        train(reached.folder / "fold0", table=path, folds=2)


def test_other_folds_overwrite_those_that_are_there(tmp_path, monkeypatch):
    trained_in: list[str] = []

    def fit(recipe, run_dir, **options):
        trained_in.append(
            f"{run_dir.name} of {recipe.data.folds}, fold {recipe.data.fold}, overwrite "
            f"{options['overwrite']}"
        )
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "recipe.json").write_text("{}")
        return module.Result(run_dir, 1, 1, {}, {"top1": 0.5 + 0.1 * recipe.data.fold}, 1.0, 1.0, 1)

    monkeypatch.setattr(module, "fit", fit)
    monkeypatch.setattr("softless.cli.train._write_page", lambda *_, **__: None)
    path = table(tmp_path, ROWS)
    assert len(train(tmp_path / "run", table=path, folds=3).results) == 3
    assert len(train(tmp_path / "run", table=path, folds=2, overwrite=True).results) == 2
    assert trained_in[3:] == [
        "fold0 of 2, fold 0, overwrite True",
        "fold1 of 2, fold 1, overwrite True",
    ]
    assert not (tmp_path / "run/fold2/recipe.json").exists()


def test_an_interruption_says_how_all_folds_are_continued(tmp_path, monkeypatch):
    def fit(recipe, run_dir, **_):
        raise Interrupted(
            f"SIGTERM at step 3; continue with `softless train --resume --out {run_dir}`", 143
        )

    monkeypatch.setattr(module, "fit", fit)
    out = tmp_path / "run"
    with pytest.raises(Interrupted) as caught:
        train(out, table=table(tmp_path, ROWS), folds=2)
    assert (
        str(caught.value)
        == "fold 0 of 0 to 1: SIGTERM at step 3; continue with `softless train --resume --out "
        f"{out}`"
    )
    assert caught.value.exit_code == 143


def test_folds_of_class_folders(tmp_path, monkeypatch):
    seen = []

    def fit(recipe, run_dir, **_):
        seen.append(recipe.data.fold)
        return module.Result(run_dir, 1, 1, {}, {"top1": 0.5}, 1.0, 1.0, 1)

    monkeypatch.setattr(module, "fit", fit)
    monkeypatch.setattr("softless.cli.train._write_page", lambda *_, **__: None)
    data = class_folders(tmp_path / "data", {"cat": 6, "dog": 6})
    found = train(tmp_path / "run", recipe="folder", data=data, folds=3)
    assert seen == [0, 1, 2]
    assert found.estimates["top1"] == FoldEstimate(0.5, 0.0, 0.5, 0.5)


@pytest.mark.parametrize(
    ("words", "fields", "message"),
    [
        (["--table", "few.csv", "--folds", "5"], [], "3 groups cannot be cut into 5 folds"),
        (["--table", "few.csv", "--folds", "1"], [], "--folds 1: at least two folds are needed"),
        (
            ["--table", "split.csv", "--folds", "2"],
            [],
            "these have train, test already: leave folds out, or join the parts",
        ),
        (
            ["--table", "few.csv", "--folds", "2"],
            ["data.fold=1"],
            "data.fold is set to one of them",
        ),
        (["--recipe", "digits", "--folds", "2"], [], "these have train, test already"),
        (
            ["--recipe", "folder", "--data", "parts", "--folds", "2"],
            [],
            "these have train, test already",
        ),
        (
            ["--recipe", "dino", "--data", "parts", "--folds", "2"],
            [],
            "is for classification; this recipe is for dino",
        ),
        (["--resume", "--out", "run"], [], "no run to continue in run"),
        (
            ["--table", "few.csv", "--folds", "2", "--resume", "--overwrite", "--out", "run"],
            [],
            "choose one",
        ),
    ],
)
def test_bad_input_is_one_sentence(words, fields, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table(
        tmp_path,
        [(f"images/{n}.png", f"c{n % 2}", f"p{n // 4}") for n in range(12)],
        name="few.csv",
    )
    table(
        tmp_path,
        [
            (f"images/{n}.png", f"c{n % 2}", f"p{n}", "test" if n < 4 else "train")
            for n in range(12)
        ],
        "file,label,patient,split",
        "split.csv",
    )
    split_folders(tmp_path / "parts", {"train": {"a": 4, "b": 4}, "test": {"a": 2, "b": 2}})
    noise().save(tmp_path / "x.png")
    assert main(["train", *words, *(["--set", *fields] if fields else [])]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert len(said.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "runs").exists()
