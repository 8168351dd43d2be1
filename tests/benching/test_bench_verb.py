"""`softless bench`: the sub-names and the options each of them has."""

import importlib
import json

import pytest

from softless.cli.bench import bench
from softless.cli.main import main
from softless.errors import UsageError


@pytest.mark.parametrize(
    ("what", "option", "named"),
    [
        ("operators", {"recipe": "folder"}, "--recipe"),
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


def test_operators_from_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(importlib.import_module("softless.benching.operators"), "LENGTHS", (2, 49))
    assert main(["bench", "operators", "--ops", "sima", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["within"] is True
    assert {row["tokens"] for row in found["rows"]} == {2, 49}


@pytest.mark.parametrize(
    "words",
    [["bench"], ["bench", "twin"], ["bench", "compare", "--ops", "sima"], ["bench", "operators", "--ops", "smia"]],
)
def test_misuse_is_one_sentence_and_exit_code_two(words, capsys):
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("softless: ")
    assert said.count("\n") == 1
