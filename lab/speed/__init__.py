"""How fast attention is on this processor: one command per figure, every rival checked against
float64 before it is timed.

    python -m lab speed --figure block --record

Rivals take turns in one process; the ratios are those of the pairs of each round. `to_bare` is the
time over that of the two linear layers alone, the floor of any attention.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from lab.speed.study import Study
from lab.speed.work import Case, Work
from softless.compare.record import record_path, write_csv
from softless.errors import UsageError, unknown

SECONDS = 4.0  # of timing per case; slow ones take seven rounds, whatever they need

__all__ = ["Case", "Study", "Work", "speed"]


def speed(
    figure: str | None = None,
    *,
    threads: int | None = None,
    out: str | Path | None = None,
    record: bool = False,
    works: Sequence[Work] | None = None,
    seconds: float = SECONDS,
) -> Study:
    """Measure one figure on the processor: its table, its chart, its bars, and where softmax is
    faster.

    On a quiet machine of two cores a figure takes about two to ten minutes.

    Args:
        figure: block, compiled, deit, xcit, training, tokens, width, merging, projected, seqnorm,
            optimized, optimized_xcit, memory, layer or stream.
        threads: of the processor; torch's own number by default.
        out: folder for the chart and the rows; runs/speed by default, or docs/figures and
            benchmarks with `record`.
        record: write benchmarks/speed_FIGURE.csv and docs/figures/speed_FIGURE.svg of the
            repository.
        works: other work than the figure's own.
        seconds: about how long each piece of work is timed.

    Raises:
        UsageError: no such figure.
        WrongAnswer: a rival's output is not what the float64 reference says; nothing is reported.
    """
    from lab.charts import draw_panels
    from lab.speed.bars import judge
    from lab.speed.figures import FIGURES
    from softless.data.progress import track
    from softless.models.durable import make_folder

    if figure is None:
        raise UsageError(
            f"lab speed draws one figure at a time: pass --figure {', '.join(FIGURES)}"
        )
    if figure not in FIGURES:
        raise unknown("figure", figure, FIGURES)
    if record and out is not None:
        raise UsageError("--record writes to the repository, --out to a folder: choose one of them")
    chosen, planned = FIGURES[figure], works or FIGURES[figure].works
    folder = Path(out or Path("runs") / "speed")
    target = record_path(f"speed_{figure}") if record else folder / f"speed_{figure}.csv"
    figures_folder = target.parents[1] / "docs" / "figures" if record else folder
    make_folder(figures_folder)
    load, before = round(os.getloadavg()[0], 2), torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        cases = tuple(
            chosen.measure(work, seconds) for work in track(planned, len(planned), "timing")
        )
        marks = chosen.crossovers(cases)
        verdicts, chart = tuple(judge(figure, cases)), figures_folder / f"speed_{figure}.svg"
        study = Study(
            figure,
            chosen.title,
            cases,
            chosen.bases,
            verdicts,
            tuple(marks),
            load,
            chart,
            target,
            chosen.note(),
        )
        # before the chart, which changes the tree: the rows say whether it was clean
        write_csv(target, study.rows())
        draw_panels(chosen.panels(cases, marks)).save(chart, chosen.title)
    finally:
        torch.set_num_threads(before)
    return study
