"""Accuracy over the image size, and its chart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from softless.compare.charts import COLOURS, INK, MARKS, SOFT, STYLE, Drawing


@dataclass(frozen=True)
class Point:
    """One arm at one size."""

    recipe: str
    arm: str
    options: str
    factor: float
    pixels: int
    tokens: int
    seeds: str
    images: int
    accuracy: float
    low: float
    high: float
    change: float  # of the accuracy, to that at the training size
    change_low: float
    change_high: float
    # RMS of the attention's branch over that at the training size, geometric mean over layers and
    # seeds
    branch: float


def draw_resolution(points: Sequence[Point], names: Mapping[str, str]) -> Drawing:
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
