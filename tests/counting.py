"""How many cases of each bar passed: what docs/reliability.md is made of (`pytest --count FILE`).

A test says which bar it measures with `@pytest.mark.bar("A16", "what happens to the program")`. It
counts as one case, or as those that it tells with `record_property("cases", (passed, of))`.
"""

import csv
from collections.abc import Generator
from pathlib import Path

import pytest

from softless.compare.record import provenance

COUNTS = pytest.StashKey[dict[tuple[str, str], list[int]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--count",
        metavar="FILE",
        help="write how many cases of each bar passed, for docs/reliability.md",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    mark = item.get_closest_marker("bar")
    if mark is not None and report.when == "call" and not report.skipped:
        told = dict(item.user_properties).get("cases", (int(report.passed), 1))
        held = item.config.stash.setdefault(COUNTS, {}).setdefault(
            (mark.args[0], mark.args[1]), [0, 0]
        )
        held[0] += told[0]  # type: ignore[index]
        held[1] += told[1]  # type: ignore[index]
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    named = session.config.getoption("--count")
    if named and session.config.stash.get(COUNTS, {}):
        write(Path(named), session.config.stash[COUNTS])


def write(path: Path, counts: dict[tuple[str, str], list[int]]) -> None:
    """As benchmarks/reliability.csv holds them; rows of bars that were not measured this time
    stay.
    """
    held = {}
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            held = {(row["bar"], row["fault"]): row for row in csv.DictReader(file)}
    where = provenance()
    for (bar, fault), (passed, of) in counts.items():
        held[bar, fault] = {
            "bar": bar,
            "fault": fault,
            "passed": str(passed),
            "of": str(of),
            **where,
        }
    rows = sorted(held.values(), key=lambda row: (row["bar"][0], int(row["bar"][1:]), row["fault"]))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
