"""Line charts as inline SVG: responsive (a viewBox, no size), coloured by CSS variables, with
tooltips and a text that says the same.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from softless.report.html import Html, enlarged, tag
from softless.report.ticks import labels, ticks, whole_ticks

WIDTH, HEIGHT = 420, 250  # units of the viewBox; on a phone one unit is a little less than a pixel
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 12, 36


@dataclass(frozen=True)
class EpochCurve:
    """One curve over epochs, numbered from `first`; `faint` is one seed behind the mean of its
    model, `second` the other weights of the same run.
    """

    label: str
    colour: str
    values: Sequence[float | None]
    faint: bool = False
    second: bool = False
    mark: int | None = None  # epoch to point out
    first: int = 1  # 0 where the start was measured

    @property
    def points(self) -> list[tuple[int, float]]:
        """Epoch and value, where there is one."""
        numbered = enumerate(self.values, self.first)
        return [(epoch, value) for epoch, value in numbered if value is not None]

    def at(self, epoch: int | None) -> float | None:
        """The value of an epoch; None where there is none."""
        return None if epoch is None else dict(self.points).get(epoch)


@dataclass(frozen=True)
class LineChart:
    """Curves over epochs with one axis."""

    title: str
    lines: Sequence[EpochCurve]
    say: Callable[[float], str]  # a value in words, for tooltips and the text
    # a number of the axis with so many digits; more are taken until they differ
    tick: Callable[[float, int], str]
    # where the axis starts and ends; None is where the values do. Curves are cut off outside
    low: float | None = None
    high: float | None = None
    better: str = ""  # "lower" or "higher": what the text calls the best value
    note: str = ""
    digits: int = 0  # of the axis, the fewest
    within: tuple[float, float] = (-math.inf, math.inf)  # where values can lie

    @property
    def last_epoch(self) -> int:
        return max(len(line.values) + line.first - 1 for line in self.lines)

    @property
    def first_epoch(self) -> int:
        return min(line.first for line in self.lines)

    def render(self, identifier: str) -> Html:
        """The chart as a figure: heading, drawing, note."""
        values = [v for line in self.lines for v in line.values if v is not None]
        if not values:
            return tag(
                "figure",
                tag("figcaption", self.title),
                tag("p", "Nothing was logged.", class_="note"),
                class_="chart",
            )
        ends = (
            min(values) if self.low is None else self.low,
            max(values) if self.high is None else self.high,
        )
        tick_values = ticks(*ends, within=self.within)
        y = _scale(tick_values[0], tick_values[-1], HEIGHT - BOTTOM, TOP)
        x = _scale(self.first_epoch, max(self.last_epoch, 2), LEFT, WIDTH - RIGHT)
        drawing = tag(
            "svg",
            tag("title", f"{self.title}: {self.describe()}", id=f"{identifier}-title"),
            self._grid(tick_values, y),
            self._epochs(x),
            tag(
                "clipPath",
                tag("rect", x=0, y=TOP - 6, width=WIDTH, height=HEIGHT - BOTTOM - TOP + 6),
                id=f"{identifier}-clip",
            ),
            tag(
                "g",
                [_curve(line, x, y) for line in self._in_order()],
                clip_path=f"url(#{identifier}-clip)",
            ),
            self._tooltips(x),
            viewBox=f"0 0 {WIDTH} {HEIGHT}",
            role="img",
            aria_labelledby=f"{identifier}-title",
        )
        note = tag("p", self.note, class_="note") if self.note else None
        return tag(
            "figure",
            tag("figcaption", self.title),
            enlarged(drawing, self.title),
            note,
            class_="chart",
        )

    def describe(self) -> str:
        """The chart in words: where each curve starts, ends and is best."""
        parts = []
        for line in self.lines:
            points = [(value, epoch) for epoch, value in line.points]
            if line.faint or not points:
                continue
            text = (
                f"{line.label} from {self.say(points[0][0])} to {self.say(points[-1][0])} after "
                f"{points[-1][1]} epochs"
            )
            if self.better:
                best, epoch = (min if self.better == "lower" else max)(points)
                text += f", {self.better[:-2]}est {self.say(best)} at epoch {epoch}"
            parts.append(text)
        return "; ".join(parts) + "."

    def _in_order(self) -> list[EpochCurve]:
        """Seeds behind means, raw weights behind averaged ones, and the model compared with behind
        the others.
        """
        backwards = list(reversed(self.lines))
        return sorted(backwards, key=lambda line: (not line.faint, not line.second))

    def _grid(self, tick_values: list[float], y: Callable[[float], float]) -> list[Html]:
        return [
            tag(
                "g",
                tag(
                    "line",
                    x1=LEFT,
                    x2=WIDTH - RIGHT,
                    y1=_n(y(value)),
                    y2=_n(y(value)),
                    class_="grid",
                ),
                tag("text", label, x=LEFT - 8, y=_n(y(value) + 4), class_="tick end"),
            )
            for value, label in zip(
                tick_values, labels(tick_values, self.tick, self.digits), strict=True
            )
        ]

    def _epochs(self, x: Callable[[float], float]) -> list[Html]:
        marks = sorted({max(self.first_epoch, epoch) for epoch in whole_ticks(self.last_epoch)})
        labels = [
            tag("text", epoch, x=_n(x(epoch)), y=HEIGHT - BOTTOM + 17, class_="tick mid")
            for epoch in marks
        ]
        return [
            *labels,
            tag(
                "text", "epoch", x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 3, class_="tick mid axis"
            ),
        ]

    def _tooltips(self, x: Callable[[float], float]) -> list[Html]:
        half = (x(2) - x(1)) / 2
        out = []
        for epoch in range(self.first_epoch, self.last_epoch + 1):
            texts = [
                f"{line.label}: {self.say(value)}"
                for line in self.lines
                if not line.faint and (value := line.at(epoch)) is not None
            ]
            text = tag("title", f"epoch {epoch}\n" + "\n".join(texts))
            left, right = max(LEFT, x(epoch) - half), min(WIDTH - RIGHT, x(epoch) + half)
            out.append(
                tag(
                    "rect",
                    text,
                    x=_n(left),
                    y=TOP,
                    width=_n(right - left),
                    height=HEIGHT - TOP - BOTTOM,
                    class_="hit",
                )
            )
        return out


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _curve(line: EpochCurve, x: Callable[[float], float], y: Callable[[float], float]) -> Html:
    dots = [(x(epoch), y(value)) for epoch, value in line.points]
    elements = [
        tag(
            "polyline",
            points=" ".join(f"{_n(a)},{_n(b)}" for a, b in dots),
            class_="curve" + " faint" * line.faint + " second" * line.second,
        )
    ]
    if len(dots) == 1:
        elements.append(tag("circle", cx=_n(dots[0][0]), cy=_n(dots[0][1]), r=3, class_="dot"))
    if line.mark is not None and (value := line.at(line.mark)) is not None:
        elements.append(tag("circle", cx=_n(x(line.mark)), cy=_n(y(value)), r=4.5, class_="ring"))
    return tag("g", elements, class_=line.colour)


def _n(number: float) -> str:
    return f"{number:.1f}".rstrip("0").rstrip(".")
