"""Where a number came from: the commit, and the command that was typed."""

import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

PROGRAM = "softless"


def repository() -> Path | None:
    """The repository this package is imported from, or None for an installed one."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / ".git").exists() and (root / "benchmarks").is_dir() else None


def commit(root: Path | None) -> str:
    """The commit of a repository, with a mark where the tree held changes; "none" outside one."""
    if root is None:
        return "none"
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    # no git on this machine, or an empty repository
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}{'+changes' if changed else ''}"


def command() -> str:
    """What was typed, as a shell takes it, without the folders before the program's name; of
    another program that it was Python.
    """
    path = Path(sys.argv[0]) if sys.argv else Path()
    if path.name == PROGRAM:
        return shlex.join([PROGRAM, *sys.argv[1:]])
    if path.parts[-2:] == ("lab", "__main__.py"):
        return shlex.join(["python", "-m", "lab", *sys.argv[1:]])
    return "called in Python"


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)  # noqa: S603, S607
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Of what decides a run's numbers."""
    return {name: version(name) for name in ("softless", "torch", "timm")}
