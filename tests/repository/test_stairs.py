"""tools/stairs.py counts imports wherever they stand, and finds circles and the longest chain."""

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tools import stairs

FILES = {
    "__init__.py": "from softless.top import start",
    "top.py": "from softless import middle\nfrom softless.room.low import x",
    "middle.py": "def f():\n    from softless.room import low\n    return low",
    "room/__init__.py": "",
    "room/low.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import softless.top",
    "room/beside.py": "from . import low\nfrom .. import middle\nimport numpy",
    "alone.py": "import softless.alone",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "softless" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_every_import_is_found_where_it_stands(root: Path):
    found = {
        (one.source.removeprefix("softless."), one.target, one.inner, one.typed)
        for one in stairs.imports(root)
    }
    low = "softless.room.low"
    assert found == {
        ("softless", "softless.top", False, False),
        ("top", "softless.middle", False, False),
        ("top", low, False, False),
        ("middle", low, True, False),
        ("room.low", "softless.top", False, True),
        ("room.beside", low, False, False),
        ("room.beside", "softless.middle", False, False),
    }


def test_the_table(root: Path):
    found = stairs.table(root)
    assert found["imports within functions"] == ["softless.middle:2 imports softless.room.low"]
    assert found["imports for types alone"] == ["softless.room.low:3 imports softless.top"]
    assert found["circles of files"] == ["softless.middle, softless.room.low, softless.top"]
    assert len(found["longest chain of imports"]) == 2, "a circle is one step"


def test_a_chain_without_circles(root: Path):
    (root / "softless" / "room" / "low.py").write_text("")
    assert stairs.table(root)["longest chain of imports"] == [
        "softless",
        "softless.top",
        "softless.middle",
        "softless.room.low",
    ]


def test_it_prints_each(root: Path, capsys: pytest.CaptureFixture[str]):
    assert stairs.main(["--list"], root) == 0
    said = capsys.readouterr().out
    assert "circles of files                 1" in said
    assert "  softless.middle:2 imports softless.room.low" in said


def test_what_was_won_stays():
    """Of the house itself: imports stand at the top and run down, no file closes a circle, and the
    counts only go down.
    """
    assert stairs.main(["--check"], ROOT) == 0
    assert stairs.LIMITS == {
        "imports within functions": 0,
        "imports for types alone": 0,
        "circles of files": 0,
        "longest chain of imports": 26,
        "files that name every task": 3,
    }


def test_what_is_above_its_limit_is_named(root: Path, capsys: pytest.CaptureFixture[str]):
    assert stairs.main(["--check"], root) == 1
    said = capsys.readouterr().out
    assert "imports within functions: 1, and the limit is 0:" in said
    assert "softless.middle:2 imports softless.room.low" in said
    assert "longest chain" not in said


def test_what_is_gathered_by_the_table_of_tasks_is_imported(root: Path):
    tasks = root / "softless" / "tasks"
    for task in ("boxes", "labels"):
        (tasks / task).mkdir(parents=True)
        (tasks / task / "task.py").write_text("")
        (tasks / task / "small.py").write_text("import softless.high")
    (tasks / "small.py").write_text("")
    (root / "softless" / "high.py").write_text("X = of_tasks('small')")
    gathered = {edge.target for edge in stairs.imports(root) if edge.source == "softless.high"}
    assert gathered == {"softless.tasks.boxes.small", "softless.tasks.labels.small"}
    circle = "softless.high, softless.tasks.boxes.small, softless.tasks.labels.small"
    assert circle in stairs.table(root)["circles of files"]
    (root / "softless" / "high.py").write_text("def f():\n    return folders.of_tasks('small')")
    inner = stairs.table(root)["imports within functions"]
    assert "softless.high:2 imports softless.tasks.boxes.small" in inner


def test_a_file_that_names_every_task_is_found(root: Path):
    for task in ("boxes", "labels", "classification"):
        folder = root / "softless" / "tasks" / task
        folder.mkdir(parents=True)
        (folder / "task.py").write_text("from softless.tasks import boxes, labels")
    (root / "softless" / "imports.py").write_text(
        "from softless.tasks.boxes import a\nfrom softless.tasks import labels"
    )
    (root / "softless" / "texts.py").write_text("X = {'boxes': 1, 'softless.tasks.labels.task': 2}")
    (root / "softless" / "fields.py").write_text("class X:\n    boxes: int\n    labels: int")
    (root / "softless" / "one.py").write_text("boxes: int = 1\n'boxes and labels'")
    assert stairs.table(root)["files that name every task"] == [
        "softless.fields",
        "softless.imports",
        "softless.texts",
    ]
