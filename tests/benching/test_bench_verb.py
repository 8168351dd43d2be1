"""`softless bench`: the sub-names and the options each of them has."""

import importlib
import json

import pytest

from softless.cli.bench import KINDS, bench
from softless.cli.main import main
from softless.errors import UsageError


@pytest.mark.parametrize(
    ("what", "option", "named"),
    [
        ("operators", {"recipe": "classify"}, "--recipe"),
        ("operators", {"seeds": 3, "overwrite": True}, "--overwrite, --seeds"),
        ("twins", {"long": True}, "--long"),
        ("twins", {"ops": ["sima"]}, "--ops"),
        ("compare", {"op": "sima"}, "--op"),
        ("runs", {"ops": ["sima"]}, "--ops"),
        ("twins", {"runs": ["a"]}, "--runs"),
    ],
)
def test_an_option_without_effect_is_refused(what, option, named):
    with pytest.raises(UsageError, match=f"bench {what} has no use for {named}: "):
        bench(what, **option)


def test_what_takes_an_option_is_named():
    with pytest.raises(
        UsageError,
        match=r"leave it out \(--ops is taken by compare, uses, dino, operators, counts, "
        r"autograd, fidelity\)",
    ):
        bench("twins", ops=["sima"])


@pytest.mark.parametrize("what", ["twins", "compare", "uses", "dino", "resolution", "averages"])
def test_whatever_trains_takes_data_epochs_and_fields(what):
    """Each comes to the recipe, whose first fault is said before any work."""
    assert {"recipe", "data", "epochs", "set", "seeds"} <= KINDS[what][1]
    recipe = "dino" if what == "dino" else "classify"
    with pytest.raises(UsageError, match=r"no data folder at .*nowhere"):
        bench(what, recipe=recipe, data="nowhere", epochs=2, set=["data.image_size=224"])
    with pytest.raises(UsageError, match=r"no field named 'optim\.rl'"):
        bench(what, recipe=recipe, data="nowhere", set="optim.rl=1")
    with pytest.raises(
        UsageError, match=r"epochs=2 and schedule\.epochs=3 are two lengths: give one of them"
    ):
        bench(what, recipe=recipe, data="nowhere", epochs=2, set={"schedule.epochs": 3})


def test_operators_from_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(importlib.import_module("softless.benching.operators"), "LENGTHS", (2, 49))
    assert main(["bench", "operators", "--ops", "sima", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["within"] is True
    assert {row["tokens"] for row in found["rows"]} == {2, 49}


@pytest.mark.parametrize(
    "words",
    [
        ["bench"],
        ["bench", "twin"],
        ["bench", "compare", "--ops", "sima"],
        ["bench", "operators", "--ops", "smia"],
    ],
)
def test_misuse_is_one_sentence_and_exit_code_two(words, capsys):
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("softless: ")
    assert said.count("\n") == 1


def test_inverses_from_the_command_line(monkeypatch, capsys):
    """Ours keeps the bar on a flat image region of 49 bottleneck tokens; the published one does
    not, in value and gradient.
    """
    module = importlib.import_module("softless.benching.inverses")
    monkeypatch.setattr(module, "SIZES", (1, 49))
    assert main(["bench", "inverse", "--json"]) == 0
    rows = {
        (row["kernel"], row["tokens"], row["method"]): (row["error"], row["gradient_error"])
        for row in json.loads(capsys.readouterr().out)["rows"]
    }
    assert len(rows) == 6 * 2 * 5
    assert rows["flat", 49, "cholesky"][0] < 1e-12
    assert rows["flat", 49, "cholesky"][1] < 1e-7  # rounded to the float32 of the kernel matrix
    assert 1e-7 < max(rows["flat", 49, "cholesky float32"]) < 1e-3
    assert min(rows["flat", 49, "published"]) > 0.5
    assert max(rows["spread", 49, "published"]) < 1e-3
    right = module.METHODS["cholesky"]
    monkeypatch.setattr(module, "METHODS", {"cholesky": lambda a: right(a) * 1.01})
    assert min(line.error for line in module.compare_inverses().lines) > 0.009
