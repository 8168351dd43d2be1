"""`softless bench export`: a run in every format, one line each, whatever one of them does."""

import csv
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import softless
from softless.cli.bench import bench
from softless.cli.main import main
from softless.compare import exports as module
from softless.compare.exports import exports
from softless.experiment.groups import DataSpec
from softless.exporting import proof
from softless.exporting.formats.table import FORMATS
from softless.exporting.measured import Parity
from tests.data.making import split_folders
from tests.evaluation.runs import run_folder

NAME = "sima_deit_tiny_patch16_224"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    split_folders(
        folder / "data", {p: {"cat": n, "dog": n} for p, n in (("train", 20), ("test", 6))}
    )
    data = DataSpec(source="folder", path=str(folder / "data"), image_size=16, val_fraction=0.5)
    return run_folder(folder / "run", ("cat", "dog"), data)


@pytest.fixture(scope="module")
def table(run):
    return exports(run, ["pt2", "onnx"], int8=["none"], rounds=2, out=run.parent / "kept")


def test_a_line_for_each_way_with_what_it_is_worth_and_takes(table, run):
    lines = {row.label: row for row in table.rows}
    assert {"eager", "optimized", "pt2", "onnx"} <= set(lines)
    assert {row.works for row in table.rows} == {"yes"}
    for name in ("pt2", "onnx"):
        file = lines[name].file
        assert file.parity.difference <= 1e-5
        assert file.measured.images == 12
        assert lines[name].milliseconds.median > 0
        assert file.path == run.parent / "kept" / f"model{FORMATS[name].ending}"
        assert file.path.is_file()
    assert lines["eager"].relative.median == 1.0
    assert table.exit_code == 0
    printed = str(table)
    assert "gelu" in printed
    assert "12 test images" in printed
    assert "delegated" not in printed, "a column that says nothing of any row is left out"
    content = json.loads(json.dumps(table.to_dict()))
    assert [row["format"] for row in content["rows"]] == [row.format for row in table.rows]


def test_nothing_is_noted_in_the_run_and_nothing_stays(run, tmp_path, monkeypatch):
    """The files are gone afterwards, so the run's page must not name them."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = sorted(path.name for path in run.iterdir())
    exports(run, ["pt2"], int8=["none"], rounds=1)
    assert sorted(path.name for path in run.iterdir()) == before
    assert list(tmp_path.iterdir()) == []


def test_a_format_that_fails_is_a_line_and_the_others_go_on(run, monkeypatch):
    def write(*_):
        raise RuntimeError("many lines\nOperator Foo is not supported")

    monkeypatch.setattr(module, "FORMATS", FORMATS)
    monkeypatch.setattr(
        module,
        "format_named",
        lambda name: replace(FORMATS[name], write=write) if name == "pt2" else FORMATS[name],
    )
    found = exports(run, ["pt2", "onnx"], int8=["none"], rounds=1)
    lines = {row.label: row for row in found.rows}
    assert (lines["pt2"].works, lines["onnx"].works) == ("no", "yes")
    assert "pt2: pt2 failed: Operator Foo is not supported" in str(found)
    assert "many lines" not in str(found)
    assert lines["pt2"].milliseconds is None
    assert found.exit_code == 1


def test_a_file_that_fails_a_check_is_not_timed(run, monkeypatch):
    monkeypatch.setattr(proof, "parity", lambda *_, **__: Parity(16, 0.5, 3))
    row = exports(run, ["pt2"], int8=["none"], rounds=1).rows[-1]
    assert (row.works, row.milliseconds) == ("no", None)
    assert "differ from the model's" in row.why[0]


def test_what_is_not_installed_is_listed_with_its_command(run, monkeypatch):
    monkeypatch.setattr("softless.errors._installed", lambda name: name != "onnxruntime")
    found = exports(run, ["pt2", "onnx"], int8=["none"], rounds=1)
    row = found.rows[-1]
    assert (row.format, row.works, row.file) == ("onnx", "not installed", None)
    assert "onnx: this needs onnxruntime, which is not installed: pip install" in str(found)
    assert found.exit_code == 0


def test_records(run, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "record_path", lambda name: tmp_path / f"{name}.csv")
    monkeypatch.setattr("softless.errors._installed", lambda name: name != "onnxruntime")
    exports(run, ["pt2", "onnx"], int8=["none"], rounds=1, record=True)
    with (tmp_path / "export_run.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["format"] for row in rows][-1] == "pt2"
    assert rows[-1]["transcendentals"].startswith("gelu ")
    assert "pip install" not in (tmp_path / "export_run.csv").read_text()
    assert rows[-1]["machine"]


def test_a_model_by_its_name_is_compared_on_noise():
    found = bench("export", NAME, ["pt2"], int8=["none"], size=[32], rounds=1)
    assert "compared on noise" in str(found)
    assert found.rows[-1].file.measured is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing/there"], "no run folder at nothing/there"),
        ([NAME, "--formats", "onx"], "no format named 'onx'. Did you mean 'onnx'?"),
        ([NAME, "--rounds", "0"], "rounds=0: at least one"),
        ([NAME, "--threads", "-1"], "threads=-1: at least one"),
        ([NAME, "--int8", "some"], "--int8 some: choose of none, weights, static"),
        ([NAME, "--size", "1", "2", "3"], "give height and width"),
        ([], "needs --run"),
    ],
)
def test_misuse(words, said, capsys):
    assert main(["bench", "export", *words]) == 2
    assert said in capsys.readouterr().err


def test_threads_are_those_of_every_runtime_and_come_back(run):
    before = torch.get_num_threads()
    assert exports(run, ["pt2"], int8=["none"], rounds=1, threads=2).threads == 2
    assert torch.get_num_threads() == before
    assert softless.export  # the verb is not hidden by a module of its name
