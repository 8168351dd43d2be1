"""Slides listed in a table: read as they are meant, or refused with the row and the way out."""

import json
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from softless.bags.table import read_bag_table
from softless.errors import DataError, Faults
from softless.experiment.bag_table import BagTableSpec

ROWS = [(f"s{n:02d}", f"p{n // 2}", "pos" if n // 2 % 2 else "neg") for n in range(12)]


def written(folder: Path, header: str, rows, name: str = "slides.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [header, *(",".join(map(str, row)) for row in rows)]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


def read(path: Path, **columns: Any):
    return read_bag_table(BagTableSpec(path=str(path), **columns))


def test_slides_patients_and_classes(tmp_path):
    table = read(written(tmp_path, "slide,patient,label", ROWS))
    assert table.slides == tuple(row[0] for row in ROWS)
    assert table.patients.tolist() == [row[1] for row in ROWS]
    assert (table.kind, table.classes) == ("class", ("neg", "pos"))
    assert table.targets.tolist() == [n // 2 % 2 for n in range(12)]
    assert set(table.parts) == {"all"}
    assert not table.declared
    assert table.times is table.mpp is table.folds is None


def test_a_path_alone_and_endings_of_files(tmp_path):
    rows = [
        (f"{slide}.svs" if n % 2 else f"a/{slide}.h5", p, label)
        for n, (slide, p, label) in enumerate(ROWS)
    ]
    table = read_bag_table(written(tmp_path, "slide,patient,label", rows))
    assert table.slides[:3] == ("a/s00", "s01", "a/s02")


def test_columns_by_other_names(tmp_path):
    rows = [(*row, 0.25 + n / 100, n % 3) for n, row in enumerate(ROWS)]
    rows = [(*row[:4], n // 2 % 3) for n, row in enumerate(rows)]
    path = written(tmp_path, "WSI,Case,MSI,mpp,k", rows)
    table = read(path, slide="WSI", patient="Case", label=("MSI",), mpp="mpp", fold="k")
    assert table.mpp is not None
    assert table.mpp[3] == pytest.approx(0.28)
    assert table.folds is not None
    assert table.folds.tolist() == [n // 2 % 3 for n in range(12)]
    assert read(path, slide="WSI", patient=None, label=("MSI",)).patients[5] == "s05"


def test_several_labels(tmp_path):
    rows = [(slide, patient, n // 2 % 2, n // 4 % 2) for n, (slide, patient, _) in enumerate(ROWS)]
    path = written(tmp_path, "slide,patient,KRAS,TP53", rows)
    table = read(path, label=("KRAS", "TP53"))
    assert (table.kind, table.classes) == ("several", ("KRAS", "TP53"))
    assert table.targets.tolist() == [[n // 2 % 2, n // 4 % 2] for n in range(12)]
    path = written(tmp_path, "slide,patient,KRAS,TP53", [*rows, ("s99", "p99", 1, "maybe")])
    with pytest.raises(DataError, match=r"row 14, s99: the label 'TP53' is 'maybe'"):
        read(path, label=("KRAS", "TP53"))


def test_survival(tmp_path):
    rows = [
        (slide, patient, 10.5 * (n // 2), "Dead" if n // 2 % 2 else 0)
        for n, (slide, patient, _) in enumerate(ROWS)
    ]
    table = read(written(tmp_path, "slide,patient,days,status", rows), time="days", event="status")
    assert (table.kind, table.classes) == ("survival", ())
    assert table.times is not None
    assert table.times.tolist() == [10.5 * (n // 2) for n in range(12)]
    assert table.targets.tolist() == [n // 2 % 2 for n in range(12)]
    assert table.take([3, 0]).times.tolist() == [10.5, 0.0]


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        (("-1", "1"), "'days' is no time of 0 or above"),
        (("soon", "1"), "'days' is no time of 0 or above"),
        (("nan", "1"), "'days' is no time of 0 or above"),
        (("3", "maybe"), "'status' says 'maybe': 1 is an event"),
    ],
)
def test_survival_that_is_none(tmp_path, cells, sentence):
    path = written(tmp_path, "slide,patient,days,status", [("a", "p", 3, 1), ("b", "q", *cells)])
    with pytest.raises(DataError, match=f"row 3, b: the column {sentence}"):
        read(path, time="days", event="status")
    with pytest.raises(DataError, match="survival needs both columns"):
        read(path, time="days")


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (("", "p9", "neg"), "row 14: the column 'slide' is empty"),
        (("s99", "", "neg"), "row 14, s99: the column 'patient' is empty"),
        (("s99", "p9", ""), "row 14, s99: its label is empty"),
        (("s99", "p9", "NaN"), "row 14, s99: its label is 'NaN'"),
        (("s03.svs", "p1", "pos"), "row 14, s03.svs: row 5 has the same slide"),
        (("s99", "p0", "pos"), r"patient p0: rows 2 \(s00\) and 14 \(s99\) say different things"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, row, sentence):
    with pytest.raises(DataError, match=sentence):
        read(written(tmp_path, "slide,patient,label", [*ROWS, row]))


def test_all_faults_are_in_one_error(tmp_path):
    rows = [*ROWS, ("", "p9", "neg"), ("s99", "p9", ""), ("s98", "p0", "pos")]
    with pytest.raises(Faults, match="3 faults before the first step; mend the table"):
        read(written(tmp_path, "slide,patient,label", rows))


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ("slides,patient,label", "no column 'slide': name it with table.slide=slides"),
        ("slide,case,label", "no column 'patient'.*table.patient=none says that each slide is"),
        ("slide,patient,msi", "no column 'label': name it with table.label="),
    ],
)
def test_columns_that_are_absent(tmp_path, header, sentence):
    with pytest.raises(DataError, match=sentence):
        read(written(tmp_path, header, ROWS))


def test_what_is_no_table(tmp_path):
    with pytest.raises(DataError, match="no table is named"):
        read_bag_table(BagTableSpec())
    with pytest.raises(DataError, match="no table at"):
        read(tmp_path / "none.csv")
    with pytest.raises(DataError, match="a header and no rows: a row lists a slide"):
        read(written(tmp_path, "slide,patient,label", []))
    with pytest.raises(DataError, match="only one class"):
        read(written(tmp_path, "slide,patient,label", ROWS[:2]))


def test_parts_and_a_patient_in_two(tmp_path):
    part = ("train", "val", "test")
    rows = [(*row, part[n // 2 % 3]) for n, row in enumerate(ROWS)]
    table = read(written(tmp_path, "slide,patient,label,split", rows))
    assert table.parts == tuple(row[3] for row in rows)
    assert table.declared
    rows[1] = (*rows[1][:3], "test")
    path = written(tmp_path, "slide,patient,label,split", rows)
    with pytest.raises(DataError, match=r"patient p0: it is in train \(s00\) and test \(s01\)"):
        read(path)
    assert not read(path, split=None).declared


def test_a_patient_in_two_folds(tmp_path):
    rows = [(*row, n % 2) for n, row in enumerate(ROWS[:2] + ROWS[4:])]
    with pytest.raises(Faults, match=r"patient p0: it is in fold 0 \(s00\) and fold 1 \(s01\)"):
        read(written(tmp_path, "slide,patient,label,fold", rows), fold="fold")


def test_clams_table_is_recognised_and_said(tmp_path):
    rows = [(patient, slide, label) for slide, patient, label in ROWS]
    table = read(written(tmp_path, "case_id,slide_id,label", rows))
    assert table.slides[4] == "s04"
    assert table.patients[4] == "p2"
    assert table.remarks == ("read as a table of CLAM: slides in slide_id, patients in case_id",)


def stamp_pair(folder: Path, rows=ROWS) -> Path:
    patients = {patient: label for _, patient, label in rows}
    clini = written(folder, "PATIENT,isMSIH", patients.items(), "clini.csv")
    slides = [(patient, f"{slide}.h5") for slide, patient, _ in rows]
    written(folder, "PATIENT,FILENAME", slides, "slide_table.csv")
    return clini


def test_stamps_pair_is_recognised_and_said(tmp_path):
    clini = stamp_pair(tmp_path)
    table = read(clini, label=("isMSIH",))
    assert table.slides == tuple(row[0] for row in ROWS)
    assert table.patients.tolist() == [row[1] for row in ROWS]
    assert table.targets.tolist() == [n // 2 % 2 for n in range(12)]
    assert "slide_table.csv" in table.remarks[0]


def test_stamps_pair_that_does_not_fit(tmp_path):
    clini = stamp_pair(tmp_path)
    slides = (tmp_path / "slide_table.csv").read_text()
    (tmp_path / "slide_table.csv").write_text(slides + "p77,s77.h5\n")
    assert "1 slide of slide_table.csv" in read(clini, label=("isMSIH",)).remarks[1]
    moved = (tmp_path / "slide_table.csv").rename(tmp_path / "other.txt")
    with pytest.raises(DataError, match=r"none is there; name it with table\.slides"):
        read(clini, label=("isMSIH",))
    assert len(read(clini, label=("isMSIH",), slides=str(moved))) == 12
    clini.write_text(clini.read_text() + "p0,neg\n")
    with pytest.raises(DataError, match="row 8 has the patient 'p0' again"):
        read(clini, label=("isMSIH",), slides=str(moved))


def clam_split(folder: Path, number: int, train, val, test) -> Path:
    """As pandas writes it: an index, and empty cells below the shorter columns."""
    columns = zip_longest(train, val, test, fillvalue="")
    rows = [(row, *names) for row, names in enumerate(columns)]
    return written(folder, ",train,val,test", rows, f"splits_{number}.csv")


def test_clams_splits(tmp_path):
    path = written(tmp_path, "slide,patient,label", ROWS)
    names = [row[0] for row in ROWS]
    file = clam_split(tmp_path / "splits", 0, names[4:], names[2:4], names[:2])
    table = read(path, splits=str(file))
    assert table.parts == ("test", "test", "val", "val", *["train"] * 8)
    clam_split(tmp_path / "splits", 1, names[:8], names[8:10], names[10:])
    (tmp_path / "splits" / "splits_1_bool.csv").write_text("not read\n")
    table = read(path, splits=str(file.parent))
    assert len(table.splits) == 2
    assert table.of_split(1).parts == (*["train"] * 8, "val", "val", "test", "test")
    with pytest.raises(DataError, match="no split 2: 2 splits are there"):
        table.of_split(2)


def test_splits_that_part_a_patient_or_name_others(tmp_path):
    path = written(tmp_path, "slide,patient,label", ROWS)
    names = [row[0] for row in ROWS]
    file = clam_split(tmp_path, 0, names[3:], [], names[:3])
    with pytest.raises(Faults, match=r"patient p1: it is in test \(s02\) and train \(s03\)"):
        read(path, splits=str(file))
    file = clam_split(tmp_path, 0, [*names[2:], "s77"], [], names[:2])
    with pytest.raises(DataError, match=r"names 1 slide that the table does not have \(s77\)"):
        read(path, splits=str(file))
    file = clam_split(tmp_path, 0, names[2:], [names[4]], names[:2])
    with pytest.raises(DataError, match="'s04' is in train and in val"):
        read(path, splits=str(file))


def test_stamps_splits(tmp_path):
    path = stamp_pair(tmp_path)
    splits = [
        {"train_patients": ["p0", "p1", "p2", "p3"], "test_patients": ["p4", "p5"]},
        {"train_patients": ["p4", "p5", "p2", "p3"], "test_patients": ["p0", "p1"]},
    ]
    (tmp_path / "splits.json").write_text(json.dumps({"splits": splits}))
    table = read(path, label=("isMSIH",), splits=str(tmp_path / "splits.json"))
    assert table.of_split(0).parts == (*["train"] * 8, *["test"] * 4)
    assert table.of_split(1).parts == (*["test"] * 4, *["train"] * 8)
    (tmp_path / "splits.json").write_text(json.dumps({"splits": [{"train": []}]}))
    with pytest.raises(DataError, match="split 0 has no train_patients and test_patients"):
        read(path, label=("isMSIH",), splits=str(tmp_path / "splits.json"))


def test_parts_twice(tmp_path):
    rows = [(*row, "train" if n < 6 else "test") for n, row in enumerate(ROWS)]
    path = written(tmp_path, "slide,patient,label,split", rows)
    names = [row[0] for row in ROWS]
    file = clam_split(tmp_path, 0, names[2:], [], names[:2])
    with pytest.raises(DataError, match="declares parts in a column"):
        read(path, splits=str(file))


def test_rows_are_taken_with_all_that_is_said_of_them(tmp_path):
    table = read(written(tmp_path, "slide,patient,label", ROWS)).take(np.array([7, 2]))
    assert (table.slides, table.rows) == (("s07", "s02"), (9, 4))
    assert table.patients.tolist() == ["p3", "p1"]
