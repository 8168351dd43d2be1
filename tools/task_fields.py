"""Writes softless/experiment/task_fields.pyi: the groups of the tasks, as type checkers read them.

python tools/task_fields.py            rewrite it
python tools/task_fields.py --check    change nothing; exit 1 if it is stale
"""

import sys
from collections.abc import Mapping
from pathlib import Path

from softless.experiment.fields import TaskSettings
from softless.experiment.task_fields import GROUPS

STUB = Path(__file__).resolve().parents[1] / "softless" / "experiment" / "task_fields.pyi"
TEXT = """\
# Written by tools/task_fields.py (`make tables`) from the table of tasks.
from dataclasses import dataclass

from softless.experiment.fields import TaskSettings
{imports}

GROUPS: dict[str, type[TaskSettings]]

@dataclass(frozen=True)
class TaskFields:
{fields}
"""


def stub(groups: Mapping[str, type[TaskSettings]]) -> str:
    """The file for these groups of tasks."""
    classes = sorted((group.__module__, group.__name__) for group in groups.values())
    return TEXT.format(
        imports="\n".join(f"from {module} import {name}" for module, name in classes),
        fields="\n".join(
            f"    {task}: {group.__name__} | None = ..." for task, group in groups.items()
        ),
    )


def main(arguments: list[str]) -> int:
    text = stub(GROUPS)
    if STUB.is_file() and STUB.read_text(encoding="utf-8") == text:
        return 0
    if arguments == ["--check"]:
        print(f"{STUB.name}: stale: make tables")
        return 1
    STUB.write_text(text, encoding="utf-8")
    print(f"{STUB.name}: rewritten")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
