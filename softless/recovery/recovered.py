"""What `recover` leaves: the model, and how near each step brought it to its teacher."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from softless.convert.refit.refit import Refitted, finite
from softless.convert.swap import Swapped
from softless.measure.findings import Audit
from softless.recovery.answers import Nearness
from softless.recovery.distilled import Distilled


@dataclass(frozen=True)
class Recovered:
    """A model with another attention, and what became of its accuracy; prints as lines."""

    model: nn.Module
    op: str
    options: Mapping[str, Any]
    swapped: Swapped | None  # None of a model that came exchanged, or was built anew
    refit: Refitted | None
    distilled: Distilled | None
    nearness: Mapping[str, Nearness]  # step -> on images that it was not fitted on
    seconds: Mapping[str, float]  # step -> of the processor
    kept: str  # the step whose weights the model has
    before: Audit | None  # of one image: the teacher, and the model
    after: Audit | None
    notes: tuple[str, ...] = field(default_factory=tuple)
    out: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything that JSON can hold."""
        return {
            "op": self.op,
            "options": dict(self.options),
            "swapped": None if self.swapped is None else dict(self.swapped.swapped),
            "left": None if self.swapped is None else dict(self.swapped.kept),
            "lost": None if self.swapped is None else dict(self.swapped.lost),
            "layers": [] if self.refit is None else self.refit.rows(),
            "stream": None if self.refit is None else finite(self.refit.stream),
            "images": None if self.refit is None else self.refit.images,
            "steps": {step: near.to_dict() for step, near in self.nearness.items()},
            "seconds": dict(self.seconds),
            "kept": self.kept,
            "distilled": None if self.distilled is None else self.distilled.to_dict(),
            "exponentials": {
                name: None if audit is None else dict(audit.kinds)
                for name, audit in (("before", self.before), ("after", self.after))
            },
            "notes": list(self.notes),
            "out": None if self.out is None else str(self.out),
        }

    def __str__(self) -> str:
        lines = [] if self.swapped is None else [str(self.swapped)]
        lines += [] if self.refit is None else [str(self.refit)]
        width = max((len(step) for step in self.nearness), default=0)
        lines.append("")
        lines += [
            f"{step:<{width}}  {near}" + self._taken(step) for step, near in self.nearness.items()
        ]
        lines += [f"the weights of '{self.kept}' are kept"]
        if self.before is not None and self.after is not None:
            kinds = sorted({*self.before.kinds, *self.after.kinds})
            lines += [
                f"{kind} for one image: {self.before.kinds.get(kind, 0):,} before, "
                f"{self.after.kinds.get(kind, 0):,} after"
                for kind in kinds
            ]
        lines += list(self.notes)
        if self.out is not None and (self.out / "model").is_dir():
            lines += [f"the model is in {self.out / 'model'}"]
        return "\n".join(lines)

    def _taken(self, step: str) -> str:
        return f", {self.seconds[step]:.1f} s" if step in self.seconds else ""
