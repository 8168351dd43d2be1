"""What a distillation reached."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from softless.experiment.measures import MEASURES
from softless.training.result import Result


@dataclass(frozen=True)
class Distilled:
    """What a distillation reached, on the held-out images; the student has the weights that were
    kept.
    """

    model: nn.Module  # the student, in the mode that it was given in
    run: Result
    start: Mapping[str, Any]  # measures before the first step: agreement, kl, cosine, top1, …
    best: Mapping[str, Any]  # of the epoch that was kept

    @property
    def kept_start(self) -> bool:
        """Whether no epoch was better than the start."""
        return self.run.best_epoch == 0

    def to_dict(self) -> dict[str, Any]:
        run = {**asdict(self.run), "run_dir": str(self.run.run_dir)}
        return {"start": dict(self.start), "best": dict(self.best), "run": run}

    def __str__(self) -> str:
        rows = [
            f"{measure.title}: {measure.write(self.start[name])} to "
            f"{measure.write(self.best[name])}"
            for name, measure in MEASURES.items()
            if name != "loss" and self.best.get(name) is not None and name in self.start
        ]
        which = (
            "no epoch was better than the start, which is kept"
            if self.kept_start
            else f"epoch {self.run.best_epoch} of {self.run.epochs} is kept"
        )
        return "\n".join([
            f"{which} ({self.best['seen']} held-out images, {self.run.seconds:.0f} s)",
            *rows,
            f"run folder {self.run.run_dir}",
        ])
