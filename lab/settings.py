"""`python -m lab settings`: every field of every recipe set to what it cannot be, and how that is
answered. Nothing trains.
"""

import math
import typing
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from softless.compare.record import record_path, write_csv
from softless.errors import UsageError
from softless.experiment.fields import FieldRow, fits, walk
from softless.experiment.recipe import Recipe
from softless.words import table

NO_NUMBER = ("many", "nan", "1..2", "true", "")  # texts that say no number
FOREIGN = ({"a": 1}, (object(),), object())  # values that no field takes


@dataclass(frozen=True)
class Settings:
    """What was tried on each recipe, by kind of fault, and how many were refused in one
    sentence.
    """

    rows: tuple[dict[str, Any], ...]

    @property
    def passed(self) -> bool:
        """Whether everything was refused."""
        return all(row["tried"] == row["refused"] for row in self.rows)

    @property
    def exit_code(self) -> int:
        return 0 if self.passed else 1

    def to_dict(self) -> list[dict[str, Any]]:
        return list(self.rows)

    def __str__(self) -> str:
        return table(list(self.rows[0]), [list(row.values()) for row in self.rows])


def settings(*, record: bool = False) -> Settings:
    """Set every field of every recipe below and above its range, to another type, and under a
    misspelt name.

    Args:
        record: also write benchmarks/settings.csv of the repository.

    Raises:
        UsageError: `record` outside the repository.
    """
    from softless.recipes import RECIPES

    target = record_path("settings") if record else None
    rows = tuple(row for name, make in RECIPES.items() for row in _tried(name, make()))
    if target is not None:
        write_csv(target, rows)
    return Settings(rows)


def _tried(name: str, recipe: Recipe) -> Iterator[dict[str, Any]]:
    tried, refused = Counter[str](), Counter[str]()
    for kind, field, value in faults(recipe):
        tried[kind] += 1
        refused[kind] += is_refused(recipe, field, value)
    for kind in tried:
        yield {"recipe": name, "fault": kind, "tried": tried[kind], "refused": refused[kind]}


def is_refused(recipe: Recipe, field: str, value: Any) -> bool:
    """Whether a field that is set so is refused by one sentence before any work; another exception
    is none.
    """
    try:
        recipe.with_fields(**{field: value}).check()
    except UsageError as error:
        return "\n" not in str(error)
    except Exception:  # noqa: BLE001 - a traceback is what is counted
        return False
    return False


def faults(recipe: Recipe) -> Iterator[tuple[str, str, Any]]:
    """Each fault's kind, its field and the value."""
    for row in walk(recipe):
        for value in outside(row):
            yield "out of range", row.name, value
            yield "out of range", row.name, str(value)
        for value in FOREIGN:
            if not fits(value, row.hint):
                yield "another type", row.name, value
        if numbers(row.hint) and not takes_text(row.hint):
            yield from (("another type", row.name, text) for text in NO_NUMBER)
        yield "misspelt", f"{row.name[:-2]}{row.name[-1]}{row.name[-2]}x", row.value
    for name, value in recipe.model.args.items():
        yield "model's argument, another type", f"model.args.{name}", "many"
        yield "model's argument, misspelt", f"model.args.{name[:-1]}_{name[-1]}", value


def outside(row: FieldRow) -> Iterator[Any]:
    """The nearest values below and above a field's range, at every place that has one."""
    ranges, integral = row.setting.within, float not in numbers(row.hint)
    parts = [
        typing.get_args(part)
        for part in (row.hint, *typing.get_args(row.hint))
        if typing.get_origin(part) is tuple
    ]
    for at, interval in enumerate(ranges):
        below = (
            interval.low - 1
            if integral
            else math.nextafter(interval.low, -math.inf)
            if interval.with_low
            else interval.low
        )
        above = (
            interval.high + 1
            if integral
            else math.nextafter(interval.high, math.inf)
            if interval.with_high
            else interval.high
        )
        for value in (below, above):
            number = int(value) if integral else value
            if not parts:
                yield number
            elif len(ranges) > 1:
                yield tuple(
                    number if position == at else ranges[position].low
                    for position in range(len(ranges))
                )
            else:
                yield (number,) * (1 if ... in parts[0] else len(parts[0]))


def numbers(hint: Any) -> list[type]:
    """The kinds of numbers in a type."""
    if hint in {int, float}:
        return [hint]
    return [kind for part in typing.get_args(hint) for kind in numbers(part)]


def takes_text(hint: Any) -> bool:
    """Whether a type has a place for a text."""
    return hint is str or any(takes_text(part) for part in typing.get_args(hint))
