"""Epochs count from 1 wherever somebody reads one: files, API, text, page, table, TensorBoard;
older runs are read so as well.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import softless
import softless.training.keep
from softless.cli.main import main
from softless.compare.finished import finished
from softless.errors import CheckpointError
from softless.experiment.checkpoints import Checkpoints
from softless.experiment.folder import RunFolder
from softless.models.records import SEAL
from softless.report import read_run
from softless.tasks.loaded import load_run
from softless.tasks.page import write
from softless.training import Recipe, fit, scalars

SCORES = {1: 0.25, 2: 0.75, 3: 0.5}  # the second epoch is the best


@pytest.fixture
def second_is_best(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    inner = softless.training.keep.best_of

    def best_of(line, metric):
        return {**inner(line, metric), "value": SCORES[line["epoch"]]}

    monkeypatch.setattr(softless.training.keep, "best_of", best_of)
    softless.train(replace(tiny, name="mine"), out=tmp_path / "run", device="cpu")
    return tmp_path / "run"


def older(run: Path) -> None:
    """The files as softless 0.1.0 wrote them: from 0, and without a word about it."""
    result, best = (json.loads((run / name).read_text()) for name in ("result.json", "best.json"))
    assert (result.pop("counted_from"), best.pop("counted_from")) == (1, 1)
    (run / "result.json").write_text(json.dumps({**result, "best_epoch": result["best_epoch"] - 1}))
    del best[SEAL]
    (run / "best.json").write_text(json.dumps({**best, "epoch": best["epoch"] - 1}))
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    (run / "log.jsonl").write_text(
        "".join(json.dumps({**line, "epoch": line["epoch"] - 1}) + "\n" for line in lines)
    )
    store = Checkpoints(run / "checkpoints")
    state = store.newest()
    assert state is not None
    state["best"].pop("counted_from")
    state["best"]["epoch"] -= 1
    store.save(state, (99, 3), {})


def read_everywhere(run: Path, say: Callable[[], str]) -> dict[str, int]:
    """The best epoch as each door tells it."""
    page = write([run], run / "report.html").read_text()
    text = str(fit(None, run, resume=True))
    assert main(["runs", str(run), "--json"]) == 0
    assert json.loads(say())["runs"][0]["epoch"] == 3
    (row,) = [row for row in finished([run]).rows() if row.get("kind", "run") == "run"]
    shown = re.search(r"best epoch</dt><dd>(\d+)\b", page)
    assert shown is not None
    return {
        "fit": fit(None, run, resume=True).best_epoch,
        "text": int(text.split("best epoch ")[1].split(maxsplit=1)[0]),
        "read_run": read_run(run).result["best_epoch"],
        "its best.json": read_run(run).best["epoch"],
        "load_run": load_run(run).best["epoch"],
        "page": int(shown[1]),
        "table": row["best_epoch"],
    }


def test_the_best_epoch_is_the_same_everywhere(
    second_is_best: Path, capsys: pytest.CaptureFixture[str]
):
    run = second_is_best
    capsys.readouterr()
    assert json.loads((run / "result.json").read_text())["best_epoch"] == 2
    assert json.loads((run / "best.json").read_text())["epoch"] == 2
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log] == [1, 2, 3]
    assert json.loads((run / "result.json").read_text())["val"] == log[1]["val_ema"]
    assert json.loads((run / "state.json").read_text())["epoch"] == 3
    assert set(read_everywhere(run, lambda: capsys.readouterr().out).values()) == {2}


def test_tensorboard_takes_what_is_not_finite(tmp_path: Path):
    """A validation loss may overflow: the epoch is written, and training goes on."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    line = {
        "step": 1,
        "summary": {
            "value": [
                {"tag": "val/loss", "simple_value": value} for value in (float("nan"), float("inf"))
            ]
        },
    }
    (tmp_path / "events.out.tfevents.1").write_bytes(
        scalars._records({"file_version": "brain.Event:2"}, line)
    )
    held = accumulator.EventAccumulator(str(tmp_path))
    held.Reload()
    nan, infinite = (one.value for one in held.Scalars("val/loss"))
    assert math.isnan(nan)
    assert infinite == math.inf


def test_tensorboard_counts_from_one(second_is_best: Path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    held = accumulator.EventAccumulator(str(second_is_best / "tensorboard"))
    held.Reload()
    assert [event.step for event in held.Scalars("train_loss")] == [1, 2, 3]


def test_an_older_run_is_read_right(second_is_best: Path, capsys: pytest.CaptureFixture[str]):
    older(second_is_best)
    capsys.readouterr()
    assert set(read_everywhere(second_is_best, lambda: capsys.readouterr().out).values()) == {2}


def test_an_older_run_that_is_continued_is_written_right(
    second_is_best: Path, capsys: pytest.CaptureFixture[str]
):
    older(second_is_best)
    (second_is_best / "result.json").unlink()
    assert fit(None, second_is_best, resume=True, device="cpu", progress=False).best_epoch == 2
    assert json.loads((second_is_best / "best.json").read_text())["epoch"] == 2
    log = [json.loads(line) for line in (second_is_best / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log] == [1, 2, 3]
    capsys.readouterr()
    assert set(read_everywhere(second_is_best, lambda: capsys.readouterr().out).values()) == {2}


def test_the_last_epoch_by_name(tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A run that keeps its last epoch has no best value: `runs` names the epoch."""
    fit(tiny, tmp_path / "run", device="cpu", progress=False)
    stored = json.loads((tmp_path / "run/recipe.json").read_text())
    (tmp_path / "run/recipe.json").write_text(json.dumps({**stored, "metric": "last"}))
    assert main(["runs", str(tmp_path)]) == 0
    assert "epoch 3, the last" in capsys.readouterr().out


def test_a_log_that_cannot_be_read_is_one_sentence(tmp_path: Path):
    (tmp_path / "log.jsonl").write_text('{"epoch": 1}\n{"ep\n{"epoch": 3}\n')
    with pytest.raises(
        CheckpointError, match=r"line 2 of .*log\.jsonl is damaged: .*train the run again"
    ):
        RunFolder(tmp_path).rewind_log(2)
