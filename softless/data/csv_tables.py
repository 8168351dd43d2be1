"""Tables of comma-separated values as people and their programs write them: the cells of their
rows, where a column stands, and the classes that a column of labels holds.
"""

import codecs
import csv
import io
import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

from softless.data.places import PARTS, part_of
from softless.errors import DataError, nearest
from softless.words import ALIKE, POINTED, POINTER, clipped, counted, few, twins_of

DELIMITERS = (",", ";", "\t", "|")
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
SPREADSHEET = b"PK\x03\x04"  # begins a zip archive, as a spreadsheet is one
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")
TRUTH = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
# what tools write for a missing one
NO_LABEL = frozenset({"nan", "na", "n/a", "#n/a", "<na>", "null"})

ALONE = "all"  # the part of rows whose table declares none
PART_NAMES = ", ".join(PARTS)


def read_rows(
    file: Path, column_names: Sequence[str | None], row_lists: str = "an image"
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and each row that is not empty with its number, as a spreadsheet counts.

    Args:
        file: a CSV file.
        column_names: columns that are asked for, by which the sign between cells is found.
        row_lists: what a row is of, for sentences.

    Raises:
        DataError: there is no such file, or it is no table.
    """
    text = _text(file)
    delimiter, skipped = _delimiter(text, [name for name in column_names if name])
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    try:
        records = list(enumerate(reader, 1))[skipped:]
    except csv.Error as error:
        raise DataError(
            f"{file} is no table of comma-separated values: {error} at line {reader.line_num}"
        ) from error
    filled = [
        (number, [cell.strip() for cell in cells])
        for number, cells in records
        if any(map(str.strip, cells))
    ]
    if not filled:
        raise DataError(
            f"{file} is empty: its first row names the columns, and each below lists {row_lists}"
        )
    (_, header), *rows = filled
    rows = [
        (number, cells if any(cells[len(header) :]) else cells[: len(header)])
        for number, cells in rows
    ]
    wrong = [(number, len(cells)) for number, cells in rows if len(cells) != len(header)]
    if wrong:
        number, count = wrong[0]
        remainder = (
            f", and {counted(len(wrong) - 1, 'more row')} of another length"
            if len(wrong) > 1
            else ""
        )
        raise DataError(
            f"{file}: row {number} has {counted(count, 'cell')} and the header "
            f"{len(header)}{remainder}: a cell that holds the separator "
            f"'{delimiter}' stands in quotes"
        )
    return header, rows


def _text(file: Path) -> str:
    if not file.exists():
        raise DataError(f"no table at {file}: give a CSV file")
    if file.is_dir():
        raise DataError(f"{file} is a folder, and a table is a CSV file")
    content = file.read_bytes()
    if content.startswith(POINTER):
        raise DataError(f"{file} is {POINTED}")
    if content.startswith(SPREADSHEET):
        raise DataError(f"{file} is a spreadsheet or an archive: save it as CSV")
    try:
        text = content.decode("utf-16" if content.startswith(UTF16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{file} is not UTF-8 (line {line}): save it as CSV in UTF-8") from error
    if "\0" in text:
        raise DataError(f"{file} holds NUL signs and so is no table: save it as CSV in UTF-8")
    return text


def _delimiter(text: str, column_names: Sequence[str]) -> tuple[str, int]:
    """The sign between cells, and how many lines stand before the header: the sign by which the
    header has most of the columns asked for.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if (first_line := "".join(lines[:1]).strip()).lower().startswith("sep=") and len(
        first_line
    ) == 5:
        return first_line[4], 1

    def fits(delimiter: str) -> tuple[int, int]:
        try:
            names = [
                name.strip()
                for name in next(csv.reader(lines[:1], delimiter=delimiter, skipinitialspace=True))
            ]
        except (csv.Error, StopIteration):
            return 0, 0
        return len({*column_names} & {*names}), len(names)

    return max(DELIMITERS, key=fits), 0


def column_of(file: Path, header: Sequence[str], name: str, setting: str) -> int:
    """Where a column stands.

    Raises:
        DataError: there is none of the name, or several; the setting that names it is said.
    """
    count = header.count(name)
    if count == 1:
        return header.index(name)
    if count:
        raise DataError(f"{file} has {count} columns named '{name}': rename all but one")
    raise DataError(
        f"{file} has no column '{name}': name it with {setting}={like(name, header)}. "
        f"{has_columns(header)}"
    )


def like(name: str, header: Sequence[str]) -> str:
    """The column that may be meant, or a word for it."""
    near = nearest(name.casefold(), [column.casefold() for column in header], cutoff=0.6)
    match = next((column for column in header if f"'{column.casefold()}'" in near), "")
    return match or "NAME"


def has_columns(header: Sequence[str]) -> str:
    return f"It has {few(map(clipped, header), 20)}"


def class_names(
    file: Path, labels: Sequence[tuple[int, str]], *, complete: bool
) -> tuple[str, ...]:
    """The labels that occur: whole numbers by their size, names by their letters.

    Args:
        file: the table.
        labels: number and label of each row.
        complete: whether all rows of the table could be read.

    Raises:
        DataError: they are no classes: fewer than two, fractions, or names that look alike.
    """
    names = {label for _, label in labels}
    for name, twin in twins_of(sorted(names)).items():
        raise DataError(f"{file}: the classes '{twin}' and '{name}' {ALIKE}")
    numbers = {name: Decimal(name) for name in sorted(names) if NUMBER.fullmatch(name)}
    fractions = [name for name, value in numbers.items() if value != value.to_integral_value()]
    if fractions:
        number = next(number for number, label in labels if label == fractions[0])
        raise DataError(
            f"{file}: the label {fractions[0]} (row {number}) is a number with a fraction, and "
            "classes are names or whole numbers: "
            "name another column with table.label"
        )
    written: dict[Decimal, str] = {}
    for name, value in numbers.items():
        if (spelling := written.setdefault(value, name)) != name:
            raise DataError(
                f"{file}: the labels '{spelling}' and '{name}' are one number: write it in one way"
            )
    if len(names) < 2 and complete:
        raise DataError(
            f"{file} holds only one class ({few(names)}): a classifier needs at least two"
        )
    return tuple(
        sorted(names, key=numbers.__getitem__) if len(numbers) == len(names) else sorted(names)
    )


def declared_part(
    cells: Sequence[str], column: int | None, header: Sequence[str]
) -> tuple[str, str]:
    """The part that a row declares, "all" where there is no such column; and what is wrong with it,
    or nothing.
    """
    if column is None:
        return ALONE, ""
    part = part_of(cells[column])
    if part is not None:
        return part, ""
    return ALONE, (
        f"the column '{header[column]}' says '{clipped(cells[column])}': it must be {PART_NAMES}"
    )
