"""The folder a run leaves: which files it holds, who may write into it, and how a file is written whole or not at all."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from softless.errors import UsageError
from softless.training.recipe import Recipe

RECIPE, CLASSES, LOG = "recipe.json", "classes.json", "log.jsonl"
CHECKPOINT, WEIGHTS, BEST = "checkpoint.pt", "best.safetensors", "best.json"
RESULT, PREDICTIONS, REPORT, SCALARS = "result.json", "predictions.npz", "report.html", "tensorboard"
FILES = (RECIPE, CLASSES, LOG, CHECKPOINT, WEIGHTS, BEST, RESULT, PREDICTIONS, REPORT)

MAY_CHANGE = frozenset({
    "data.path",
    "data.workers",
    "threads",
})  # fields that a resumed run may set anew: no number moves
COPIES = 10  # disk needed, in parameter bytes: two checkpoints (weights, average, two moments) and two best weights
_log = logging.getLogger("softless.training")


@dataclass(frozen=True)
class RunFolder:
    """A run's folder."""

    path: Path

    def check(self, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
        """Whether this run may have the folder; changes nothing.

        Raises:
            UsageError: it is a file, or holds a run and neither resume nor overwrite is set, or the run to resume had
                another recipe (the fields are named).
        """
        if resume and overwrite:
            raise UsageError("resume continues the run in the folder, overwrite deletes it: choose one")
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"run folder {self.path} is a file: choose another --out")
        held = any(self.has(name) for name in FILES)
        if held and resume:
            self._check_same(recipe)
        elif held and not overwrite:
            raise UsageError(
                f"run folder {self.path} already holds a run ({self._whose()}): continue it with --resume, replace it "
                "with --overwrite, or choose another --out"
            )
        elif resume:
            _log.warning("nothing to resume in %s: the run starts at its first epoch", self.path)

    def open(self, parameter_bytes: int, *, overwrite: bool = False) -> None:
        """Make the folder if it is missing, with room for the checkpoints; delete the run it held if that was asked."""
        if overwrite:
            for name in FILES:
                (self.path / name).unlink(missing_ok=True)
            shutil.rmtree(self.path / SCALARS, ignore_errors=True)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"cannot make the run folder {self.path}: {error.strerror}; choose another --out"
            ) from error
        needed, free = COPIES * parameter_bytes, shutil.disk_usage(self.path).free
        if free < needed:
            raise UsageError(
                f"run folder {self.path} needs about {size(needed)} for checkpoints and its disk has {size(free)} "
                "free: make room or choose another --out"
            )

    def write_json(self, name: str, content: Any) -> None:
        text = json.dumps(content, indent=1, default=str, allow_nan=True) + "\n"
        write_whole(self.path / name, lambda path: path.write_text(text, encoding="utf-8"))

    def read_json(self, name: str) -> Any:
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def has(self, name: str) -> bool:
        return (self.path / name).exists()

    def log(self, line: Mapping[str, Any]) -> None:
        """Append one epoch to the log."""
        with (self.path / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def epochs(self) -> list[dict[str, Any]]:
        """The logged epochs, in order."""
        if not self.has(LOG):
            return []
        return [json.loads(line) for line in (self.path / LOG).read_text(encoding="utf-8").splitlines()]

    def rewind_log(self, epoch: int) -> None:
        """Drop what was logged from `epoch` on: an epoch whose checkpoint was not written runs again.

        A last line cut short by a crash is such an epoch too.
        """
        if not self.has(LOG):
            return
        lines = (self.path / LOG).read_text(encoding="utf-8").splitlines(keepends=True)
        kept = "".join(lines[:epoch])
        write_whole(self.path / LOG, lambda path: path.write_text(kept, encoding="utf-8"))

    def _whose(self) -> str:
        if not self.has(RECIPE):
            return "its recipe.json is missing"
        return f"recipe '{self.read_json(RECIPE).get('name')}', {'finished' if self.has(RESULT) else 'not finished'}"

    def _check_same(self, recipe: Recipe) -> None:
        if not self.has(RECIPE):
            raise UsageError(f"cannot resume {self.path}: its recipe.json is missing; start anew with --overwrite")
        changed = differences(self.read_json(RECIPE), as_json(recipe))
        if changed:
            raise UsageError(
                f"cannot resume {self.path}: its recipe differs in {few(changed)}; give the same fields, or another --out"
            )


def as_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as it reads back from recipe.json."""
    content: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    return content


def differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """`optim.lr (0.001 there, 0.002 asked)` for each field of `asked` that differs and matters."""
    there, here = _flat(stored), _flat(asked)
    heads = {name.split(".")[0] for name in here}
    names = [name for name in {**here, **there} if name.split(".")[0] in heads and name not in MAY_CHANGE]
    missing = "unset"
    return [
        f"{name} ({there.get(name, missing)} there, {here.get(name, missing)} asked)"
        for name in names
        if there.get(name, missing) != here.get(name, missing)
    ]


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def few(items: Iterable[str], show: int = 10) -> str:
    """At most ten of them, then a count."""
    listed = list(items)
    rest = f" and {len(listed) - show} more" if len(listed) > show else ""
    return ", ".join(listed[:show]) + rest


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write beside, flush to disk, rename: a reader sees the old file or the new one, never half of one.

    Raises:
        UsageError: the disk is full or the folder cannot be written; the old file stays.
    """
    beside = path.with_name(path.name + ".tmp")
    try:
        write(beside)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
