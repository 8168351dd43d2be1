"""Square charts of shares against shares, 0 to 1 on both axes: the ROC curve and the calibration
curve.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from softless.report.html import Html, enlarged, tag
from softless.report.numbers import percent

SIDE, LEFT, TOP, BOTTOM = 260, 54, 12, 40  # units of the viewBox
TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
MOST = 400  # points of a curve that are drawn


@dataclass(frozen=True)
class Curve:
    """One model's points, in their order, and a sentence that says the same; `ring` is a point to
    look at.
    """

    label: str
    colour: str
    points: Sequence[tuple[float, float]]
    text: str
    dots: bool = False
    ring: tuple[float, float] | None = None
    band: Sequence[tuple[float, float, float]] = ()  # place, and both ends above it


def square(
    title: str,
    across: str,
    upwards: str,
    curves: Sequence[Curve],
    identifier: str,
    *,
    note: str = "",
    marks: Sequence[str] = (),
) -> Html:
    """The chart as a figure; the dashed line is that of equal shares.

    `marks` are what is written at the five ticks across, where that is no share; then there is no
    such line.
    """
    description = f"{title}: {' '.join(curve.text for curve in curves)}"
    drawing = tag(
        "svg",
        tag("title", description, id=f"{identifier}-title"),
        [
            _tick(value, mark)
            for value, mark in zip(
                TICKS, marks or [percent(value, 0) for value in TICKS], strict=True
            )
        ],
        tag("text", across, x=LEFT + SIDE / 2, y=TOP + SIDE + BOTTOM - 4, class_="tick mid axis"),
        tag(
            "text",
            upwards,
            x=-(TOP + SIDE / 2),
            y=12,
            transform="rotate(-90)",
            class_="tick mid axis",
        ),
        None
        if marks
        else tag("line", x1=_x(0), y1=_y(0), x2=_x(1), y2=_y(1), class_="grid strong even"),
        [_drawn(curve) for curve in curves],
        viewBox=f"0 0 {LEFT + SIDE + 18} {TOP + SIDE + BOTTOM}",
        role="img",
        aria_labelledby=f"{identifier}-title",
    )
    return tag(
        "figure",
        tag("figcaption", title),
        enlarged(drawing, title),
        tag("p", note, class_="note") if note else None,
        class_="chart",
    )


def _tick(value: float, mark: str) -> Html:
    return tag(
        "g",
        tag("line", x1=_x(0), x2=_x(1), y1=_y(value), y2=_y(value), class_="grid"),
        tag(
            "text",
            percent(value, 0),
            x=LEFT - 8,
            y=f"{TOP + (1 - value) * SIDE + 4:.1f}",
            class_="tick end",
        ),
        tag("text", mark, x=_x(value), y=TOP + SIDE + 17, class_="tick mid"),
    )


def _drawn(curve: Curve) -> Html:
    points = curve.points if len(curve.points) <= MOST else _thinned(curve.points)
    elements = [
        tag("polyline", points=" ".join(f"{_x(a)},{_y(b)}" for a, b in points), class_="curve")
    ]
    if curve.band:
        around = [(x, high) for x, _, high in curve.band]
        around += [(x, low) for x, low, _ in reversed(curve.band)]
        corners = " ".join(f"{_x(a)},{_y(b)}" for a, b in around)
        elements.insert(0, tag("polygon", points=corners, class_="band"))
    if curve.dots:
        elements += [tag("circle", cx=_x(a), cy=_y(b), r=3.5, class_="dot") for a, b in points]
    if curve.ring is not None:
        elements.append(
            tag("circle", cx=_x(curve.ring[0]), cy=_y(curve.ring[1]), r=5, class_="ring")
        )
    return tag("g", tag("title", curve.text), elements, class_=curve.colour)


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points evenly along the list, its ends among them."""
    step = (len(points) - 1) / (MOST - 1)
    return [points[round(step * number)] for number in range(MOST)]


def _x(share: float) -> str:
    return f"{LEFT + share * SIDE:.1f}"


def _y(share: float) -> str:
    return f"{TOP + (1 - share) * SIDE:.1f}"
