"""Images listed in a table (CSV): a row for each, with its file, its label or several labels of 0
and 1, its group and its part.

A group (a patient, say) stands in one part alone. Rows are counted as a spreadsheet counts them:
the header is row 1. What is wrong with rows is
gathered, so that all of it can be said at once. A table that cannot be read at all, or that lacks
a column, is an error.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from softless.data.csv_tables import (
    ALONE,
    NO_LABEL,
    TRUTH,
    class_names,
    column_of,
    declared_part,
    has_columns,
    like,
    read_rows,
)
from softless.data.findings import Fault, refusal
from softless.data.groups import shared_groups
from softless.data.notices import notice
from softless.data.places import PARTS
from softless.data.samples import FileSamples
from softless.errors import DataError, located
from softless.experiment.groups import TableSpec
from softless.experiment.ranges import Range
from softless.words import clipped, composed, few


@dataclass(frozen=True)
class Table:
    """What a table lists, as far as it can be used.

    Attributes:
        path: the table.
        root: the folder that its files start from.
        classes: names in index order; of several labels an image, the labels.
        parts: "train", "val", "test" as the table declares them, or "all"; targets are (n,), or
            (n, K) of 0 and 1 for several labels.
        faults: rows, groups and classes that cannot be used.
        several: whether an image may have several labels.
    """

    path: Path
    root: Path
    classes: tuple[str, ...]
    parts: Mapping[str, FileSamples]
    faults: tuple[Fault, ...]
    several: bool


@dataclass(frozen=True)
class Columns:
    """Where in a row each thing stands."""

    file: int
    labels: tuple[int, ...]
    group: int | None
    split: int | None
    names: tuple[str, ...]  # of the labels


@dataclass(frozen=True)
class ImageRow:
    """A row that can be used."""

    number: int
    file: str  # as seen from the root
    known_as: tuple[int, int]  # what the system knows the file by: two names may lead to one
    label: str  # of one label an image
    values: tuple[int, ...]  # of several
    group: str
    part: str

    @property
    def statement(self) -> tuple[object, ...]:
        """What it says of its file."""
        return self.label, self.values, self.group, self.part


def table_parts(
    spec: TableSpec, path: str | None, channels: int, scale: Range | None = None
) -> tuple[dict[str, FileSamples], tuple[str, ...]]:
    """The parts that a table declares ({"train", "val", "test"}, or {"all"}) and the class names.

    Args:
        spec: the table and the names of its columns.
        path: the folder that its files start from; None is the table's own.
        channels: 1 or 3.
        scale: the declared range of the images' values.

    Raises:
        DataError: the table cannot be read, lacks a column, or has rows, groups or classes that
            cannot be used (all in one error).
    """
    table = read_table(spec, path, channels, scale)
    if len(table.faults) == 1:
        raise DataError(f"{table.path}: {table.faults[0]}")
    if table.faults:
        raise refusal(table.path, table.faults, "mend the table")
    return dict(table.parts), table.classes


def read_table(
    spec: TableSpec, path: str | None, channels: int, scale: Range | None = None
) -> Table:
    """Read a table; see `table_parts`. What is wrong with its rows is in `faults`.

    Raises:
        DataError: it cannot be read, lacks a column, has no rows, or its labels are no classes.
    """
    if not spec.path:
        raise DataError("no table is named: give --table FILE.csv")
    file = located(spec.path)
    root = located(path) if path else file.parent
    if not root.is_dir():
        raise DataError(
            f"no folder at {root}, where the files of {file} are looked for: name it with --data"
        )
    header, rows = read_rows(file, (spec.file, *spec.label, spec.group, spec.split))
    columns = _columns(file, header, rows, spec)
    good, faults = _read_rows(rows, columns, header, root)
    if not rows:
        raise DataError(f"{file} has a header and no rows: a row lists an image")
    several = len(columns.labels) > 1
    classes = (
        columns.names
        if several
        else class_names(file, [(row.number, row.label) for row in good], complete=not faults)
    )
    parts = _parts(
        good,
        root,
        _targets(good, classes, several=several),
        channels,
        scale,
        grouped=columns.group is not None,
    )
    faults += _across(parts, classes, spec, several=several)
    return Table(file, root, classes, parts, tuple(faults), several)


def label_count(spec: TableSpec) -> int:
    """How many labels an image of a table has.

    Raises:
        DataError: the table cannot be read, or lacks a column.
    """
    file = located(spec.path or "")
    header, rows = read_rows(file, (spec.file, *spec.label, spec.group, spec.split))
    return len(_columns(file, header, rows, spec).labels)


def _columns(
    file: Path, header: Sequence[str], rows: Sequence[tuple[int, list[str]]], spec: TableSpec
) -> Columns:
    standard = type(spec)()
    group, split = spec.group, spec.split
    at_file = column_of(file, header, spec.file, "table.file")
    if group is not None and group not in header and group == standard.group:
        raise DataError(
            f"{file} has no column '{group}': table.group={like(group, header)} names the one "
            "that tells whose an image is, and table.group=none "
            f"says that each image is a group of its own. {has_columns(header)}"
        )
    at_group = None if group is None else column_of(file, header, group, "table.group")
    by_itself = split is not None and split not in header and split == standard.split
    at_split = None if split is None or by_itself else column_of(file, header, split, "table.split")
    occupied = {at_file, at_group, at_split}
    names = spec.label
    if names == standard.label and names[0] not in header:
        names = _marked(file, header, rows, names[0], occupied)
    if not names:
        raise DataError("table.label names no column: give one, or several of 0 and 1")
    at_labels = tuple(column_of(file, header, name, "table.label") for name in names)
    twice = [
        name
        for name, count in Counter((at_file, at_group, at_split, *at_labels)).items()
        if name is not None and count > 1
    ]
    if twice:
        raise DataError(
            f"{file}: the column '{header[twice[0]]}' is named for two things: name another for "
            "one of them"
        )
    return Columns(at_file, at_labels, at_group, at_split, tuple(map(composed, names)))


def _marked(
    file: Path,
    header: Sequence[str],
    rows: Sequence[tuple[int, list[str]]],
    name: str,
    occupied: set[int | None],
) -> tuple[str, ...]:
    """The columns that are left, where they are several and hold 0 and 1 alone: labels, which is
    said.
    """
    columns = [index for index, title in enumerate(header) if title and index not in occupied]
    if (
        len(columns) > 1
        and rows
        and all(cells[index].lower() in TRUTH for _, cells in rows for index in columns)
    ):
        names = tuple(header[index] for index in columns)
        notice(
            f"{file.name} has no column '{name}': its columns of 0 and 1 are labels, "
            f"{few(names)}; table.label names others"
        )
        return names
    return (name,)


def _read_rows(
    rows: Sequence[tuple[int, list[str]]], columns: Columns, header: Sequence[str], root: Path
) -> tuple[list[ImageRow], list[Fault]]:
    """The rows that can be used, each file once, and what is wrong with the others."""
    good: dict[tuple[int, int], ImageRow] = {}
    faults: list[Fault] = []
    for number, cells in rows:
        file_name = cells[columns.file]
        location = f"row {number}, {file_name}" if file_name else f"row {number}"
        row = _row(number, cells, columns, header, root)
        if isinstance(row, ImageRow):
            before = good.setdefault(row.known_as, row)
            if before is row:
                continue
            comparison = (
                "the same row" if before.statement == row.statement else "other words about it"
            )
            row = (
                "twice",
                f"row {before.number} has the same file, and {comparison}: keep one of them",
            )
        faults.append(Fault(location, row[1], row[0]))
    return list(good.values()), faults


def _row(
    number: int, cells: Sequence[str], columns: Columns, header: Sequence[str], root: Path
) -> ImageRow | tuple[str, str]:
    """A row, or the kind of its fault and what is wrong."""
    if not cells[columns.file]:
        return "no file", f"the column '{header[columns.file]}' is empty"
    stored = _stored(root, cells[columns.file])
    if stored is None:
        return (
            "missing file",
            f"there is no such file below {root}; --data names another folder to look in",
        )
    group = "" if columns.group is None else cells[columns.group]
    if columns.group is not None and not group:
        return (
            "groups",
            f"the column '{header[columns.group]}' is empty: it tells whose the image is",
        )
    part, wrong = declared_part(cells, columns.split, header)
    if wrong:
        return "split", wrong
    labels = [cells[at] for at in columns.labels]
    if wrong := _no_labels(labels, columns):
        return "labels", wrong
    several = len(labels) > 1
    values = tuple(TRUTH[label.lower()] for label in labels) if several else ()
    return ImageRow(number, *stored, "" if several else composed(labels[0]), values, group, part)


def _stored(root: Path, file_name: str) -> tuple[str, tuple[int, int]] | None:
    """The name of a file as seen from the root, and what the system knows it by; None where there
    is none.
    """
    for name in dict.fromkeys((file_name, file_name.replace("\\", "/"))):
        try:
            status = os.stat(root / name)  # noqa: PTH116 - one call for each of a million rows
        except (OSError, ValueError):
            continue
        if stat.S_ISREG(status.st_mode):
            path, absolute_root = Path(name), root.absolute()
            below = (
                path.relative_to(absolute_root)
                if path.is_absolute() and path.is_relative_to(absolute_root)
                else path
            )
            return below.as_posix(), (status.st_dev, status.st_ino)
    return None


def _no_labels(cells: Sequence[str], columns: Columns) -> str:
    """What is wrong with the labels of a row; nothing where they can be used."""
    if len(cells) == 1:
        if not cells[0] or cells[0].lower() in NO_LABEL:
            return (
                f"its label is {repr(cells[0]) if cells[0] else 'empty'}, which is no class: "
                "fill it in, or remove the row"
            )
        return ""
    wrong = [
        (name, cell)
        for name, cell in zip(columns.names, cells, strict=True)
        if cell.lower() not in TRUTH
    ]
    if not wrong:
        return ""
    name, cell = wrong[0]
    return (
        f"the label '{name}' is {repr(clipped(cell)) if cell else 'empty'}, and each of "
        "several labels is 0 or 1"
    )


def _targets(rows: Sequence[ImageRow], classes: Sequence[str], *, several: bool) -> np.ndarray:
    """(n,) class indices, or (n, K) of 0 and 1."""
    if several:
        return np.array([row.values for row in rows], dtype=np.int64).reshape(-1, len(classes))
    index = {name: class_index for class_index, name in enumerate(classes)}
    return np.array([index[row.label] for row in rows], dtype=np.int64)


def _parts(
    rows: Sequence[ImageRow],
    root: Path,
    targets: np.ndarray,
    channels: int,
    scale: Range | None,
    *,
    grouped: bool,
) -> dict[str, FileSamples]:
    groups = np.array([row.group for row in rows], dtype=object) if grouped else None
    all_samples = FileSamples(
        root, [row.file for row in rows], targets, channels, scale, groups=groups
    )
    declared = np.array([row.part for row in rows], dtype=object)
    if set(declared.tolist()) <= {ALONE}:
        return {ALONE: all_samples}
    return {
        part: all_samples.take(np.flatnonzero(declared == part))
        for part in PARTS
        if (declared == part).any()
    }


def _across(
    parts: Mapping[str, FileSamples], classes: Sequence[str], spec: TableSpec, *, several: bool
) -> Iterator[Fault]:
    """What is wrong with the parts together."""
    if ALONE in parts:
        return
    yield from shared_groups(parts, spec.group or "group")
    if "train" not in parts:
        part_names = " and ".join(parts)
        yield Fault(
            "train",
            f"the table declares {part_names} but no train: add it, or give table.split=none to "
            "cut it",
            "split",
        )
        return
    for part, samples in parts.items():
        each = samples.targets > 0 if several else np.eye(len(classes), dtype=bool)[samples.targets]
        for name in (
            name for name, present in zip(classes, each.T, strict=True) if not present.any()
        ):
            if part == "train" or not several:
                yield Fault(
                    part,
                    f"it has no image of the class '{name}': each part must have every class",
                    "classes",
                )
