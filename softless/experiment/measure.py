"""One number of an evaluation: what it is called, how it is written, and whether more is better."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """One number of an evaluation."""

    title: str  # within a sentence
    best: str  # how the best value is called
    percent: bool = False
    higher: bool = True

    def write(self, value: float | None) -> str:
        """The value for people; one that cannot be computed (no class of that kind occurs) as
        n/a.
        """
        if value is None:
            return "n/a"
        return f"{value:.1%}" if self.percent else f"{value:.3f}"
