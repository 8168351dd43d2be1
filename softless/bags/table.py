"""Slides listed in a table: a row for each, with its patient, what is to be learnt of the patient,
and its part.

What is learnt is one class, several labels of 0 and 1, or survival (a time, and whether the event
came). It belongs to the patient: slides of one patient say the same. CLAM's tables (case_id,
slide_id, label), STAMP's pair (clini_table with PATIENT, slide_table with PATIENT and FILENAME) and
prov-gigapath's (pat_id, slide_id) are recognised by their columns, which is said.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from softless.bags.names import bare
from softless.bags.splits import Split, read_splits
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
from softless.data.groups import in_two_parts
from softless.data.notices import notice
from softless.errors import DataError, located
from softless.experiment.bag_table import BagTableSpec
from softless.words import clipped, composed, counted, few

Kind = Literal["class", "several", "survival"]
# columns by which tables of other tools are known: slide, patient
KNOWN = {"CLAM": ("slide_id", "case_id"), "prov-gigapath": ("slide_id", "pat_id")}
STAMP_PATIENT, STAMP_FILE = "PATIENT", "FILENAME"
EVENTS = {**TRUTH, "alive": 0, "dead": 1, "living": 0, "deceased": 1, "censored": 0}


@dataclass(frozen=True)
class BagTable:
    """What a table lists of slides.

    Attributes:
        path: the table.
        slides: (n,) names without endings.
        patients: (n,) whose each slide is.
        kind: "class", "several" (labels of 0 and 1) or "survival".
        classes: names in index order; of several the labels; of survival none.
        targets: (n,) int64 class indices, (n, K) labels of 0 and 1, or (n,) events of survival.
        times: (n,) float64 of survival, else None.
        parts: (n,) "train", "val", "test", or "all" where none is declared.
        mpp: (n,) micrometres of the slides' level-0 pixels, where a column says them.
        folds: (n,) numbers of folds, where a column says them.
        splits: the parts of each of several splits, where a file declares them.
        rows: (n,) their numbers in the table, as a spreadsheet counts.
        faults: rows and patients that cannot be used.
        remarks: what was recognised, in sentences.
    """

    path: Path
    slides: tuple[str, ...]
    patients: np.ndarray
    kind: Kind
    classes: tuple[str, ...]
    targets: np.ndarray
    times: np.ndarray | None = None
    parts: tuple[str, ...] = ()
    mpp: np.ndarray | None = None
    folds: np.ndarray | None = None
    splits: tuple[Split, ...] = ()
    rows: tuple[int, ...] = ()
    faults: tuple[Fault, ...] = ()
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.slides)

    @property
    def declared(self) -> bool:
        """Whether the table says parts."""
        return set(self.parts) > {ALONE} or ALONE not in self.parts

    def take(self, places: Sequence[int] | np.ndarray) -> "BagTable":
        """The rows at these places (m,), in this order."""
        chosen = np.asarray(places, dtype=np.int64)
        listed = chosen.tolist()
        return replace(
            self,
            slides=tuple(self.slides[index] for index in listed),
            patients=self.patients[chosen],
            targets=self.targets[chosen],
            times=None if self.times is None else self.times[chosen],
            parts=tuple(self.parts[index] for index in listed),
            mpp=None if self.mpp is None else self.mpp[chosen],
            folds=None if self.folds is None else self.folds[chosen],
            rows=tuple(self.rows[index] for index in listed),
        )

    def of_split(self, number: int) -> "BagTable":
        """The rows of one of several splits, with the parts that it declares.

        Raises:
            DataError: there is no such split, or it names slides and patients that no row has.
        """
        if not 0 <= number < len(self.splits):
            raise DataError(
                f"{self.path}: there is no split {number}: {counted(len(self.splits), 'split')} "
                "are there, the first is 0"
            )
        split = self.splits[number]
        parts = [
            split.part_of(slide, patient)
            for slide, patient in zip(self.slides, self.patients.tolist(), strict=True)
        ]
        usable = [index for index, part in enumerate(parts) if part is not None]
        split.check_names(self.slides, self.patients.tolist())
        chosen = self.take(usable)
        chosen = replace(chosen, parts=tuple(part for part in parts if part is not None), splits=())
        faults = tuple(_two_parts(chosen, "patient"))
        if faults:
            raise refusal(split.path, faults, "mend the splits")
        return chosen


@dataclass(frozen=True)
class _Columns:
    """Where in a row each thing stands."""

    slide: int
    patient: int | None
    labels: tuple[int, ...]
    time: int | None
    event: int | None
    split: int | None
    mpp: int | None
    fold: int | None
    names: tuple[str, ...]  # of the labels

    @property
    def kind(self) -> Kind:
        if self.time is not None:
            return "survival"
        return "several" if len(self.labels) > 1 else "class"


@dataclass(frozen=True)
class _Row:
    """A row that can be used."""

    number: int
    slide: str
    patient: str
    label: str
    values: tuple[int, ...]
    survival: tuple[float, int]
    part: str
    mpp: float
    fold: int

    @property
    def statement(self) -> tuple[object, ...]:
        """What it says of its patient."""
        return self.label, self.values, self.survival


def read_bag_table(spec: BagTableSpec | str | Path, folder: str | Path | None = None) -> BagTable:
    """The slides that a table lists.

    Args:
        spec: the table and the names of its columns, or the table alone.
        folder: of the bags, where a second table is looked for too.

    Raises:
        DataError: the table cannot be read, lacks a column, or has rows and patients that cannot
            be used (all in one error).
    """
    table = gathered_table(spec, folder)
    if len(table.faults) == 1:
        raise DataError(f"{table.path}: {table.faults[0]}")
    if table.faults:
        raise refusal(table.path, table.faults, "mend the table")
    return table


def gathered_table(spec: BagTableSpec | str | Path, folder: str | Path | None = None) -> BagTable:
    """Read a table; see `read_bag_table`. What is wrong with its rows is in `faults`.

    Raises:
        DataError: it cannot be read, lacks a column, has no rows, or its labels are no classes.
    """
    spec = spec if isinstance(spec, BagTableSpec) else BagTableSpec(path=str(spec))
    if not spec.path:
        raise DataError("no table is named: give --table FILE.csv")
    file = located(spec.path)
    header, rows = read_rows(file, _asked(spec), "a slide")
    spec, remarks = _recognised(spec, header)
    if spec.slide == STAMP_FILE:
        header, rows, remarks = _joined(spec, file, header, rows, folder)
    columns = _columns(file, header, spec)
    if not rows:
        raise DataError(f"{file} has a header and no rows: a row lists a slide")
    for remark in remarks:
        notice(f"{file.name}: {remark}")
    good, faults = _read_rows(rows, columns, header)
    table = _table(file, good, columns, tuple(faults), tuple(remarks))
    if spec.splits:
        table = _with_splits(table, located(spec.splits))
    across = [*_contradicting(good, spec.patient or "patient"), *_two_parts(table, "patient")]
    return replace(table, faults=(*table.faults, *across))


def _asked(spec: BagTableSpec) -> tuple[str | None, ...]:
    return (spec.slide, spec.patient, *spec.label, spec.time, spec.event, spec.split, spec.mpp)


def _recognised(spec: BagTableSpec, header: Sequence[str]) -> tuple[BagTableSpec, list[str]]:
    """The columns of another tool's table, where those asked for are the usual ones and absent."""
    usual = BagTableSpec()
    if spec.slide in header or spec.slide != usual.slide:
        return spec, []
    for tool, (slide, patient) in KNOWN.items():
        if {slide, patient} <= {*header}:
            renamed = replace(
                spec,
                slide=slide,
                patient=patient if spec.patient == usual.patient else spec.patient,
            )
            return renamed, [f"read as a table of {tool}: slides in {slide}, patients in {patient}"]
    if STAMP_PATIENT in header:
        return replace(spec, slide=STAMP_FILE, patient=STAMP_PATIENT), []
    return spec, []


def _joined(
    spec: BagTableSpec,
    file: Path,
    header: list[str],
    rows: list[tuple[int, list[str]]],
    folder: str | Path | None,
) -> tuple[list[str], list[tuple[int, list[str]]], list[str]]:
    """STAMP's two tables as one: a row for each slide of slide_table, with its patient's cells.

    Raises:
        DataError: the second table is not there, or patients of it are not in the first.
    """
    if STAMP_FILE in header:
        return header, rows, ["read as a table of STAMP: slides in FILENAME, patients in PATIENT"]
    second = _second(spec, file, folder)
    head2, rows2 = read_rows(second, (STAMP_PATIENT, STAMP_FILE), "a slide")
    at_patient = column_of(second, head2, STAMP_PATIENT, "table.patient")
    at_file = column_of(second, head2, STAMP_FILE, "table.slide")
    at_first = header.index(STAMP_PATIENT)
    by_patient: dict[str, list[str]] = {}
    for number, cells in rows:
        if by_patient.setdefault(cells[at_first], cells) is not cells:
            raise DataError(
                f"{file}: row {number} has the patient '{clipped(cells[at_first])}' again: a "
                "clini_table has one row for each"
            )
    joined, absent = [], []
    for number, cells in rows2:
        if cells[at_patient] in by_patient:
            joined.append((number, [*by_patient[cells[at_patient]], cells[at_file]]))
        else:
            absent.append(cells[at_patient])
    remarks = [
        f"read as STAMP's clini_table, with the slides of {second.name} (row numbers are of that)"
    ]
    if absent:
        remarks.append(
            f"{counted(len(absent), 'slide')} of {second.name} are of patients that {file.name} "
            f"does not have, and are left out: {few(dict.fromkeys(absent), 5)}"
        )
    return [*header, STAMP_FILE], joined, remarks


def _second(spec: BagTableSpec, file: Path, folder: str | Path | None) -> Path:
    """STAMP's slide_table: named, or the one beside the first table or the bags."""
    if spec.slides:
        return located(spec.slides)
    near: dict[Path, None] = {}
    for near_folder in (file.parent, *([] if folder is None else [located(folder)])):
        for path in sorted(near_folder.glob("*.csv")):
            if path.resolve() == file.resolve():
                continue
            with path.open(encoding="utf-8-sig", errors="replace") as opened:
                first_line = opened.readline()
            if STAMP_PATIENT in first_line and STAMP_FILE in first_line:
                near[path.resolve()] = None
    if len(near) == 1:
        return next(iter(near))
    which = f"{len(near)} are there: {few(path.name for path in near)}" if near else "none is there"
    raise DataError(
        f"{file} has patients and no slides, as STAMP's clini_table: a slide_table with the "
        f"columns {STAMP_PATIENT} and {STAMP_FILE} is looked for beside it, and {which}; name it "
        "with table.slides"
    )


def _columns(file: Path, header: Sequence[str], spec: BagTableSpec) -> _Columns:
    usual = BagTableSpec()
    slide = column_of(file, header, spec.slide, "table.slide")
    if spec.patient == usual.patient and spec.patient not in header:
        raise DataError(
            f"{file} has no column '{spec.patient}': table.patient={like('patient', header)} "
            "names the one that tells whose a slide is, and table.patient=none says that each "
            f"slide is a patient of its own. {has_columns(header)}"
        )
    patient = (
        None if spec.patient is None else column_of(file, header, spec.patient, "table.patient")
    )
    by_itself = spec.split == usual.split and spec.split not in header
    split = (
        None
        if spec.split is None or by_itself
        else column_of(file, header, spec.split, "table.split")
    )
    mpp = None if spec.mpp is None else column_of(file, header, spec.mpp, "table.mpp")
    fold = None if spec.fold is None else column_of(file, header, spec.fold, "table.fold")
    if (spec.time is None) != (spec.event is None):
        raise DataError("survival needs both columns: table.time and table.event")
    time = None if spec.time is None else column_of(file, header, spec.time, "table.time")
    event = None if spec.event is None else column_of(file, header, spec.event, "table.event")
    labels: tuple[int, ...] = ()
    if time is None:
        if not spec.label:
            raise DataError("table.label names no column: give one, or several of 0 and 1")
        labels = tuple(column_of(file, header, name, "table.label") for name in spec.label)
    several = (slide, patient, *labels, time, event, split, mpp, fold)
    twice = [index for index, count in Counter(several).items() if index is not None and count > 1]
    if twice and not (len(twice) == 1 and twice[0] == slide == patient):
        raise DataError(
            f"{file}: the column '{header[twice[0]]}' is named for two things: name another for "
            "one of them"
        )
    names = tuple(composed(header[index]) for index in labels)
    return _Columns(slide, patient, labels, time, event, split, mpp, fold, names)


def _read_rows(
    rows: Sequence[tuple[int, list[str]]], columns: _Columns, header: Sequence[str]
) -> tuple[list[_Row], list[Fault]]:
    """The rows that can be used, each slide once, and what is wrong with the others."""
    good: dict[str, _Row] = {}
    faults: list[Fault] = []
    for number, cells in rows:
        slide = cells[columns.slide]
        location = f"row {number}, {slide}" if slide else f"row {number}"
        row = _row(number, cells, columns, header)
        if isinstance(row, _Row):
            before = good.setdefault(row.slide, row)
            if before is row:
                continue
            row = ("twice", f"row {before.number} has the same slide: keep one of them")
        faults.append(Fault(location, row[1], row[0]))
    return list(good.values()), faults


def _row(
    number: int, cells: Sequence[str], columns: _Columns, header: Sequence[str]
) -> _Row | tuple[str, str]:
    """A row, or the kind of its fault and what is wrong."""
    slide = bare(cells[columns.slide])
    if not slide:
        return "no slide", f"the column '{header[columns.slide]}' is empty"
    patient = slide if columns.patient is None else cells[columns.patient]
    if not patient or patient.lower() in NO_LABEL:
        assert columns.patient is not None
        return (
            "patients",
            f"the column '{header[columns.patient]}' is empty: it tells whose the slide is",
        )
    part, wrong = declared_part(cells, columns.split, header)
    if wrong:
        return "split", wrong
    mpp, fold = math.nan, -1
    if columns.mpp is not None and not _is_positive(cells[columns.mpp]):
        return "mpp", f"the column '{header[columns.mpp]}' is no number above 0"
    if columns.mpp is not None:
        mpp = float(cells[columns.mpp])
    if columns.fold is not None:
        if not cells[columns.fold].isdecimal():
            return "fold", f"the column '{header[columns.fold]}' is no number of a fold: 0, 1, …"
        fold = int(cells[columns.fold])
    if columns.kind == "survival":
        return _survival(number, cells, columns, header, slide, patient, part, mpp, fold)
    labels = [cells[index] for index in columns.labels]
    if wrong := _no_labels(labels, columns):
        return "labels", wrong
    several = columns.kind == "several"
    return _Row(
        number,
        slide,
        patient,
        "" if several else composed(labels[0]),
        tuple(TRUTH[label.lower()] for label in labels) if several else (),
        (0.0, 0),
        part,
        mpp,
        fold,
    )


def _survival(
    number: int,
    cells: Sequence[str],
    columns: _Columns,
    header: Sequence[str],
    slide: str,
    patient: str,
    part: str,
    mpp: float,
    fold: int,
) -> _Row | tuple[str, str]:
    assert columns.time is not None
    assert columns.event is not None
    if not _is_positive(cells[columns.time], zero=True):
        return (
            "labels",
            f"the column '{header[columns.time]}' is no time of 0 or above: mend or remove the row",
        )
    text = clipped(cells[columns.event])
    event = EVENTS.get(text.lower())
    if event is None:
        return (
            "labels",
            f"the column '{header[columns.event]}' says '{text}': 1 is an event, 0 is none",
        )
    time = float(cells[columns.time])
    return _Row(number, slide, patient, "", (), (time, event), part, mpp, fold)


def _is_positive(cell: str, *, zero: bool = False) -> bool:
    try:
        value = float(cell)
    except ValueError:
        return False
    return math.isfinite(value) and (value >= 0 if zero else value > 0)


def _no_labels(cells: Sequence[str], columns: _Columns) -> str:
    """What is wrong with the labels of a row; nothing where they can be used."""
    if len(cells) == 1:
        if not cells[0] or cells[0].lower() in NO_LABEL:
            text = repr(cells[0]) if cells[0] else "empty"
            return f"its label is {text}, which is no class: fill it in, or remove the row"
        return ""
    for name, cell in zip(columns.names, cells, strict=True):
        if cell.lower() not in TRUTH:
            text = repr(clipped(cell)) if cell else "empty"
            return f"the label '{name}' is {text}, and each of several labels is 0 or 1"
    return ""


def _table(
    file: Path,
    rows: Sequence[_Row],
    columns: _Columns,
    faults: tuple[Fault, ...],
    remarks: tuple[str, ...],
) -> BagTable:
    classes: tuple[str, ...] = columns.names
    times = None
    if columns.kind == "survival":
        classes = ()
        targets = np.array([row.survival[1] for row in rows], dtype=np.int64)
        times = np.array([row.survival[0] for row in rows], dtype=np.float64)
    elif columns.kind == "several":
        targets = np.array([row.values for row in rows], dtype=np.int64).reshape(-1, len(classes))
    else:
        classes = class_names(file, [(row.number, row.label) for row in rows], complete=not faults)
        index = {name: number for number, name in enumerate(classes)}
        targets = np.array([index[row.label] for row in rows], dtype=np.int64)
    return BagTable(
        file,
        tuple(row.slide for row in rows),
        np.array([row.patient for row in rows], dtype=object),
        columns.kind,
        classes,
        targets,
        times,
        tuple(row.part for row in rows),
        None if columns.mpp is None else np.array([row.mpp for row in rows]),
        None if columns.fold is None else np.array([row.fold for row in rows], dtype=np.int64),
        rows=tuple(row.number for row in rows),
        faults=faults,
        remarks=remarks,
    )


def _with_splits(table: BagTable, path: Path) -> BagTable:
    """The table with the parts of one split, or with several splits to choose from.

    Raises:
        DataError: the file cannot be read, or the table declares parts too.
    """
    if table.declared:
        raise DataError(
            f"{table.path} declares parts in a column, and table.splits={path} does too: give "
            "table.split=none, or leave table.splits out"
        )
    several = replace(table, splits=read_splits(path))
    return several.of_split(0) if len(several.splits) == 1 else several


def _contradicting(rows: Sequence[_Row], called: str) -> Iterator[Fault]:
    """A fault for each patient whose slides say different things of it."""
    first: dict[str, _Row] = {}
    reported = set()
    for row in rows:
        before = first.setdefault(row.patient, row)
        if before.statement != row.statement and row.patient not in reported:
            reported.add(row.patient)
            yield Fault(
                f"{called} {row.patient}",
                f"rows {before.number} ({before.slide}) and {row.number} ({row.slide}) say "
                "different things of it: what is learnt belongs to the patient, so its slides say "
                "the same",
                "labels",
            )


def _two_parts(table: BagTable, called: str) -> Iterator[Fault]:
    """A fault for each patient in two parts or two folds."""
    members = list(zip(table.parts, table.patients.tolist(), table.slides, strict=True))
    yield from in_two_parts(members, called)
    if table.folds is not None:
        numbers = [f"fold {fold}" for fold in table.folds.tolist()]
        yield from in_two_parts(
            zip(numbers, table.patients.tolist(), table.slides, strict=True), called
        )
