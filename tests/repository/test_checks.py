"""tools/checks.py finds each fault it is for, and nothing in this repository."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SLASH = "/"  # written apart, so that this file is not a finding itself

CLEAN = '''
"""A module."""
from pickle import UnpicklingError
import numpy as np

def eval(run):
    """A verb may be called like this."""
    return run

def small(x):
    return eval(x)  # type: ignore[arg-type]                                            a long line of a pragma

class _Private:
    def forward(self, x):
        return x * self.weight + self.bias

def load(path, model):
    """Reads safely."""
    model.eval()
    held = np.load(path, allow_pickle=False), torch.load(path, weights_only=True)
    return held, yaml.safe_load(path)
'''

CLEAN_TEST = """
from tests.helper import check_gradients

def agree(a, b):
    assert a == b

def through(a):
    agree(a, a)

def test_direct(): assert True
def test_raises():
    with pytest.raises(ValueError): f()
def test_helper(): through(1)
def test_close(): torch.testing.assert_close(1, 1)
def test_imported(): check_gradients()
def test_used(): assert torch.allclose(a, b) == op.equivariant
def test_folder(): assert open(SLASH + "tmp")
"""

LONG = "    x = 1\n" * 6
FAULTS = {
    "a long line": ("tests/x.py", f"\nx = '{'a' * 100}'\n", 2, "long line"),
    "a long comment": ("softless/x.py", f"x = 1  # {'a ' * 50}\n", 1, "long line"),
    "no formatter": ("tests/x.py", "x = [1,\n     2]  # fmt: " + "skip\n", 2, "long line"),
    "formatter off": ("tests/x.py", "# fmt: " + "off\nx = 1\n", 1, "long line"),
    "torch.allclose": (
        "tests/test_x.py",
        "def test_a():\n    torch.allclose(a, b)\n    assert a\n",
        2,
        "dropped comparison",
    ),
    "np.allclose": ("tools/x.py", "np.allclose(a, b)\n", 1, "dropped comparison"),
    "a.equal": ("softless/x.py", "a.equal(b)\n", 1, "dropped comparison"),
    "imported allclose": ("tests/test_x.py", "allclose(a, b)\n", 1, "dropped comparison"),
    "test without assert": (
        "tests/deep/test_x.py",
        "def test_a():\n    f(1)\n",
        1,
        "test without assertion",
    ),
    "test of nothing through helpers": (
        "tests/test_x.py",
        "def g(): h()\ndef h(): g()\nclass TestA:\n    def test_a(self): g()\n",
        4,
        "test without assertion",
    ),
    "function": ("softless/x.py", f"\ndef long():\n{LONG}", 2, "missing docstring"),
    "one of two functions": (
        "softless/x.py",
        f'"""File."""\ndef a(): f()\ndef long():\n{LONG}',
        3,
        "missing docstring",
    ),
    "class": ("softless/x.py", "class A:\n    x = 1\n", 1, "missing docstring"),
    "weights_only": ("softless/x.py", "torch.load(p, weights_only=False)\n", 1, "unsafe source"),
    "weights_only by a variable": (
        "softless/x.py",
        "torch.load(p, weights_only=safe)\n",
        1,
        "unsafe source",
    ),
    "pickle": ("softless/x.py", "def f():\n    import pickle\n", 2, "unsafe source"),
    "from pickle": ("softless/x.py", "from pickle import loads\n", 1, "unsafe source"),
    "eval": ("softless/x.py", "y = eval('1')\n", 1, "unsafe source"),
    "exec": ("softless/x.py", "exec('1')\n", 1, "unsafe source"),
    "yaml.load": ("softless/x.py", "yaml.load(f)\n", 1, "unsafe source"),
    "trust_remote_code": ("softless/x.py", "f(trust_remote_code=flag)\n", 1, "unsafe source"),
    "trust_remote_code in a dict": (
        "softless/x.py",
        "f(**{'trust_remote_code': flag})\n",
        1,
        "unsafe source",
    ),
    "shell": ("softless/x.py", "run('ls', shell=True)\n", 1, "unsafe source"),
    "allow_pickle": ("softless/x.py", "np.load(p, allow_pickle=True)\n", 1, "unsafe source"),
    "registry": (
        "docs/x.md",
        "fine\nfrom https://files.python" + "hosted.org/x\n",
        2,
        "package registry",
    ),
    "index": (
        "Makefile",
        "pip install --index-url https://mirror.example/pypi/" + "simple x\n",
        1,
        "package registry",
    ),
    "home": ("README.md", f"see {SLASH}home/someone/x\n", 1, "machine path"),
    "root": ("tests/test_x.py", f"path = '{SLASH}root/x'\n", 1, "machine path"),
    "work": ("benchmarks/x.csv", f"a,{SLASH}work/main\n", 1, "machine path"),
    "tmp": ("softless/x.py", f"path = '{SLASH}tmp'\n", 1, "machine path"),
    "weight": ("softless/x.py", "y = x @ layer.weight\n", 1, "weight read"),
    "bias deep down": (
        "softless/x.py",
        "def f(self):\n    return self.proj.bias\n",
        2,
        "weight read",
    ),
    "weight by its name": ("softless/x.py", "getattr(layer, 'weight')\n", 1, "weight read"),
    "weight among parameters": ("softless/x.py", "layer._parameters['weight']\n", 1, "weight read"),
    "init": ("softless/deep/er/x.py", "x = 1\n", 1, "missing __init__.py"),
}


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def run(root: Path) -> tuple[int, list[str]]:
    command = [sys.executable, "-I", str(ROOT / "tools" / "checks.py"), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.stderr
    return done.returncode, done.stdout.splitlines()


@pytest.fixture
def tree(tmp_path):
    write(
        tmp_path,
        {
            "softless/__init__.py": "",
            "softless/clean.py": CLEAN,
            "softless/one.py": f'"""File."""\ndef recipe():\n{LONG}',
            "tests/test_clean.py": CLEAN_TEST,
        },
    )
    write(
        tmp_path,
        {
            "README.md": f"and{SLASH}work or ..{SLASH}shared{SLASH}data, "
            f"https://example.org{SLASH}work{SLASH}x\n"
        },
    )
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
    return tmp_path


def test_a_clean_tree_has_no_findings(tree):
    assert run(tree) == (0, ["tools/checks.py: nothing found"])


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found(tree, fault):
    path, text, line, rule = FAULTS[fault]
    write(tree, {path: text})
    code, findings = run(tree)
    path = str(Path(path).parent) if rule == "missing __init__.py" else path
    assert any(
        found.startswith(f"{path}:{line}: ") and found.endswith(f"({rule})") for found in findings
    ), findings
    assert {found.rsplit("(", 1)[1] for found in findings} == {f"{rule})"}
    assert code == 1


def test_ignored_files_are_not_read(tree):
    write(
        tree,
        {".gitignore": "runs/\n", "runs/x.md": f"{SLASH}home/x\n", "new.md": f"{SLASH}root/x\n"},
    )
    subprocess.run(["git", "init", "-q", str(tree)], check=True)
    assert [found.split(":")[0] for found in run(tree)[1]] == ["new.md"]


def test_this_repository_has_no_findings():
    assert run(ROOT) == (0, ["tools/checks.py: nothing found"])
