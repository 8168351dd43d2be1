"""Two values of each of many items on one axis, as inline SVG: a ring before, a dot after, and what
lies between.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from softless.report.html import Html, enlarged, tag
from softless.report.numbers import plain
from softless.report.ticks import labels, powers, ticks

WIDTH, ROW, LEFT, RIGHT, BOTTOM, TOP = 560, 22, 150, 18, 40, 8
MOST = 24  # letters of a name
WIDE = 20  # times: values that differ by more lie on an axis of powers of ten


@dataclass(frozen=True)
class Pair:
    """An item with its values; the second is None where nothing changed it."""

    name: str
    before: float
    after: float | None


@dataclass(frozen=True)
class PairChart:
    """Items below each other, in the order in which they are given."""

    title: str
    pairs: Sequence[Pair]
    words: tuple[str, str] = ("before", "after")
    unit: str = ""  # what the axis shows
    line: float | None = None  # a value to compare with
    note: str = ""

    def render(self, identifier: str, colour: str = "s0") -> Html:
        """The chart as a figure: heading, drawing, note."""
        values = [v for pair in self.pairs for v in (pair.before, pair.after) if v is not None]
        values += [] if self.line is None else [self.line]
        wide = min(values) > 0 and max(values) > WIDE * min(values)
        steps = powers(min(values), max(values)) if wide else ticks(min(0.0, *values), max(values))
        height = TOP + ROW * len(self.pairs) + BOTTOM

        def x(value: float) -> str:
            first, last, at = (math.log10(v) if wide else v for v in (steps[0], steps[-1], value))
            return f"{LEFT + (at - first) / (last - first) * (WIDTH - LEFT - RIGHT):.1f}"

        bottom = TOP + ROW * len(self.pairs)
        axis = [
            tag(
                "g",
                tag("line", x1=x(value), x2=x(value), y1=TOP, y2=bottom, class_="grid"),
                tag("text", label, x=x(value), y=bottom + 15, class_="tick mid"),
            )
            for value, label in zip(
                steps,
                [f"{step:g}" for step in steps] if wide else labels(steps, _written),
                strict=True,
            )
        ]
        if self.line is not None:
            at = x(self.line)
            axis.append(tag("line", x1=at, x2=at, y1=TOP, y2=bottom, class_="grid strong even"))
        if self.unit:
            middle = (LEFT + WIDTH - RIGHT) / 2
            axis.append(tag("text", self.unit, x=middle, y=height - 4, class_="tick mid axis"))
        drawing = tag(
            "svg",
            tag("title", f"{self.title}: {self.describe()}", id=f"{identifier}-title"),
            axis,
            [
                _row(pair, TOP + ROW * (number + 0.5), x, self.words)
                for number, pair in enumerate(self.pairs)
            ],
            viewBox=f"0 0 {WIDTH} {height}",
            role="img",
            aria_labelledby=f"{identifier}-title",
            class_=colour,
        )
        legend = tag(
            "p",
            f"Ring: {self.words[0]}. Dot: {self.words[1]}. {self.note}".strip(),
            class_="note",
        )
        return tag(
            "figure",
            tag("figcaption", self.title),
            enlarged(drawing, self.title),
            legend,
            class_="chart",
        )

    def describe(self) -> str:
        """The chart in words: the largest value before and after."""
        before = max(self.pairs, key=lambda pair: pair.before)
        moved = [(pair.after, pair.name) for pair in self.pairs if pair.after is not None]
        text = f"largest {self.words[0]} {plain(before.before)} ({before.name})"
        if moved:
            value, name = max(moved)
            text += f", largest {self.words[1]} {plain(value)} ({name})"
        return f"{text}."


def _row(pair: Pair, y: float, place: Callable[[float], str], words: tuple[str, str]) -> Html:
    name = pair.name if len(pair.name) <= MOST else f"…{pair.name[1 - MOST :]}"
    marks = [tag("circle", cx=place(pair.before), cy=y, r=5, class_="ring")]
    text = f"{pair.name}: {plain(pair.before)} {words[0]}"
    if pair.after is not None:
        start, end = place(pair.before), place(pair.after)
        marks.insert(0, tag("line", x1=start, x2=end, y1=y, y2=y, class_="whisker"))
        marks.append(tag("circle", cx=end, cy=y, r=5.5, class_="dot"))
        text += f", {plain(pair.after)} {words[1]}"
    hit = tag(
        "rect",
        tag("title", text),
        x=0,
        y=y - ROW / 2,
        width=WIDTH,
        height=ROW,
        class_="hit",
    )
    return tag("g", tag("text", name, x=LEFT - 12, y=y + 4, class_="tick end"), marks, hit)


def _written(value: float, digits: int) -> str:
    return f"{value:.{digits}f}"
