"""Interval strips: a mean with its 95 % interval on an axis that all strips of a row share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from softless.report.html import Html, tag
from softless.report.numbers import MINUS
from softless.report.ticks import labels, ticks

WIDTH, HEIGHT, EDGE = 320, 56, 18


@dataclass(frozen=True)
class Strip:
    """What one strip shows; `zero` draws the line of no difference."""

    text: str  # the same in words
    colour: str
    middle: float
    low: float
    high: float
    seeds: Sequence[float] = ()
    zero: bool = False


def axis(strips: Sequence[Strip]) -> list[float]:
    """Ticks that hold every strip."""
    values = [v for strip in strips for v in (strip.low, strip.high, strip.middle, *strip.seeds)]
    values += [0.0] if any(strip.zero for strip in strips) else []
    ends = (-math.inf, math.inf) if any(strip.zero for strip in strips) else (0, 1)
    return ticks(min(values), max(values), 4, within=ends)


def draw(strip: Strip, tick_values: Sequence[float], identifier: str) -> Html:
    """The strip as SVG; `tick_values` is the axis it shares with others, `identifier` the id of its
    text.
    """

    def x(value: float) -> str:
        share = (value - tick_values[0]) / (tick_values[-1] - tick_values[0])
        return f"{EDGE + share * (WIDTH - 2 * EDGE):.1f}"

    marks = [
        tag(
            "g",
            tag(
                "line",
                x1=x(value),
                x2=x(value),
                y1=6,
                y2=34,
                class_="grid strong" if strip.zero and value == 0 else "grid",
            ),
            tag("text", label, x=x(value), y=51, class_="tick mid"),
        )
        for value, label in zip(tick_values, labels(tick_values, _hundredths), strict=True)
    ]
    seeds = [tag("circle", cx=x(value), cy=20, r=3, class_="seed") for value in strip.seeds]
    bar = tag(
        "g",
        tag("line", x1=x(strip.low), x2=x(strip.high), y1=20, y2=20, class_="whisker"),
        seeds,
        tag("circle", cx=x(strip.middle), cy=20, r=6, class_="dot"),
        tag("title", strip.text),
        class_=strip.colour,
    )
    return tag(
        "svg",
        tag("title", strip.text, id=identifier),
        marks,
        bar,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_labelledby=identifier,
        class_="strip",
    )


def _hundredths(share: float, digits: int) -> str:
    return f"{100 * share:.{digits}f}".replace("-", MINUS)
