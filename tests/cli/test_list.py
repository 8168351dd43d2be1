"""`softless list WHAT [PATTERN|NAME]`: names filtered, and all fields of a recipe from the place
that describes them.
"""

import json

import pytest

import softless
from softless.cli.main import main
from softless.errors import UsageError
from softless.experiment.assignments import assignments
from softless.experiment.fields import walk
from softless.exporting.formats.table import FORMATS
from softless.models import ENTRIES
from softless.recipes import RECIPES, get_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_s_name_tells_every_field(name: str, capsys: pytest.CaptureFixture[str]):
    rows = list(walk(get_recipe(name)))
    assert main(["list", "recipes", name]) == 0
    lines = capsys.readouterr().out.splitlines()
    for row in rows:
        told = next(line for line in lines if line.startswith(f"{row.name} "))
        assert row.setting.says in told
        assert row.setting.takes(row.hint) in told
    assert main(["list", "recipes", name, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told) == [row.name for row in rows]
    assert set(told["optim.lr"]) == {"default", "takes", "range", "unit", "says"}
    assert told["schedule.epochs"]["default"] == get_recipe(name).schedule.epochs


def test_patterns_filter_names():
    names = softless.list("models", "sima_deit")
    assert set(names) == {name for name in ENTRIES if "sima_deit" in name}
    assert names
    assert set(softless.list("models", "sima_deit_*ll_*")) == {"sima_deit_small_patch16_224"}
    assert set(softless.list("recipes", "imagenet_")) == {
        name for name in RECIPES if name.startswith("imagenet_")
    }
    assert "token_scale" in str(softless.list("operators", "sima"))
    with pytest.raises(UsageError, match=r"no recipe named 'digts'. Did you mean 'digits'"):
        softless.list("recipes", "digts")


def test_operators_come_with_their_options(capsys: pytest.CaptureFixture[str]):
    assert main(["list", "operators"]) == 0
    printed = capsys.readouterr().out
    assert main(["list", "operators", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert list(listed) == list(softless.OPERATORS)
    for name, record in softless.OPERATORS.items():
        for key, option in record.options.items():
            assert listed[name][f"option {key}"].endswith(f"; {option.default!r} by default")
            assert listed[name][f"option {key}"] in printed
    assert set(softless.list("operators", "sima_*")) == {"sima_l2", "sima_none"}


def test_an_operator_without_options_says_so():
    assert softless.list("operators", "effic")["efficient"] == {
        "what": softless.OPERATORS["efficient"].summary,
        "options": "none",
    }
    with pytest.raises(UsageError, match="no option of operator 'efficient' named 'eps': there ar"):
        softless.Efficient(64, 4, eps=1e-6)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--epochs 5", "Did you mean --set schedule.epochs=…?"),
        ("--batch-size=8", "Did you mean --set batch_size=…?"),
        ("--lr 1", "Did you mean --set optim.lr=…?"),
        ("--overwrit", "Did you mean '--overwrite'?"),
        ("--set epochs=3", "Did you mean 'schedule.epochs'?"),
        ("--set seed=1 seed=2", "seed is set twice, to '1' and to '2'"),
        ("--seed -1", "seed=-1 is out of range"),
        ("--set threads=0", "threads=0 is out of range"),
    ],
)
def test_a_field_given_as_an_option_is_found(
    words: str, said: str, capsys: pytest.CaptureFixture[str], tmp_path: object
):
    assert main(["train", "--recipe", "digits", "--out", str(tmp_path), *words.split()]) == 2
    assert said in capsys.readouterr().err


def test_no_field_is_offered_where_set_is_something_else(capsys: pytest.CaptureFixture[str]):
    assert main(["swap", "deit_tiny_patch16_224", "--epochs", "3"]) == 2
    assert "--set" not in capsys.readouterr().err.partition("Known")[0]


@pytest.mark.parametrize(
    "given", ["optim.lr=1e9", ["optim.lr=1e9"], {"optim.lr": 1e9}, {"optim": {"lr": 1e9}}]
)
def test_python_sets_fields_by_a_text_or_a_mapping(given: object, tmp_path: object):
    """A rate that is there cannot come with a rate at the end above it, so what was set is seen
    before any work.
    """
    both = {**assignments(given), "schedule.min_lr": 1e10}  # type: ignore[arg-type]
    with pytest.raises(
        UsageError, match=r"schedule.min_lr=1e\+10.* above the effective rate 1e\+09"
    ):
        softless.train("digits", set=both, out=str(tmp_path))
    with pytest.raises(UsageError, match=r"optim.lr='x' does not fit"):
        softless.train("digits", set="optim.lr=x")


def test_formats_say_what_they_need_and_whether_it_is_here(monkeypatch, capsys):
    listed = softless.list("formats")
    assert set(listed) == set(FORMATS)
    keys = {"what", "ending", "needs", "runs here", "dynamic", "int8", "installed"}
    assert all(set(lines) == keys for lines in listed.values())
    assert listed["pt2"]["installed"] == "yes"
    monkeypatch.setattr("softless.errors._installed", lambda name: name != "onnxruntime")
    standing = softless.list("formats", "onnx")["onnx"]
    assert standing["installed"].startswith("no: this needs onnxruntime")
    assert (standing["ending"], standing["dynamic"]) == (".onnx", "batch, size, both")
    assert main(["list", "formats"]) == 0
    assert "ending: .onnx" in capsys.readouterr().out
    with pytest.raises(UsageError, match="no format named 'onx'"):
        softless.list("formats", "onx")
