"""Twins: alike but for the operator, trained, compared, recorded. Training is two steps long."""

import csv
import importlib
from dataclasses import replace
from pathlib import Path

import pytest

from softless.compare.comparison import compare, twins
from softless.compare.finished import finished
from softless.compare.models import left_out, with_operator
from softless.compare.outcome import Compared
from softless.compare.record import provenance
from softless.errors import UsageError
from softless.experiment.groups import ModelSpec
from softless.experiment.recipe import Recipe, as_json
from softless.recipes import get_recipe
from softless.report.groups import flat

record = importlib.import_module("softless.compare.record")


def short(**model) -> Recipe:
    args = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, **model}
    recipe = get_recipe("digits")
    return replace(
        recipe, model=ModelSpec("vit_tiny_patch16_224", "sima", args), threads=1
    ).with_fields(**{
        "schedule.epochs": 1,
        "schedule.warmup_epochs": 0,
        "data.limit": 64,
        "data.image_size": 8,
    })


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    return twins(
        short(token_scale="tokens"),
        seeds=2,
        out=tmp_path_factory.mktemp("twins") / "out",
        device="cpu",
    )


def test_twins_differ_in_the_operator_and_its_options_alone():
    recipe = short(token_scale="tokens")
    ours, theirs = (flat(as_json(with_operator(recipe, op))) for op in ("sima", "softmax"))
    assert {name for name in ours | theirs if ours.get(name) != theirs.get(name)} == {
        "model.op",
        "model.args.token_scale",
    }
    assert left_out(recipe, "softmax") == {"token_scale": "tokens"}


def test_a_registered_name_stands_for_host_and_operator():
    recipe = Recipe("x", "", ModelSpec("sima_deit_small_patch16_224"))
    assert with_operator(recipe, "softmax").model == ModelSpec("deit_small_patch16_224", "softmax")


def test_one_row_per_run_then_means_and_the_difference(outcome):
    rows = outcome.rows()
    assert [(row["kind"], row["operator"], row["seed"]) for row in rows] == [
        ("run", "sima", 0),
        ("run", "sima", 1),
        ("run", "softmax", 0),
        ("run", "softmax", 1),
        ("mean", "sima", "0 1"),
        ("mean", "softmax", "0 1"),
        ("difference", "sima - softmax", "0 1"),
    ]
    sima, softmax = (
        [row["accuracy"] for row in rows if row["kind"] == "run" and row["operator"] == op]
        for op in ("sima", "softmax")
    )
    assert rows[-1]["accuracy"] == pytest.approx(sum(sima) / 2 - sum(softmax) / 2, abs=1e-5)
    assert rows[-1]["low"] <= rows[-1]["accuracy"] <= rows[-1]["high"]
    assert rows[4]["accuracy"] == pytest.approx(sum(sima) / 2, abs=1e-5)


def test_table_and_report_name_what_only_one_side_has(outcome):
    assert "softmax does not have, and so ran without: token_scale=tokens" in str(outcome)
    assert "SimA − softmax" in str(outcome)
    page = outcome.report.read_text(encoding="utf-8")
    assert "model.args.token_scale" in page
    assert "Images per second, evaluation" in page
    assert outcome.report.parent.joinpath("sima-seed1", "result.json").is_file()


def test_finished_runs_are_not_overwritten_by_accident(outcome):
    folder = outcome.report.parent
    before = (folder / "sima-seed0" / "result.json").read_bytes()
    with pytest.raises(UsageError, match="already holds a run"):
        twins(short(token_scale="tokens"), out=folder, device="cpu")
    again = twins(short(token_scale="tokens"), seeds=2, out=folder, resume=True, device="cpu")
    assert (folder / "sima-seed0" / "result.json").read_bytes() == before
    assert again.rows()[0]["accuracy"] == outcome.rows()[0]["accuracy"]


def test_record_writes_rows_with_their_origin(outcome, tmp_path, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.setattr(record, "repository", lambda: tmp_path)
    monkeypatch.setattr(record, "commit", lambda: "abc")
    recorded = twins(
        short(token_scale="tokens"),
        seeds=2,
        out=outcome.report.parent,
        resume=True,
        record=True,
        device="cpu",
    )
    assert recorded.recorded == tmp_path / "benchmarks" / "twins_digits.csv"
    assert recorded.recorded is not None
    with recorded.recorded.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7
    assert all(
        row["commit"] == "abc" and row["machine"] and "torch" in row["versions"] and row["command"]
        for row in rows
    )


def test_record_needs_the_repository(monkeypatch, tmp_path):
    monkeypatch.setattr(record, "repository", lambda: None)
    with pytest.raises(UsageError, match="installed package"):
        twins(short(), out=tmp_path / "out", record=True)
    assert not (tmp_path / "out").exists()  # refused before hours of training


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        (("sima",), "at least two"),
        (("sima", "sima"), "at least two"),
        (("smia", "softmax"), "Did you mean 'sima'"),
    ],
)
def test_operators_to_compare_are_checked(ops, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        compare(short(), ops, out=tmp_path)


def test_twins_of_a_softmax_recipe_need_another_operator(tmp_path):
    with pytest.raises(UsageError, match="--op sima"):
        twins(replace(short(), model=ModelSpec("vit_tiny_patch16_224")), out=tmp_path)
    with pytest.raises(UsageError, match="seeds=0"):
        twins(short(), seeds=0, out=tmp_path)


def test_a_plain_model_of_timm_may_be_the_twin(tmp_path):
    found = twins(short(), twin="test_resnet", out=tmp_path / "out", device="cpu")
    assert isinstance(found, Compared)
    assert [group.label for group in found.groups] == ["SimA vit_tiny_patch16_224", "test_resnet"]
    assert (tmp_path / "out/test_resnet-seed0/result.json").is_file()
    assert "SimA vit_tiny_patch16_224 − test_resnet" in str(found)
    with pytest.raises(UsageError, match="no model named"):
        twins(short(), twin="test_resnett", out=tmp_path / "no", device="cpu")
    assert not (tmp_path / "no").exists()


def test_fields_and_epochs_reach_both_twins(tmp_path):
    found = twins(short(), epochs=2, set={"optim.lr": 3e-3}, out=tmp_path / "out", device="cpu")
    assert isinstance(found, Compared)
    for group in found.groups:
        assert group.first.result["epochs"] == 2
        assert group.first.recipe.optim.lr == 3e-3


@pytest.mark.parametrize("name", ["labels", "boxes"])
def test_twins_of_every_task_by_one_command(name, tmp_path):
    found = twins(get_recipe(name).quick(tmp_path / "data"), out=tmp_path / "out", device="cpu")
    rows = found.rows()
    assert [row["operator"] for row in rows[:2]] == ["sima", "softmax"]
    measure = {"labels": "dice", "boxes": "box_ap"}[name]
    assert all(0 <= row[measure] <= 1 for row in rows[:2])
    assert found.report.is_file()


def test_provenance_holds_no_folder_of_this_machine(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/softless", "bench", "runs"])
    where = provenance()
    assert where["command"] == "softless bench runs"
    assert str(Path.home()) not in "".join(where.values())


def test_finished_runs_of_one_model_are_put_together(outcome, tmp_path, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.setattr(record, "repository", lambda: tmp_path)
    runs = [run.folder for run in outcome.groups[0].runs]
    found = finished(runs, name="digits", record=True)
    assert found.accuracies == outcome.accuracies[:1]
    assert found.report.is_file()
    with (tmp_path / "benchmarks" / "runs_digits.csv").open() as file:
        assert [(row["kind"], row["operator"], row["seed"]) for row in csv.DictReader(file)] == [
            ("run", "sima", "0"),
            ("run", "sima", "1"),
            ("mean", "sima", "0 1"),
        ]
    other = outcome.groups[1].first.folder
    for arguments, message in (
        ({"runs": []}, "no runs"),
        ({"runs": runs, "record": True}, "--record needs --name"),
        ({"runs": [*runs, other]}, "2 models among these runs"),
    ):
        with pytest.raises(UsageError, match=message):
            finished(**arguments)


def test_the_model_is_exported_at_the_end_and_the_page_shows_it(tmp_path):
    """As `make demo` ends."""
    found = twins(short(token_scale="tokens"), out=tmp_path / "out", device="cpu", export="onnx")
    assert isinstance(found, Compared)
    assert found.exported is not None
    assert found.exported.path == tmp_path / "out" / "exported" / "model.onnx"
    assert found.exported.path.is_file()
    assert found.exit_code == found.exported.exit_code == 0
    page = found.report.read_text(encoding="utf-8")
    section = page.split('<section aria-labelledby="exported">')[1].split("</section>")[0]
    assert "model.onnx" in section
    assert "SimA" in section
    assert "model.onnx" in str(found)


def test_formats_are_checked_before_the_training(tmp_path):
    with pytest.raises(UsageError, match="no format named 'onx'"):
        twins(short(), out=tmp_path / "out", device="cpu", export="onx")
    recipe = get_recipe("nuclei").quick(tmp_path / "data")
    with pytest.raises(UsageError, match="--export goes with classifiers"):
        twins(recipe, out=tmp_path / "out", device="cpu", export=["onnx"])
    assert not (tmp_path / "out").exists()
