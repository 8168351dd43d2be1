"""Which part slides and patients are in, where a file says it: CLAM's `splits_0.csv`, a folder of
them, or STAMP's `splits.json`.

CLAM's files have a column of slides for each part. STAMP's has, for each split, the patients that
are trained on and those that are tested.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from softless.bags.names import bare
from softless.data.csv_tables import read_rows
from softless.data.places import PARTS
from softless.errors import DataError
from softless.models.records import read_json
from softless.words import counted, few

CLAM = re.compile(r"splits_(\d+)\.csv")
STAMP = {"train_patients": "train", "test_patients": "test"}


@dataclass(frozen=True)
class Split:
    """The parts of one split.

    Attributes:
        path: the file.
        members: part -> names.
        by_patient: whether the names are patients; else they are slides.
    """

    path: Path
    members: dict[str, frozenset[str]]
    by_patient: bool

    def part_of(self, slide: str, patient: str) -> str | None:
        """The part of a slide; None where the split does not name it."""
        name = patient if self.by_patient else slide
        return next((part for part, names in self.members.items() if name in names), None)

    def check_names(self, slides: Sequence[str], patients: Sequence[str]) -> None:
        """Raise a DataError for names that the table does not have."""
        listed = set(patients if self.by_patient else slides)
        absent = sorted(set().union(*self.members.values()) - listed)
        if absent:
            unit = "patient" if self.by_patient else "slide"
            raise DataError(
                f"{self.path}: it names {counted(len(absent), unit)} that the table does not have "
                f"({few(absent, 5)}): add them to the table, or take them out"
            )


def read_splits(path: Path) -> tuple[Split, ...]:
    """The splits of a file or of a folder, in the order of their numbers.

    Raises:
        DataError: nothing that declares splits is there, or a name stands in two parts.
    """
    if path.is_dir():
        numbered = {
            int(match[1]): file for file in path.iterdir() if (match := CLAM.fullmatch(file.name))
        }
        if not numbered:
            raise DataError(f"{path} holds no splits_0.csv, splits_1.csv, …: give such a folder")
        return tuple(_clam(numbered[number]) for number in sorted(numbered))
    if path.suffix.lower() == ".json":
        return tuple(_stamp(path))
    return (_clam(path),)


def _clam(path: Path) -> Split:
    header, rows = read_rows(path, PARTS, "a slide of each part")
    if not {"train", "test"} <= {*header}:
        raise DataError(
            f"{path} has the columns {few(header)}: CLAM's splits have train, val and test"
        )
    members = {
        part: frozenset(bare(cells[header.index(part)]) for _, cells in rows) - {""}
        for part in PARTS
        if part in header
    }
    return _disjoint(
        Split(path, {part: names for part, names in members.items() if names}, by_patient=False)
    )


def _stamp(path: Path) -> Iterator[Split]:
    content = read_json(path)
    splits = content.get("splits")
    if not isinstance(splits, list) or not splits:
        raise DataError(f"{path} has no list 'splits': give the splits.json that STAMP wrote")
    for number, split in enumerate(splits):
        if not isinstance(split, dict) or not all(
            isinstance(split.get(key), list) for key in STAMP
        ):
            raise DataError(f"{path}: split {number} has no {' and '.join(STAMP)}: write it again")
        members = {part: frozenset(map(str, split[key])) for key, part in STAMP.items()}
        yield _disjoint(Split(path, members, by_patient=True))


def _disjoint(split: Split) -> Split:
    """Raise a DataError for names in two parts."""
    part_of_name: dict[str, str] = {}
    for part, names in split.members.items():
        for name in sorted(names):
            if name in part_of_name:
                raise DataError(
                    f"{split.path}: '{name}' is in {part_of_name[name]} and in {part}: "
                    "it has one part"
                )
            part_of_name[name] = part
    return split
