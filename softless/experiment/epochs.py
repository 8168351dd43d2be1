"""Epochs count from 1 in every file, table, curve and line that a person reads: the first is epoch
1, as `schedule.epochs` counts them.

Runs of an older softless counted from 0 in their files. Those that count from 1 say so beside the
number: `"counted_from": 1`. In log.jsonl an epoch's place tells: the first line is the first epoch. Where a task measures the
state before the first step too, that is epoch 0, and its line says `"start": true`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

KEY = "counted_from"
COUNTED = {KEY: 1}  # beside a number of an epoch in a file
START = "start"  # true in the line of epoch 0: the state before the first step


def from_one(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The content of a file with the epoch in entry `name` counted from 1, whoever wrote it."""
    if KEY in content or content.get(name) is None:
        return dict(content)
    return {**content, name: int(content[name]) + 1, **COUNTED}


def numbered(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The lines of a log, each with the number of its epoch: from 1, or from 0 where the first line
    is of the start.
    """
    first = 0 if lines and lines[0].get(START) else 1
    return [{**line, "epoch": number} for number, line in enumerate(lines, first)]


def of_epoch(lines: Sequence[Mapping[str, Any]], epoch: int) -> Mapping[str, Any]:
    """The line of an epoch that the log has."""
    return next(line for line in lines if line["epoch"] == epoch)
