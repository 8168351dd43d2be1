"""The bars that a measurement is held to.

Every one is a ratio of two rivals in one run; a missed one stays in the table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lab.speed.models import DEIT, XCIT
from lab.speed.work import Case, Work
from softless.compare.timing import Spread


@dataclass(frozen=True)
class Bar:
    """The ratio `over` / `under` must be at most, or at least, `bound` in all work that `setting`
    fits; without an `under`, the MB of `over`.
    """

    figure: str
    over: str
    under: str
    rule: Literal["<=", ">="]
    bound: float
    setting: Mapping[str, Any]
    quantity: Literal["time", "memory"] = "time"

    def fits(self, work: Work) -> bool:
        return all(getattr(work, name) == value for name, value in self.setting.items())

    def measured(self, case: Case) -> Spread | None:
        """What a case says of it; None where one of the rivals took no part."""
        if self.under:
            return case.ratio(self.over, self.under, self.quantity)
        return Spread.of([case.peaks[self.over] / 1e6]) if self.over in case.peaks else None

    def met(self, ratio: float) -> bool:
        return ratio <= self.bound if self.rule == "<=" else ratio >= self.bound


def _block(dtype: str, tokens: int, bound: float, batch: int) -> Bar:
    return Bar(
        "block",
        "sima",
        "bare",
        "<=",
        bound,
        {"dtype": dtype, "tokens": tokens, "dim": 384, "batch": batch},
    )


def _deit(
    dtype: str, pixels: int, over: str, under: str, rule: Literal["<=", ">="], bound: float
) -> Bar:
    return Bar("deit", over, under, rule, bound, {"host": DEIT, "dtype": dtype, "pixels": pixels})


def _optimized(pixels: int, under: str, bound: float) -> Bar:
    setting = {"host": DEIT, "dtype": "bfloat16", "pixels": pixels}
    return Bar("optimized", "optimized", under, "<=", bound, setting)


def _step(dtype: str, quantity: Literal["time", "memory"], bound: float) -> Bar:
    return Bar(
        "training",
        "sima",
        "published",
        "<=",
        bound,
        {"dtype": dtype, "tokens": 9216, "dim": 384},
        quantity,
    )


BARS = (
    _block("bfloat16", 9216, 1.40, 1),
    _block("float32", 9216, 1.08, 1),
    *(
        _block(dtype, 196, bound, batch)
        for dtype, bound in (("bfloat16", 1.5), ("float32", 1.22))
        for batch in (1, 8)
    ),
    Bar("block", "sima", "published", "<=", 1.02, {"dim": 384}),
    Bar(
        "compiled",
        "compiled",
        "sima",
        ">=",
        1.25,
        {"dtype": "bfloat16", "tokens": 9216, "dim": 384},
    ),
    _deit("bfloat16", 1536, "sima", "bare", "<=", 1.05),
    _deit("bfloat16", 1536, "softmax", "sima", ">=", 5.0),
    _deit("bfloat16", 1536, "published", "sima", ">=", 1.5),
    _deit("float32", 1536, "sima", "bare", "<=", 1.03),
    _deit("float32", 1536, "softmax", "sima", ">=", 5.5),
    _deit("bfloat16", 224, "softmax", "sima", ">=", 1.10),
    _deit("float32", 224, "softmax", "sima", ">=", 1.05),
    *(
        Bar(
            "xcit",
            rival,
            "sima",
            ">=",
            bound,
            {"host": XCIT, "dtype": "bfloat16", "pixels": pixels},
        )
        for pixels, bound in ((1536, 2.7), (768, 1.6))
        for rival in ("published", "xca")
    ),
    *(
        _optimized(pixels, under, bound)
        for pixels in (224, 768)
        for under, bound in (
            ("openvino_published", 1.00),
            ("openvino_bare", 1.10),
            ("openvino_linear", 1.10),
        )
    ),
    _optimized(1536, "bare", 0.80),
    _step("float32", "time", 0.50),
    _step("float32", "memory", 0.55),
    _step("bfloat16", "time", 0.40),
    _step("bfloat16", "memory", 0.45),
    Bar("layer", "streamed", "", "<=", 32, {"dtype": "bfloat16", "tokens": 262_144}, "memory"),
    Bar("layer", "streamed", "published", "<=", 0.27, {"dtype": "bfloat16", "tokens": 262_144}),
)


@dataclass(frozen=True)
class Verdict:
    """A bar and what was measured."""

    bar: Bar
    work: Work
    measured: Spread

    @property
    def met(self) -> bool:
        return self.bar.met(self.measured.median)

    def row(self) -> dict[str, Any]:
        """For a CSV file and the terminal."""
        return {
            "kind": "bar",
            **self.work.columns(),
            "ratio": f"{self.bar.over} / {self.bar.under}" if self.bar.under else self.bar.over,
            "of": self.bar.quantity if self.bar.under else "MB",
            "bar": f"{self.bar.rule.replace('<=', '≤').replace('>=', '≥')} {self.bar.bound:.2f}",
            "measured": round(self.measured.median, 3),
            "quarters": f"{self.measured.low:.3f} to {self.measured.high:.3f}",
            "verdict": "met" if self.met else "missed",
        }


def judge(figure: str, cases: Sequence[Case], bars: Sequence[Bar] = BARS) -> list[Verdict]:
    """Every bar of a figure on every case that it is about."""
    verdicts = []
    for bar in bars:
        for case in cases:
            measured = bar.measured(case) if bar.figure == figure and bar.fits(case.work) else None
            if measured is not None:
                verdicts.append(Verdict(bar, case.work, measured))
    return verdicts
