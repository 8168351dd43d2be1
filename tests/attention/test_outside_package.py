"""The example of docs/contract.md, installed as an outside package: it registers itself, and every
door of the table opens.
"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "softless_shifted"
DOORS = re.findall(
    r"^\| ([\w ]+) \| `(.*)` \|$", (ROOT / "docs" / "contract.md").read_text(), re.MULTILINE
)
START = """
import copy, pickle, sys, timm, torch, softless
from softless.compare.models import with_operator
from softless.recipes import get_recipe
from pathlib import Path
torch.set_num_threads(1)
folder = Path(sys.argv[1])
q, image = torch.randn(1, 2, 9, 4), torch.randn(1, 3, 64, 64)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with the example in it, installed by pip from a copy: without a
    network.
    """
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "softless_shifted.py"):
        (copy / name).write_text((EXAMPLE / name).read_text())
    folder = tmp_path_factory.mktemp("packages")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run([*pip, "--target", str(folder), str(copy)], check=True, capture_output=True)
    return folder


def python(code: str, packages: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def test_every_door_of_the_table(installed: Path, tmp_path: Path) -> None:
    assert len(DOORS) == 18
    lines = [f"{code}\nprint('opened', {door!r}, flush=True)" for door, code in DOORS]
    found = python(START + "\n".join(lines), installed, tmp_path)
    opened = re.findall(r"opened (.*)", found.stdout)
    assert [door for door, _ in DOORS if door not in opened] == [], found.stderr[-2000:]


def test_imported_first_it_registers_itself_once(installed: Path, tmp_path: Path) -> None:
    code = (
        "import warnings; warnings.simplefilter('error'); import softless_shifted as s, "
        "softless; print(softless.OPERATORS['shifted'] is s.SPEC)"
    )
    found = python(code, installed, tmp_path)
    assert found.stdout.strip() == "True", found.stderr[-2000:]


def test_the_example_is_as_short_as_it_is_said() -> None:
    """At most six imported names and ten fields; fewer than fifty lines."""
    text = (EXAMPLE / "softless_shifted.py").read_text()
    tree = ast.parse(text)
    imported = [
        one
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for one in node.names
    ]
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") in {"Operator", "Identity", "Claims"}
    ]
    # two of Operator's are the groups
    fields = sum(len(call.args) + len(call.keywords) for call in calls) - 2
    assert len(imported) <= 6
    assert fields <= 10
    assert len(text.splitlines()) < 50
