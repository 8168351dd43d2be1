"""Whether a name is that of an exported file, and what verbs say that take none."""

from pathlib import Path

from softless.errors import UsageError, located
from softless.experiment.folder import BEST
from softless.exporting.formats.table import is_exported


def is_file(run: str | Path) -> bool:
    """Whether an exported file is named, and no run."""
    return is_exported(located(run)) and not (located(run) / BEST).exists()


def refuse_file(name: str | Path | None, verb: str, why: str) -> None:
    """Refuse an exported file where a verb takes runs and models only.

    Raises:
        UsageError: it is one.
    """
    if name is not None and is_file(name):
        raise UsageError(
            f"softless {verb} takes a run or a model, and {name} is an exported file: {why}. Name "
            "the run; eval, predict and audit take files"
        )
