"""The wheel holds the package and the native library, all of it and nothing else; without a
compiler it holds the package alone and works.

It is built from a copy, so that nothing is left in the checkout.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.building import ROOT, no_kernels

IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc", "*.so")
pytestmark = pytest.mark.extra  # it builds wheels

LIBRARY = "softless/attention/kernels/native/libsoftless_native.so"


def copy(source: Path, folder: Path) -> Path:
    """A checkout of what a wheel is made of."""
    shutil.copytree(source / "softless", folder / "softless", ignore=IGNORED)
    for name in ("CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(source / name, folder)
    return folder


def build(folder: Path, out: Path, kind: str = "wheel", **environment: str) -> Path:
    """The wheel or the source distribution of a folder."""
    command = [
        sys.executable,
        "-m",
        "build",
        f"--{kind}",
        "--no-isolation",
        "--outdir",
        str(out),
        str(folder),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = out.iterdir()
    return made


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def package(wheel: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(wheel).items() if ".dist-info/" not in name}


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in (folder / "softless").rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


NO_COMPILER = {"CXX": "/nowhere/c++"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy(ROOT, tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def compiled(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this machine, whose Python was built with a compiler that is not here: no reason
    to do without.
    """
    if why := no_kernels():
        pytest.skip(why)
    elsewhere = tmp_path_factory.mktemp("python")
    (elsewhere / "sitecustomize.py").write_text(
        'import sysconfig\n\nsysconfig.get_config_vars()["CXX"] = "/nowhere/c++"\n'
    )
    return build(checkout, tmp_path_factory.mktemp("compiled"), PYTHONPATH=str(elsewhere))


@pytest.fixture(scope="module")
def plain(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a machine without a compiler."""
    return build(checkout, tmp_path_factory.mktemp("plain"), **NO_COMPILER)


@pytest.mark.slow
def test_the_wheel_equals_the_tree_and_the_library(checkout, compiled):
    files = package(compiled)
    assert files.pop(LIBRARY).startswith(b"\x7fELF")
    assert files == tree(checkout)
    assert "softless/py.typed" in files
    assert compiled.name.endswith("-py3-none-linux_x86_64.whl")


def test_without_a_compiler_the_wheel_equals_the_tree(checkout, plain):
    assert package(plain) == tree(checkout)
    assert plain.name.endswith("-py3-none-any.whl")


def test_what_stands_beside_the_package(plain):
    files = contents(plain)
    (info,) = {name.split("/")[0] for name in files} - {"softless"}
    names = {name.removeprefix(info + "/") for name in files if name.startswith(info)}
    assert names == {"METADATA", "WHEEL", "entry_points.txt", "RECORD", "licenses/LICENSE"}
    assert b"softless = softless_command:main" in files[f"{info}/entry_points.txt"]


def test_a_file_that_the_build_drops_would_be_seen(checkout, tmp_path):
    folder = copy(checkout, tmp_path / "checkout")
    packages = 'wheel.packages = ["softless", "softless_command"]'
    settings = (folder / "pyproject.toml").read_text()
    assert packages in settings
    changed = settings.replace(packages, packages + '\nwheel.exclude = ["**/errors.py"]')
    (folder / "pyproject.toml").write_text(changed)
    wheel = build(folder, tmp_path / "dist", **NO_COMPILER)
    assert set(tree(folder)) - set(package(wheel)) == {"softless/errors.py"}


def test_the_source_distribution_holds_what_the_library_is_made_of(checkout, tmp_path):
    with tarfile.open(build(checkout, tmp_path / "dist", "sdist")) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    assert (
        set(tree(checkout)) | {"CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"} <= names
    )
    assert not [name for name in names if name.endswith(".so")]


# What an unpacked wheel says of itself and computes, in a process of its own that sees no other
# softless.
ALONE = """
import json, sys
sys.path.insert(0, {folder!r})
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
import torch
import softless
from softless.attention.choose import backend_of
from softless.cli.list import list as listed
from softless.errors import BackendRefused

torch.manual_seed(0)
q, k, v = torch.randn(3, 1, 2, 65, 48).unbind(0)
o = softless.attend(q, k, v, op="sima")
exact = softless.attend(q.double(), k.double(), v.double(), op="sima", backend="reference")
try:
    softless.attend(q, k, v, op="sima", backend="native")
    refusal = ""
except BackendRefused as error:
    refusal = str(error)
print(json.dumps({{
    "file": softless.__file__,
    "backend": backend_of(q, k, v, "sima").name,
    "error": ((o - exact).norm() / exact.norm()).item(),
    "refusal": refusal,
    "listed": listed("backends")["sima"],
}}))
"""


def alone(wheel: Path, folder: Path) -> dict[str, object]:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    command = [sys.executable, "-c", ALONE.format(folder=str(folder))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert Path(said["file"]).is_relative_to(folder)
    assert 0 < said["error"] < 1e-6
    return said


@pytest.mark.slow
def test_the_wheel_works_alone(compiled, tmp_path):
    said = alone(compiled, tmp_path)
    assert said["backend"] == "native"
    assert not said["refusal"]
    assert "avx2" in str(said["listed"])


def test_the_wheel_works_without_the_library(plain, tmp_path):
    said = alone(plain, tmp_path)
    assert said["backend"] == "eager"
    assert "native: this installation has no native library" in str(said["refusal"])
    assert "eager: can run" in str(said["refusal"])
    assert str(said["listed"]).startswith(
        "native not here: this installation has no native library"
    )
