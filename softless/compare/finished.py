"""Finished runs of one recipe over several seeds, put together: mean test accuracy with its
interval.
"""

from collections.abc import Sequence
from pathlib import Path

from softless.compare.outcome import Compared
from softless.compare.record import record_path, write_csv
from softless.errors import UsageError
from softless.report.groups import grouped
from softless.report.runs import read_run
from softless.report.statistics import accuracy


def finished(
    runs: Sequence[str | Path], *, name: str | None = None, record: bool = False
) -> Compared:
    """Put finished runs together and write one report over them; the interval is a bootstrap over
    seeds and test images.

    Args:
        runs: run folders that differ in their seed alone.
        name: of the file for record.
        record: also write benchmarks/runs_NAME.csv of the repository.

    Raises:
        UsageError: no runs, runs of different models, or a run without test images.
    """
    from softless.tasks import page

    if not runs:
        raise UsageError(
            "no runs: name the folders that `softless train --out` wrote, for example --runs "
            "runs/a runs/b"
        )
    if record and not name:
        raise UsageError(
            "--record needs --name, for example --name pneumonia writes "
            "benchmarks/runs_pneumonia.csv"
        )
    folders = [Path(run) for run in runs]
    groups = grouped([read_run(folder) for folder in folders])
    if len(groups) != 1:
        raise UsageError(
            f"{len(groups)} models among these runs "
            f"({', '.join(group.label for group in groups)}): name runs of one"
        )
    estimate = accuracy(groups[0])
    if estimate is None:
        raise UsageError(
            f"{folders[0]} and its like were not tested: their data have no test split"
        )
    target = record_path(f"runs_{name}") if record else None
    result = Compared(
        recipe=name or groups[0].first.recipe.name,
        groups=tuple(groups),
        accuracies=(estimate,),
        differences=(),
        speeds={},
        only={},
        report=page.write(folders, folders[0].parent / f"{name or folders[0].name}.html"),
        recorded=target,
    )
    if target is not None:
        write_csv(target, result.rows())
    return result
