"""The wheel holds the package, all of it and nothing else (it is built from a copy, so that nothing is left in the checkout)."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc")


def build(folder: Path) -> dict[str, bytes]:
    """The files of the wheel built from a folder."""
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder / "dist"),
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in (folder / "softless").rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def copy(tmp_path):
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "softless", folder / "softless", ignore=IGNORED)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def test_the_wheel_equals_the_tree(copy):
    wheel = build(copy)
    package = {name: data for name, data in wheel.items() if ".dist-info/" not in name}
    assert package == tree(copy)
    assert "softless/py.typed" in package


def test_what_stands_beside_the_package(copy):
    wheel = build(copy)
    (info,) = {name.split("/")[0] for name in wheel} - {"softless"}
    names = {name.removeprefix(info + "/") for name in wheel if name.startswith(info)}
    assert names == {"METADATA", "WHEEL", "entry_points.txt", "RECORD", "licenses/LICENSE"}
    assert b"softless = softless.cli.main:main" in wheel[f"{info}/entry_points.txt"]
    assert b"py3-none-any" in wheel[f"{info}/WHEEL"]


def test_a_file_that_the_build_drops_would_be_seen(copy):
    with (copy / "pyproject.toml").open("a") as project:
        project.write('\n[tool.scikit-build.wheel]\nexclude = ["**/errors.py"]\n')
    settings = (
        (copy / "pyproject.toml")
        .read_text()
        .replace("wheel.cmake", "#")
        .replace("wheel.packages", "#")
        .replace("wheel.py-api", "#")
    )
    (copy / "pyproject.toml").write_text(settings + 'cmake = false\npackages = ["softless"]\npy-api = "py3"\n')
    assert set(tree(copy)) - set(build(copy)) == {"softless/errors.py"}
