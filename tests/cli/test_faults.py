"""How several faults come out of a command: a line each, a shared sentence once, and as JSON where
that was asked for.
"""

import json
from pathlib import Path

import pytest

from softless.cli.main import main
from tests.data.making import class_folders


def spoiled(root: Path) -> Path:
    class_folders(root, {"a": 6, "b": 3})
    for file in (root / "a").iterdir():
        file.write_bytes(file.read_bytes()[:200])
    (root / "b" / "01.png").write_text("no image at all")
    return root


def train(root: Path, *more: str) -> int:
    return main([
        "train",
        "--recipe",
        "folder",
        "--data",
        str(root),
        "--out",
        str(root.parent / "run"),
        *more,
    ])


def test_a_line_for_each_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert train(spoiled(tmp_path / "data")) == 2
    said = capsys.readouterr().err.splitlines()
    first = next(
        place for place, line in enumerate(said) if "7 faults before the first step" in line
    )
    assert [line.split(":")[0] for line in said[first + 1 :]] == ["  6 times", "  b/01.png"]


def test_errors_are_json_where_results_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert train(spoiled(tmp_path / "data"), "--json") == 2
    told = json.loads(capsys.readouterr().out)
    assert (told["error"], told["exit_code"]) == ("Faults", 2)
    assert "b/01.png" in told["message"]
    assert main(["cost", "nothing_like_this", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"] == "UsageError"
