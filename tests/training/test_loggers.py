"""The numbers of each epoch in a table and in two services, offline: all of them, once, under one
run.
"""

import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from softless.errors import MissingExtra
from softless.experiment.recipe import Recipe
from softless.recipes import get_recipe
from softless.training import fit, loggers
from softless.training.scalars import flat

pytestmark = [
    # of these packages
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def quick(*names: str, epochs: int = 2) -> Recipe:
    recipe = get_recipe("digits").quick()
    schedule = replace(recipe.schedule, epochs=epochs, warmup_epochs=0)
    return replace(recipe, schedule=schedule).with_fields(loggers=names)


def logged(out: Path) -> list[dict[str, Any]]:
    lines = (out / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def as_numbers(out: Path) -> list[dict[str, float]]:
    return [{"epoch": float(line["epoch"]), **dict(flat(line))} for line in logged(out)]


def test_a_table_that_follows_the_log(tmp_path: Path) -> None:
    out = tmp_path / "run"
    fit(quick("csv"), out, progress=False)
    fit(quick("csv", epochs=3), out, resume=True, progress=False)
    with (out / "log.csv").open() as file:
        rows = [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]
    assert rows == as_numbers(out)
    assert [row["epoch"] for row in rows] == [1, 2, 3]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """MLflow's store of files."""
    pytest.importorskip("mlflow", reason="needs mlflow-skinny (extra track)")
    folder = tmp_path / "store"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", folder.as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    import mlflow

    mlflow.set_tracking_uri(folder.as_uri())
    yield folder
    mlflow.set_tracking_uri("")


def test_mlflow_has_every_number_of_a_run_that_was_resumed(store: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    out = tmp_path / "mine"
    fit(quick("mlflow"), out, progress=False)
    fit(quick("mlflow", epochs=3), out, resume=True, progress=False)
    client = MlflowClient()
    experiment = client.get_experiment_by_name(loggers.PROJECT)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "mine")
    for name in ("train_loss", "val/top1"):
        history = {
            entry.step: entry.value for entry in client.get_metric_history(run.info.run_id, name)
        }
        assert history == {row["epoch"]: row[name] for row in as_numbers(out)}
    assert run.data.params["optim.name"] == "adamw"
    assert not any(str(tmp_path) in value for value in run.data.params.values())


@pytest.mark.slow
def test_wandb_offline_goes_on_in_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="needs wandb (extra track)")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = tmp_path / "mine"
    fit(quick("wandb"), out, progress=False)
    known = json.loads((out / "loggers.json").read_text())["wandb"]
    fit(quick("wandb", epochs=3), out, resume=True, progress=False)
    files = sorted((out / "wandb").glob(f"offline-run-*-{known}/run-{known}.wandb"))
    assert len(files) == 2
    for file in files:
        content = file.read_bytes()
        assert not any(text.encode() in content for text in (str(tmp_path), sys.executable))
    assert [len(steps(file)) for file in files] == [2, 1]
    assert steps(files[1])[0]["train_loss"] == logged(out)[2]["train_loss"]


def steps(file: Path) -> list[dict[str, float]]:
    """What a file of wandb's holds of each step."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for content in records(file.read_bytes()):
        record: Any = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == "history":
            entries = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            rows.append(entries)
    return rows


def records(content: bytes, block: int = 1 << 15, head: int = 7) -> Iterator[bytes]:
    """The records of a log in LevelDB's format: parts with checksum, length and kind, none across
    a block's end.
    """
    at, parts = head, b""
    while at + head <= len(content):
        if block - at % block < head:
            at += block - at % block
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + head : at + head + length]
        at += head + length
        if kind in {1, 4}:  # whole, or the last part
            yield parts
            parts = b""


def test_a_service_that_fails_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    written: list[int] = []

    class Failing:
        def __init__(self, run: Any) -> None:
            """Takes the run."""

        def write(self, line: Any) -> None:
            written.append(line["epoch"])
            raise ConnectionError("the service is gone")

        def close(self, *, failed: bool) -> None:  # noqa: ARG002
            raise AssertionError("it was left out")

    monkeypatch.setitem(loggers.KINDS, "csv", Failing)
    fit(quick("csv"), tmp_path / "run", progress=False)
    assert written == [1]
    assert sum("loggers=csv takes no more numbers" in text for text in caplog.messages) == 1
    assert len(logged(tmp_path / "run")) == 2


def test_the_numbers_of_a_run_do_not_hang_on_it(tmp_path: Path) -> None:
    fit(quick("csv"), tmp_path / "a", progress=False)
    fit(quick(), tmp_path / "b", progress=False)
    assert (tmp_path / "a" / "best.safetensors").read_bytes() == (
        tmp_path / "b" / "best.safetensors"
    ).read_bytes()


def test_a_package_that_is_missing_is_said_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtra, match="wandb"):
        fit(quick("wandb"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
