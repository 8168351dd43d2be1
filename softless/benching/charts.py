"""Charts of measurements as SVG files for the documents."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softless.benching.measure import Spread
from softless.benching.readable import readable
from softless.models.durable import make_folder, write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from softless.benching.resolution import Point

INK, SOFT, GRID = "#1c1e22", "#5d626c", "#ebe8e1"
COLOURS = (
    "#1c1e22",
    "#2f5fd0",
    "#7fa3f7",
    "#d9730d",
    "#0d8a7b",
    "#b0358f",
    "#7a6a12",
    "#6b52c8",
    "#a8a29a",
)
MARKS = ("o", "s", "D", "^", "v", "P", "X", "*", "<")
# ticks of a logarithmic axis whose ends are less than so many times apart
NARROW, FINE = 3, (1, 1.1, 1.2, 1.3, 1.5, 1.7, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": GRID,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "axes.grid": True,
    "grid.color": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "softless",
    "figure.facecolor": "white",
}


@dataclass(frozen=True)
class Drawing:
    """A chart, ready to be written."""

    figure: "Figure"

    def save(self, path: Path, title: str) -> Path:
        """Write it as SVG, readable on dark pages and by screen readers, the same bytes for the
        same numbers.
        """
        from matplotlib import rc_context

        drawn = io.BytesIO()
        with rc_context(STYLE):
            self.figure.savefig(drawn, format="svg", bbox_inches="tight", metadata={"Date": None})
        make_folder(path.parent)
        write_bytes(path, readable(drawn.getvalue().decode("utf-8"), title).encode("utf-8"))
        return path


def draw_resolution(points: Sequence["Point"], names: Mapping[str, str]) -> Drawing:
    """Accuracy with its interval, and the size of the attention's branch, over the image size in
    units of the training size.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    by_arm = {arm: [point for point in points if point.arm == arm] for arm in names}
    with rc_context(STYLE):
        figure = Figure(figsize=(10, 4.6))
        accuracy_axes, branch_axes = figure.subplots(1, 2)
        for number, (arm, arm_points) in enumerate(by_arm.items()):
            if not arm_points:
                continue
            look: dict[str, Any] = {
                "color": COLOURS[number],
                "marker": MARKS[number],
                "markersize": 5,
                "linewidth": 1.8,
            }
            factors = [point.factor for point in arm_points]
            accuracy_axes.plot(
                factors, [100 * point.accuracy for point in arm_points], label=names[arm], **look
            )
            accuracy_axes.fill_between(
                factors,
                [100 * p.low for p in arm_points],
                [100 * p.high for p in arm_points],
                color=COLOURS[number],
                alpha=0.08,
                linewidth=0,
            )
            branch_axes.plot(factors, [point.branch for point in arm_points], **look)
        first = points[0]
        trained_at = next(point.pixels for point in points if point.factor == 1)
        accuracy_axes.set_title(
            f"Test accuracy [%], trained at {trained_at} pixels", loc="left", fontsize=11, color=INK
        )
        branch_axes.set_title(
            "Size of the attention's branch, at the training size = 1",
            loc="left",
            fontsize=11,
            color=INK,
        )
        branch_axes.set_yscale("log")
        sizes = {point.factor: point for point in points if point.arm == first.arm}
        for axes in (accuracy_axes, branch_axes):
            axes.set_xscale("log", base=2)
            axes.minorticks_off()
            axes.axvline(1, color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)))
            axes.set_xticks(
                list(sizes), [f"{factor:g}×\n{point.pixels} px" for factor, point in sizes.items()]
            )
            axes.set_xlabel("image size in evaluation")
        figure.legend(loc="lower left", ncols=2, frameon=False, bbox_to_anchor=(0.05, -0.17))
        figure.tight_layout()
    return Drawing(figure)


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
