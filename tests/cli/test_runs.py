"""`softless runs`: each state of a run, and how to go on."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from softless.cli.main import main
from softless.cli.runs import runs
from softless.errors import DivergedError
from softless.experiment.claim import Claim
from softless.experiment.folder import FOLDERS
from softless.tasks.classification.task import Classification
from softless.training import Recipe, fit
from tests.training.conftest import tiny_recipe, write_npz


@pytest.fixture
def tiny(tmp_path: Path) -> Recipe:
    return tiny_recipe(write_npz(tmp_path / "images.npz"))


def test_every_state(
    tiny: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    folder = tmp_path / "runs"
    for name in ("finished", "killed", "stopped", "running"):
        fit(tiny, folder / name, device="cpu", progress=False)
        if name != "finished":
            (folder / name / "result.json").unlink()
    (folder / "killed" / "state.json").write_text(
        json.dumps({
            "state": "running",
            "pid": 1,
            "host": "h",
            "since": "2026-01-02T03:04:05+00:00",
        })
    )
    claim = Claim(folder / "stopped")
    claim.end("stopped", "SIGTERM at step 3")
    Claim.take(folder / "running")
    monkeypatch.setattr(
        Classification,
        "loss",
        lambda *_: (_ for _ in ()).throw(DivergedError("loss is nan at step 1")),
    )
    with pytest.raises(DivergedError):
        fit(replace(tiny, seed=1), folder / "deep" / "diverged", device="cpu", progress=False)
    assert main(["runs", str(folder), "--json"]) == 0
    found = {Path(run["run"]).name: run for run in json.loads(capsys.readouterr().out)["runs"]}
    assert {name: run["state"] for name, run in found.items()} == {
        name: name for name in ("finished", "killed", "stopped", "running", "diverged")
    }
    assert {run["epoch"] for name, run in found.items() if name != "diverged"} == {3}
    assert (
        found["diverged"]["epoch"],
        found["diverged"]["epochs"],
        found["diverged"]["steps"],
    ) == (0, 3, 0)
    assert found["killed"]["steps"] == 12
    assert f"--out {folder / 'killed'} --resume" in found["killed"]["how"]
    assert found["diverged"]["how"] == "loss is nan at step 1"
    lines = (folder / "finished" / "log.jsonl").read_text().splitlines()
    assert found["finished"]["value"] == max(json.loads(line)["val_ema"]["top1"] for line in lines)
    assert main(["runs", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "2026-01-02 03:04:05" in said
    assert "process gone" not in said


def test_none_and_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["runs", str(tmp_path)]) == 0
    assert "no runs below" in capsys.readouterr().out
    assert main(["runs", str(tmp_path / "nowhere")]) == 2
    assert "no folder at" in capsys.readouterr().err


def test_what_runs_keep_is_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand runs have thousands of folders of their own; a run that lies in another's folder
    is found all the same.
    """
    for name in ("one", "one/folds/two", "deep/three"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "recipe.json").write_text("{}")
        for own in FOLDERS:
            (tmp_path / name / own).mkdir()
    seen: list[Path] = []
    scan = os.scandir

    def looked(folder: str) -> Any:
        seen.append(Path(folder))
        return scan(folder)

    monkeypatch.setattr("os.scandir", looked)
    found = [Path(run.run).relative_to(tmp_path).as_posix() for run in runs(tmp_path).runs]
    assert found == ["deep/three", "one", "one/folds/two"]
    assert tmp_path in seen
    assert not [folder for folder in seen if folder.name in FOLDERS]
