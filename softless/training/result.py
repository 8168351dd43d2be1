"""What a finished run reached."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from softless.errors import DataError
from softless.experiment.candidates import described
from softless.experiment.epochs import KEY
from softless.experiment.files import read_result
from softless.experiment.folder import REPORT, RESULT, RunFolder
from softless.experiment.measures import describe
from softless.words import rate


@dataclass(frozen=True)
class Result:
    """Scores of the best epoch (chosen on the validation split) and the cost of getting there.

    `best_epoch` counts from 1. `weights` says which weights of that epoch were the better on the
    validation split: raw or averaged. `gained` is what the last quarter of the epochs added to
    `metric` there, `rising` whether a longer run would reach more. `val` and `test` hold the task's
    measures, seen and expected; `test` of a classifier also the 95 % interval of top1. `test` is
    None where the data has no test split. `planned` is how many epochs there would have been where
    `ended_by` (schedule.patience, on_epoch) ended the run earlier. `extended_from` has the epochs
    that the run was meant to have before it was made longer. `left_out` counts images by part that
    data.faults=skip left out. `seconds` counts training and validation, `images_per_second`
    training alone.
    """

    run_dir: Path
    best_epoch: int
    epochs: int
    val: dict[str, Any]
    test: dict[str, Any] | None
    seconds: float
    images_per_second: float
    parameters: int
    weights: str = ""  # a result of an older softless does not say
    metric: str = ""
    gained: float | None = None
    rising: bool = False
    planned: int | None = None
    ended_by: str = ""
    extended_from: list[int] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        whose = f", {self.weights} weights" if self.weights else ""
        lines = [
            f"best epoch {self.best_epoch} of {self.epochs}{whose}: validation {describe(self.val)}"
        ]
        if self.test is not None:
            low, high = self.test.get("interval") or (None, None)
            form = ".1%" if "top1" in self.test else ".3f"
            interval = "" if low is None else f", 95 % interval {low:{form}} to {high:{form}}"
            lines.append(f"test {describe(self.test)}{interval}")
        lines.append(
            f"{self.parameters:,} parameters, {self.seconds:.0f} s, "
            f"{rate(self.images_per_second)} images/s in training"
        )
        if self.rising and self.gained is not None:
            lines.append(
                "still rising: the last quarter of the epochs added "
                f"{described(self.gained, self.metric)}; make it longer with "
                f"--resume --set schedule.epochs={2 * self.epochs}"
            )
        if self.planned is not None:
            lines.append(f"ended by {self.ended_by} after {self.epochs} of {self.planned} epochs")
        if self.extended_from:
            listing = ", then ".join(map(str, self.extended_from))
            lines.append(f"made longer than the {listing} epochs that it was begun with")
        if self.left_out:
            listing = ", ".join(f"{count} of {part}" for part, count in self.left_out.items())
            lines.append(f"images that cannot be used were left out: {listing} (left_out.json)")
        page = self.run_dir / REPORT
        lines.append(f"run folder {self.run_dir}")
        return "\n".join([*lines, f"page {page.resolve()}"] if page.is_file() else lines)


def stored(folder: RunFolder) -> Result | None:
    """The result of a run that is finished, or None.

    Raises:
        DataError: it is damaged, or a later softless wrote it.
    """
    if not folder.has(RESULT):
        return None
    content = read_result(folder.path / RESULT)
    if unknown := sorted(content.keys() - {entry.name for entry in fields(Result)} - {KEY}):
        raise DataError(
            f"{folder.path / RESULT} has entries that this softless does not know "
            f"({', '.join(unknown[:5])}): update softless"
        )
    return Result(
        run_dir=folder.path, **{name: value for name, value in content.items() if name != KEY}
    )
