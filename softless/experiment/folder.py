"""The folder a run leaves: which files it holds, and who may write into it."""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softless.errors import CheckpointError, DataError, ResumeMismatch, StorageError, UsageError
from softless.experiment.about import ABOUT
from softless.experiment.files import EXPORTS, read_log, read_recipe
from softless.experiment.names import canonical
from softless.experiment.recipe import Recipe, as_json, restored
from softless.experiment.started import RECOVERED
from softless.models.durable import (
    append,
    delete,
    delete_folder,
    make_folder,
    size,
    storing,
    write_bytes,
    write_text,
)
from softless.words import counted, few

RECIPE, CLASSES, LOG = "recipe.json", "classes.json", "log.jsonl"
RECIPE_YAML = "recipe.yaml"  # its fields for people and `--config`
CHECKPOINTS, WEIGHTS, BEST = "checkpoints", "best.safetensors", "best.json"
DUMPS = "diverged-*.json"
RESULT, REPORT, SCALARS = "result.json", "report.html", "tensorboard"
PREDICTIONS = ("predictions.npz", "predictions.json")  # of classification and of detection
LABELS = "predictions"  # of segmentation, a label image each
BAG_TABLES = ("predictions.csv", "tiles.csv")  # of bags: each slide, and tiles of some
STATE, LOCK = "state.json", "lock"
LEFT_OUT = "left_out.json"  # part -> [file, reason] of images that data.faults=skip left out
CSV_LOG = "log.csv"  # log.jsonl as a table, where the recipe asks for it
LOGGED_AT = "loggers.json"  # what services call this run
SPLITS = "splits.csv"  # file, part and group of each image
FILES = (
    RECIPE,
    RECIPE_YAML,
    CSV_LOG,
    LOGGED_AT,
    CLASSES,
    LOG,
    WEIGHTS,
    BEST,
    RESULT,
    *PREDICTIONS,
    *BAG_TABLES,
    REPORT,
    STATE,
    LEFT_OUT,
    SPLITS,
    ABOUT,
    EXPORTS,
    RECOVERED,
)
FOLDS = "folds.json"  # of a folder of folds, which are runs
TOGETHER = (REPORT, *BAG_TABLES)  # what a task may write beside it, of all folds
MODEL = "model"  # the best weights as `save_weights` writes them
RANKS = "ranks"  # the last words of each of several ranks
FOLDERS = (CHECKPOINTS, SCALARS, MODEL, LABELS, RANKS)

# fields that a resumed run may set anew: no number moves
MAY_CHANGE = frozenset({
    "data.path",
    "table.path",
    "data.workers",
    "threads",
    "rank_patience",
    "loggers",
    "save.every_steps",
    "save.every_seconds",
    "save.keep",
    "divergence.policy",
    "divergence.patience",
    "segmentation.observer",
})
# fields that hold a path on this machine
PLACES = frozenset({"data.path", "table.path", "model.weights"})
COPIES = 5  # of the parameters in one checkpoint: weights, average, two moments, best weights
_log = logging.getLogger("softless.training")


@dataclass(frozen=True)
class RunFolder:
    """A run's folder."""

    path: Path

    def check(self, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
        """Whether this run may have the folder; changes nothing.

        Raises:
            UsageError: it is a file, or holds a run and neither resume nor overwrite is set, or the
                run to resume had another recipe (the fields are named).
        """
        if resume and overwrite:
            raise UsageError(
                "resume continues the run in the folder, overwrite deletes it: choose one"
            )
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"run folder {self.path} is a file: choose another --out")
        has_run = self.holds_run()
        if has_run and resume:
            self._check_same(recipe)
        elif has_run and not overwrite:
            raise UsageError(
                f"run folder {self.path} already holds a run ({self._whose()}): continue it with "
                "--resume, replace it "
                "with --overwrite, or choose another --out"
            )
        elif resume:
            _log.warning("nothing to resume in %s: the run starts at its first epoch", self.path)

    def holds_run(self) -> bool:
        """Whether anything of a run lies in the folder.

        How a start ended that left nothing else (state.json) is no run, and what is written of all
        folds together is none.
        """
        together = TOGETHER if self.has(FOLDS) else ()
        return any(self.has(name) for name in {*FILES, CHECKPOINTS} - {STATE, *together})

    def check_unfinished(self) -> None:
        """A run without a checkpoint starts at its first epoch, and says so, if nothing that it
        logged would be lost.

        Raises:
            CheckpointError: it went further than its first epoch, so there were checkpoints.
        """
        if not self.has(RECIPE):
            return
        log = self.path / LOG
        epochs = log.read_bytes().count(b"\n") if log.is_file() else 0
        if self.has(RESULT) or epochs > 1:  # the first is logged just before the first checkpoint
            raise CheckpointError(
                f"the run in {self.path} has {counted(epochs, 'epoch')} in its {LOG} and no "
                f"finished checkpoint: bring {CHECKPOINTS}/ back "
                "from a backup, or start anew with --overwrite"
            )
        _log.warning(
            "no checkpoint was finished in %s: the run starts at its first epoch", self.path
        )

    def recipe(self) -> Recipe | None:
        """The recipe of the run in the folder, or None where there is no run.

        Raises:
            UsageError: there is one, and its recipe.json is missing, damaged or of another
                softless.
        """
        if not self.holds_run():
            return None
        if not self.has(RECIPE):
            raise UsageError(
                f"cannot resume {self.path}: its recipe.json is missing; start anew with "
                "--overwrite"
            )
        try:
            return restored(self.stored_recipe())
        except (UsageError, ValueError, TypeError, AttributeError) as error:
            raise UsageError(
                f"cannot resume {self.path}: its {RECIPE} cannot be read ({error}); bring it back "
                "from a backup, or start anew with --overwrite"
            ) from error

    def make(self) -> None:
        """Make the folder if it is missing.

        Raises:
            StorageError: it cannot be made.
        """
        make_folder(self.path)

    def check_same(self, earlier: Recipe | None) -> None:
        """Whether the run to continue is still the one that was seen when this command began.

        Raises:
            UsageError: another command changed it.
        """
        if self.recipe() != earlier:
            raise UsageError(
                f"another command changed the run in {self.path} while this one opened its data: "
                "give this command again"
            )

    def sweep(self) -> None:
        """Delete what a killed process left half written, and try that files can be written. The
        folder is held.

        Raises:
            StorageError: they cannot.
        """
        for name in FILES:
            delete(self.path / f"{name}.tmp")
        write_bytes(self.path / "trial", b"x" * 4096)
        delete(self.path / "trial")

    def clear(self) -> None:
        """Delete the run that the folder holds, and nothing else."""
        for name in FILES:
            delete(self.path / name)
        for path in self.path.glob(DUMPS):
            delete(path)
        for name in FOLDERS:
            delete_folder(self.path / name)

    def check_room(self, parameter_bytes: int, keep: int) -> None:
        """Whether the disk has room for the checkpoints.

        Raises:
            StorageError: it has not.
        """
        with storing(self.path):
            needed, free = (
                ((keep + 1) * COPIES + 2) * parameter_bytes,
                shutil.disk_usage(self.path).free,
            )
        if free < needed:
            raise StorageError(
                f"run folder {self.path} needs about {size(needed)} for checkpoints and its disk "
                f"has {size(free)} "
                "free: make room or choose another --out"
            )

    def write_json(self, name: str, content: Any) -> None:
        """Write what JSON can hold into a file of this name, whole or not at all.

        Raises:
            StorageError: the disk is full or the file cannot be written.
        """
        write_text(
            self.path / name, json.dumps(content, indent=1, default=str, allow_nan=True) + "\n"
        )

    def stored_recipe(self) -> dict[str, Any]:
        """The content of recipe.json.

        Raises:
            DataError: missing, damaged, or no recipe.
        """
        return read_recipe(self.path / RECIPE)

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return (self.path / name).exists()

    def log(self, line: Mapping[str, Any]) -> None:
        """Append one epoch to the log; it is on disk afterwards.

        Raises:
            StorageError: the disk is full or the file cannot be written.
        """
        append(self.path / LOG, (json.dumps(line) + "\n").encode())

    def epochs(self) -> list[dict[str, Any]]:
        """The logged epochs, in order, counted from 1, or from 0 where the start was measured."""
        if not self.has(LOG):
            return []
        return read_log(self.path / LOG)

    def rewind_log(self, count: int) -> None:
        """Keep so many lines of the log: an epoch whose checkpoint was not written runs again.

        A last line cut short by a crash is such an epoch too.

        Raises:
            CheckpointError: epochs before it are missing.
        """
        if not self.has(LOG):
            return
        try:
            lines = read_log(self.path / LOG, count)
        except DataError as error:
            raise CheckpointError(f"cannot resume {self.path}: {error}") from error
        if len(lines) < count:
            raise CheckpointError(
                f"cannot resume {self.path}: its {LOG} has {counted(len(lines), 'line')} and "
                f"{counted(count, 'epoch')} should be there; bring it back from a backup, "
                "or start anew with --overwrite"
            )
        write_text(self.path / LOG, "".join(json.dumps(line) + "\n" for line in lines))

    def _whose(self) -> str:
        if not self.has(RECIPE):
            return "its recipe.json is missing"
        try:
            name = f"recipe '{self.stored_recipe()['name']}'"
        except DataError:
            name = "its recipe.json is damaged"
        return f"{name}, {'finished' if self.has(RESULT) else 'not finished'}"

    def _check_same(self, recipe: Recipe) -> None:
        stored = self.recipe()
        changed = [] if stored is None else differences(self.stored_recipe(), as_json(recipe))
        if changed:
            raise ResumeMismatch(
                f"cannot resume {self.path}: its recipe differs in {few(changed)}; give the same "
                "fields, or another --out"
            )


def may_change(name: str, stored: Any, requested: Any) -> bool:
    """Whether a run that is continued may have this value of a field in place of the one it started
    with.
    """
    return name in MAY_CHANGE or (
        name == "name" and canonical(str(stored)) == canonical(str(requested))
    )


def changes(previous: Recipe, chosen: Recipe) -> list[str]:
    """`data.path is B now, A before` for each field that may change and did."""
    before, after = flat(as_json(previous)), flat(as_json(chosen))
    return [
        f"{name} is {value} now, {before.get(name)} before"
        for name, value in after.items()
        if value != before.get(name) and may_change(name, before.get(name), value)
    ]


def differences(stored: Mapping[str, Any], requested: Mapping[str, Any]) -> list[str]:
    """`optim.lr (0.001 there, 0.002 asked)` for each field of `requested` that differs
    and matters.
    """
    # what an older softless did not write is at its default
    standard = flat(as_json(Recipe("", "")))
    # a task's group is null by default
    set_ = {name for name, value in stored.items() if isinstance(value, Mapping)}
    before, after = (
        {name: value for name, value in standard.items() if name not in set_} | flat(stored),
        flat(requested),
    )
    heads = {name.split(".")[0] for name in after}
    names = [name for name in {**after, **before} if name.split(".")[0] in heads]
    missing = "unset"
    pairs = {name: (before.get(name, missing), after.get(name, missing)) for name in names}
    return [
        f"{name} ({old} there, {new} asked)"
        for name, (old, new) in pairs.items()
        if old != new and not may_change(name, old, new) and not _same_place(name, old, new)
    ]


def _same_place(name: str, stored: Any, requested: Any) -> bool:
    """Older runs wrote a path as it was given, from the folder they were started in."""
    return (
        name in PLACES
        and None not in {stored, requested}
        and Path(stored).expanduser().resolve() == Path(requested).resolve()
    )


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Fields of a nested table by their whole names."""
    dotted: dict[str, Any] = {}
    for key, value in content.items():
        dotted |= (
            flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
        )
    return dotted
