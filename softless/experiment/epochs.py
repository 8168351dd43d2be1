"""Epochs count from 1 in every file, table, curve and line that a person reads: the first is epoch
1, as `schedule.epochs` counts them.

Runs of an older softless counted from 0 in their files. Those that count from 1 say so beside the
number: `"counted_from": 1`. In log.jsonl an epoch's place tells: the first line is the first epoch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

KEY = "counted_from"
COUNTED = {KEY: 1}  # beside a number of an epoch in a file


def from_one(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The content of a file with the epoch in entry `name` counted from 1, whoever wrote it."""
    if KEY in content or content.get(name) is None:
        return dict(content)
    return {**content, name: int(content[name]) + 1, **COUNTED}


def numbered(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The lines of a log, each with the number of its epoch."""
    return [{**line, "epoch": number} for number, line in enumerate(lines, 1)]
