"""What a finished run reached."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from softless.evaluation.measures import describe
from softless.training.run_folder import RESULT, RunFolder


@dataclass(frozen=True)
class Result:
    """Scores of the best epoch (chosen on the validation split) and the cost of getting there.

    `val` and `test` hold the task's measures, seen and expected; `test` of a classifier also the 95 % interval of top1. `test` is
    None where the data has no test split. `left_out` counts images by part that data.faults=skip left out. `seconds` counts training and validation, `images_per_second` training alone.
    """

    run_dir: Path
    best_epoch: int
    epochs: int
    val: dict[str, Any]
    test: dict[str, Any] | None
    seconds: float
    images_per_second: float
    parameters: int
    left_out: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"best epoch {self.best_epoch + 1} of {self.epochs}: validation {describe(self.val)}"]
        if self.test is not None:
            low, high = self.test.get("interval", (None, None))
            interval = "" if low is None else f", 95 % interval {low:.1%} to {high:.1%}"
            lines.append(f"test {describe(self.test)}{interval}")
        lines.append(
            f"{self.parameters:,} parameters, {self.seconds:.0f} s, {self.images_per_second:,.0f} images/s in training"
        )
        if self.left_out:
            told = ", ".join(f"{count} of {part}" for part, count in self.left_out.items())
            lines.append(f"images that cannot be used were left out: {told} (left_out.json)")
        return "\n".join([*lines, f"run folder {self.run_dir}"])


def stored(folder: RunFolder) -> Result | None:
    """The result of a run that is finished, or None."""
    return Result(run_dir=folder.path, **folder.read_json(RESULT)) if folder.has(RESULT) else None
