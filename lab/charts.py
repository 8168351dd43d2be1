"""Charts of the speed figures: panels of lines over a logarithmic axis."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from softless.compare.charts import COLOURS, FINE, INK, MARKS, NARROW, SOFT, STYLE, Drawing
from softless.compare.timing import Spread


@dataclass(frozen=True)
class Line:
    """One rival's line: (size, value with its quarters), and which of the colours and marks it
    has.
    """

    name: str
    points: Sequence[tuple[float, Spread]]
    look: int


@dataclass(frozen=True)
class Panel:
    """One pair of axes, both logarithmic; `marks` are vertical lines with a word."""

    title: str
    axis: str
    lines: Sequence[Line]
    marks: Sequence[tuple[float, str]] = ()


def draw_panels(panels: Sequence[Panel], columns: int = 2) -> Drawing:
    """Panels in rows of two, one legend below them."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    height = -(-len(panels) // columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(10, 4.2 * height))
        places = figure.subplots(height, min(columns, len(panels)), squeeze=False).flatten()
        for axes in places[len(panels) :]:
            axes.set_visible(False)
        for axes, panel in zip(places, panels, strict=False):
            _draw(axes, panel)
        handles = {
            line.get_label(): line
            for axes in places
            for line in axes.get_lines()
            if line.get_label() in names
        }
        figure.tight_layout()
        figure.legend(
            [handles[name] for name in names],
            names,
            loc="upper left",
            ncols=5,
            frameon=False,
            bbox_to_anchor=(0.03, 0.0),
        )
    return Drawing(figure)


def _draw(axes: Any, panel: Panel) -> None:
    from matplotlib.ticker import LogLocator

    sizes = sorted({size for line in panel.lines for size, _ in line.points})
    for line in panel.lines:
        colour = COLOURS[line.look]
        look: dict[str, Any] = {
            "color": colour,
            "marker": MARKS[line.look],
            "markersize": 5,
            "linewidth": 1.8,
        }
        places, values = [size for size, _ in line.points], [value for _, value in line.points]
        axes.plot(places, [value.median for value in values], label=line.name, **look)
        axes.fill_between(
            places,
            [v.low for v in values],
            [v.high for v in values],
            color=colour,
            alpha=0.12,
            linewidth=0,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > NARROW * low else FINE))
    axes.yaxis.set_major_formatter("{x:,g}")
    for position, word in panel.marks:
        axes.axvline(position, color=SOFT, linewidth=0.9, linestyle=(0, (2, 3)))
        axes.annotate(
            word,
            (position, 0.97),
            xycoords=("data", "axes fraction"),
            ha="right",
            va="top",
            fontsize=8,
            color=SOFT,
            rotation=90,
        )
    axes.set_title(panel.title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel(panel.axis)
