"""`python -m lab KIND`: what this repository measures of itself."""

import importlib
import json
import re
from pathlib import Path

import pytest

from lab.__main__ import KINDS, function_of, overview, run
from softless.cli.bench import LAB
from softless.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


def test_every_kind_is_listed_and_has_a_function():
    assert set(KINDS) == set(LAB)
    for kind in KINDS:
        assert callable(function_of(kind))
        assert f"  {kind} " in overview()


def test_the_kinds_tell_their_options(capsys):
    assert run([]) == 0
    assert "python -m lab KIND" in capsys.readouterr().out
    assert run(["operators", "--help"]) == 0
    assert "usage: python -m lab operators [" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["operatrs"], "no kind of measurement named 'operatrs'. Did you mean 'operators'?"),
        (["operators", "--ops", "smia"], "no operator named 'smia'"),
        (["operators", "--recipe", "digits"], "python -m lab operators has no option '--recipe'"),
        (["speed"], "pass --figure"),
    ],
)
def test_misuse_is_one_sentence_and_exit_code_two(words, sentence, capsys):
    assert main(words, run=run) == 2
    said = capsys.readouterr().err
    assert said.startswith("softless: ")
    assert sentence in said
    assert said.count("\n") == 1


def test_the_wheel_has_none_of_it():
    """Nothing in the package imports what stands beside it."""
    for path in (ROOT / "softless").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) lab\b", path.read_text("utf-8"), re.MULTILINE), (
            path
        )


def test_operators_from_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(importlib.import_module("lab.operators"), "LENGTHS", (2, 49))
    assert main(["operators", "--ops", "sima", "--json"], run=run) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["within"] is True
    assert {row["tokens"] for row in found["rows"]} == {2, 49}


def test_inverses_from_the_command_line(monkeypatch, capsys):
    """Ours keeps the bar on a flat image region of 49 bottleneck tokens; the published one does
    not, in value and gradient.
    """
    module = importlib.import_module("lab.inverses")
    monkeypatch.setattr(module, "SIZES", (1, 49))
    assert main(["inverse", "--json"], run=run) == 0
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


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["swaps", "Bogus"], "no family of timm named 'Bogus'"),
        (["autograd", "bogus"], "no transform named 'bogus'"),
        (["models", "bogus"], "no model named 'bogus'"),
        (["papers", "bogus"], "no table named 'bogus'"),
    ],
)
def test_a_name_that_there_is_not_is_one_sentence(words, sentence, capsys):
    assert main(words, run=run) == 2
    assert sentence in capsys.readouterr().err
