"""Charts of measurements as SVG files for the documents."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softless.compare.readable import readable
from softless.models.durable import make_folder, write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
