"""Images listed in a table: read as they are meant, or refused with the row and the way out."""

import codecs
import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from softless.data import open_splits
from softless.data.tables import read_table, table_parts
from softless.errors import DataError, Faults
from softless.experiment.groups import DataSpec, TableSpec
from softless.recipes import get_recipe
from tests.data.making import noise, table

ROWS = [(f"images/{n}.png", "cat" if n % 2 else "dog", f"p{n // 2}") for n in range(24)]
PLAIN: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.2,) * 3}


def read(path: Path, **columns):
    return table_parts(TableSpec(path=str(path), **columns), None, 3)


def rewritten(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def test_files_labels_and_groups(tmp_path):
    parts, classes = read(table(tmp_path, ROWS))
    assert classes == ("cat", "dog")
    samples = parts["all"]
    assert samples.files == [row[0] for row in ROWS]
    assert [classes[place] for place in samples.targets] == [row[1] for row in ROWS]
    assert samples.groups is not None
    assert samples.groups.tolist() == [row[2] for row in ROWS]
    assert samples.image(3).tobytes() == noise(seed=3).tobytes()


def test_files_start_from_data_where_it_is_given(tmp_path):
    path = table(tmp_path / "there", ROWS)
    moved = path.rename(tmp_path / "table.csv")
    assert len(table_parts(TableSpec(path=str(moved)), str(tmp_path / "there"), 3)[0]["all"]) == 24
    with pytest.raises(Faults, match="24 faults before the first step"):
        read(moved)
    with pytest.raises(
        DataError, match=r"no folder at .*gone, where the files of .* are looked for"
    ):
        table_parts(TableSpec(path=str(moved)), str(tmp_path / "gone"), 3)


def test_parts_that_the_table_declares(tmp_path):
    rows = [(*row, ("Training", "valid", "TEST")[n // 2 % 3]) for n, row in enumerate(ROWS)]
    path = table(tmp_path, rows, "file,label,patient,split")
    parts, _ = read(path)
    assert {part: len(samples) for part, samples in parts.items()} == {
        "train": 8,
        "val": 8,
        "test": 8,
    }
    assert parts["val"].files == [row[0] for row in rows if row[3] == "valid"]
    assert list(read(path, split=None)[0]) == ["all"]


def test_columns_of_other_names(tmp_path):
    path = table(tmp_path, ROWS, "Bild,Befund,Fall")
    assert read(path, file="Bild", label=("Befund",), group="Fall")[1] == ("cat", "dog")
    ungrouped = read(path, file="Bild", label=("Befund",), group=None)[0]["all"]
    assert ungrouped.groups is None


@pytest.mark.parametrize(
    ("header", "columns", "message"),
    [
        (
            "path,label,patient",
            {},
            r"no column 'file': name it with table\.file=NAME\. It has path, label, patient",
        ),
        ("File,label,patient", {}, r"no column 'file': name it with table\.file=File"),
        ("file,Labels,patient", {}, r"no column 'label': name it with table\.label=Labels"),
        (
            "file,label,case",
            {},
            r"no column 'patient': table\.group=NAME names .* and table\.group=none says",
        ),
        (
            "file,label,patient",
            {"split": "fold"},
            r"no column 'fold': name it with table\.split=NAME",
        ),
        ("file,label,label", {"group": None}, "2 columns named 'label': rename all but one"),
        (
            "file,label,patient",
            {"label": ("patient",)},
            "the column 'patient' is named for two things",
        ),
    ],
)
def test_columns_that_are_missing_or_doubtful(tmp_path, header, columns, message):
    path = table(tmp_path, ROWS, header)
    with pytest.raises(DataError, match=message):
        read(path, **columns)


def test_a_missing_file_is_named_with_its_row(tmp_path):
    path = table(tmp_path, ROWS)
    (tmp_path / "images/5.png").unlink()
    with pytest.raises(
        DataError, match=r"table\.csv: row 7, images/5\.png: there is no such file below"
    ) as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("images/0.png,,p0", "row 26, images/0.png: its label is empty, which is no class"),
        ("images/0.png,NaN,p0", "row 26, images/0.png: its label is 'NaN', which is no class"),
        (",cat,p0", "row 26: the column 'file' is empty"),
        ("images/2.png,cat,", "row 26, images/2.png: the column 'patient' is empty"),
        ("images,cat,p0", "row 26, images: there is no such file"),
        (
            "images/0.png,cat,p0",
            "row 26, images/0.png: row 2 has the same file, and other words about it",
        ),
        (
            "./images/0.png,dog,p0",
            "row 26, ./images/0.png: row 2 has the same file, and the same row",
        ),
        ("images/0.png,cat", "row 26 has 2 cells and the header 3"),
        ('"images/0.png,cat,p0', "is no table of comma-separated values: unexpected end of data"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, row, message):
    path = table(tmp_path, ROWS)
    rewritten(path, path.read_text() + row + "\n")
    with pytest.raises(DataError) as caught:
        read(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whole_paths_and_rows_with_empty_cells_at_their_end(tmp_path):
    path = table(tmp_path / "there", ROWS)
    rewritten(
        path,
        path
        .read_text()
        .replace("images/3.png", f"{tmp_path}/there/images/3.png")
        .replace(",p1\n", ",p1,,\n"),
    )
    samples = read(path)[0]["all"]
    assert samples.files == [row[0] for row in ROWS]
    elsewhere = rewritten(
        tmp_path / "here.csv",
        path
        .read_text()
        .replace("images/", "there/images/")
        .replace(f"{tmp_path}/there/there", f"{tmp_path}/there"),
    )
    assert read(elsewhere)[0]["all"].files == [f"there/{row[0]}" for row in ROWS]


def test_one_file_under_two_names_is_one(tmp_path):
    path = table(tmp_path, ROWS)
    (tmp_path / "images/twin.png").symlink_to(tmp_path / "images/0.png")
    rewritten(path, path.read_text() + "images/twin.png,cat,p0\n")
    with pytest.raises(DataError, match="row 2 has the same file, and other words about it"):
        read(path)


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    rows = [(*row, "train" if n < 20 else "test") for n, row in enumerate(ROWS)]
    rows[0] = (*rows[0][:3], "test")
    path = table(
        tmp_path, [*rows, ("images/x.png", "cat", "q", "train")], "file,label,patient,split"
    )
    (tmp_path / "images/x.png").unlink()
    rewritten(path, path.read_text().replace("images/7.png,cat", "images/7.png,"))
    with pytest.raises(Faults, match="3 faults before the first step; mend the table") as caught:
        read(path)
    said = str(caught.value)
    assert "row 26, images/x.png: there is no such file" in said
    assert "row 9, images/7.png: its label is empty" in said
    assert (
        "patient p0: it is in train (images/1.png) and test (images/0.png): no group may stand in "
        "two parts" in said
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda split: "tset" if split == "test" else split,
            "the column 'split' says 'tset': it must be train, val, test",
        ),
        (
            lambda split: "" if split == "test" else split,
            "the column 'split' says '': it must be train, val, test",
        ),
        (
            lambda split: "test" if split == "train" else split,
            "the table declares test but no train",
        ),
    ],
)
def test_splits_that_are_none(tmp_path, change, message):
    rows = [(*row, change("train" if n < 20 else "test")) for n, row in enumerate(ROWS)]
    with pytest.raises(DataError) as caught:
        read(table(tmp_path, rows, "file,label,patient,split"))
    assert message in str(caught.value)


def test_a_part_without_a_class(tmp_path):
    rows = [(*row, "test" if n == 23 else "train") for n, row in enumerate(ROWS)]
    rows[22] = (*rows[22][:2], "other", "train")
    with pytest.raises(
        DataError, match="test: it has no image of the class 'dog': each part must have every class"
    ):
        read(table(tmp_path, rows, "file,label,patient,split"))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["1", "10", "2"], ("1", "2", "10")),
        (["0", "1", "0"], ("0", "1")),
        (["03", "11", "02"], ("02", "03", "11")),
        (["-1", "0", "1.0"], ("-1", "0", "1.0")),
        (["grade 10", "grade 2", "a"], ("a", "grade 10", "grade 2")),
        (["Zürich", "Ärger", "天"], ("Zürich", "Ärger", "天")),
        ([" cat ", "cat", "dog"], ("cat", "dog")),
        (["none", "b", "a"], ("a", "b", "none")),
    ],
)
def test_the_order_of_classes(tmp_path, labels, classes):
    rows = [(f"images/{n}.png", labels[n % 3], f"p{n}") for n in range(6)]
    parts, found = read(table(tmp_path, rows))
    assert found == classes
    assert [found[place] for place in parts["all"].targets] == [
        labels[n % 3].strip() for n in range(6)
    ]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["1", "01"], "the labels '01' and '1' are one number"),
        (["1", "1.0"], "the labels '1' and '1.0' are one number"),
        (["0.5", "1"], "the label 0.5 .row 2. is a number with a fraction"),
        (["Cat", "cat"], "the classes 'Cat' and 'cat' differ only in case"),
        (["e\u0301", "\u00e9"], "holds only one class"),
        (["cat", "cat"], r"holds only one class \(cat\)"),
    ],
)
def test_labels_that_are_no_classes(tmp_path, labels, message):
    rows = [(f"images/{n}.png", labels[n % 2], f"p{n}") for n in range(6)]
    with pytest.raises(DataError, match=message):
        read(table(tmp_path, rows))


def written(delimiter=",", end="\n", quoting=csv.QUOTE_MINIMAL):
    lines = [["file", "label", "patient"], *([*map(str, row)] for row in ROWS)]
    quoted = [
        [f'"{cell}"' for cell in line] if quoting == csv.QUOTE_ALL else line for line in lines
    ]
    return end.join(delimiter.join(line) for line in quoted) + end


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (written(), "utf-8-sig"),
        (written(";"), "utf-8"),
        (written("\t"), "utf-8"),
        (written("|"), "utf-8"),
        (written(", "), "utf-8"),
        (written(end="\r\n"), "utf-8"),
        (written(end="\r"), "utf-8"),
        (written(";", "\r\n", csv.QUOTE_ALL), "utf-8-sig"),
        ("sep=;\r\n" + written(";", "\r\n"), "utf-8"),
        (written("\t", "\r\n"), "utf-16"),
        (written().replace("\n", "\n\n", 3) + ",,\n\n", "utf-8"),
        (written().replace("images/", "images\\"), "utf-8"),
    ],
)
def test_tables_as_programs_write_them(tmp_path, text, encoding):
    plain = read(table(tmp_path, ROWS))[0]["all"]
    path = rewritten(tmp_path / "table.csv", text, encoding)
    samples, classes = read(path)
    assert classes == ("cat", "dog")
    assert [*map(str, samples["all"].paths())] == [*map(str, plain.paths())]
    assert np.array_equal(samples["all"].targets, plain.targets)
    assert samples["all"].groups is not None
    assert samples["all"].groups.tolist() == [row[2] for row in ROWS]


def test_names_with_separators_quotes_and_signs(tmp_path):
    names = ["a,b.png", 'say "a".png', "Zürich 天.png", "a;b.png", "line\nbreak.png"]
    (tmp_path / "images").mkdir()
    for seed, name in enumerate(names):
        noise(seed=seed).save(tmp_path / "images" / name)
    with (tmp_path / "table.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([
            ["file", "label", "patient"],
            *([f"images/{name}", f"c{n % 2}", n] for n, name in enumerate(names)),
        ])
    assert read(tmp_path / "table.csv")[0]["all"].files == [f"images/{name}" for name in names]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: its first row names the columns"),
        (b"file,label,patient\n", "has a header and no rows"),
        (b"PK\x03\x04rest", "is a spreadsheet or an archive: save it as CSV"),
        (
            "file,label,patient\na.png,b\u00e9b\u00e9,p\n".encode("latin-1"),
            r"is not UTF-8 \(line 2\): save it as CSV in UTF-8",
        ),
        (b"file,label\0,patient\n", "holds NUL signs"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (codecs.BOM_UTF8 + b"\n\n", "is empty"),
    ],
)
def test_files_that_are_no_tables(tmp_path, content, message):
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "table.csv")


def test_no_table_there(tmp_path):
    with pytest.raises(DataError, match="no table at"):
        read(tmp_path / "gone.csv")
    with pytest.raises(DataError, match="is a folder, and a table is a CSV file"):
        read(tmp_path)


def several(tmp_path, rows=None, header="file,mass,edema,patient"):
    rows = rows or [(f"images/{n}.png", n % 2, n // 2 % 2, f"p{n // 4}") for n in range(24)]
    return table(tmp_path, rows, header)


def test_several_labels_of_0_and_1(tmp_path):
    path = several(tmp_path)
    parts, classes = read(path, label=("edema", "mass"))
    assert classes == ("edema", "mass")
    assert parts["all"].targets.tolist() == [[n // 2 % 2, n % 2] for n in range(24)]


def test_columns_that_are_called_by_numbers(tmp_path):
    path = table(
        tmp_path,
        [(f"images/{n}.png", n % 2, n // 2 % 2, f"p{n}") for n in range(8)],
        "file,0,1,patient",
    )
    recipe = replace(get_recipe("folder"), table=TableSpec(path=str(path)))
    for text in ("1,0", "('1', '0')"):
        named = recipe.with_fields(**{"table.label": text}).table
        assert isinstance(named, TableSpec)
        assert named.label == ("1", "0")
        assert table_parts(named, None, 3)[1] == ("1", "0")


def test_columns_of_0_and_1_alone_are_labels(tmp_path, caplog):
    assert read(several(tmp_path))[1] == ("mass", "edema")
    assert "no column 'label': its columns of 0 and 1 are labels, mass, edema" in caplog.text
    aged = several(tmp_path, [(f"images/{n}.png", n % 2, 40 + n, f"p{n}") for n in range(24)])
    with pytest.raises(DataError, match="no column 'label'"):
        read(aged)


@pytest.mark.parametrize(
    ("cell", "said"), [("2", "'2'"), ("", "empty"), ("-1", "'-1'"), ("yes", "'yes'")]
)
def test_several_labels_that_are_neither_0_nor_1(tmp_path, cell, said):
    rows = [
        (f"images/{n}.png", n % 2, cell if n == 3 else n // 2 % 2, f"p{n // 4}") for n in range(24)
    ]
    with pytest.raises(
        DataError,
        match=f"row 5, images/3.png: the label 'edema' is {said}, and each of several labels is 0 "
        "or 1",
    ):
        read(several(tmp_path, rows), label=("mass", "edema"))


def test_the_fingerprint_covers_the_table(tmp_path):
    """A run is not continued on other labels, groups or parts; the place of the table is free."""

    def told(path):
        return open_splits(DataSpec(**PLAIN), 0, TableSpec(path=str(path))).fingerprint

    first = told(table(tmp_path / "a", ROWS))
    assert told(table(tmp_path / "b", ROWS, name="other.csv")) == first
    assert first["source"] == "table"
    relabelled = [
        (file, {"cat": "dog", "dog": "cat"}[label] if n == 1 else label, group)
        for n, (file, label, group) in enumerate(ROWS)
    ]
    regrouped = [(file, label, f"q{group}") for file, label, group in ROWS]
    split = [(*row, "val" if n < 4 else "train") for n, row in enumerate(ROWS)]
    others = [
        told(table(tmp_path / "c", relabelled)),
        told(table(tmp_path / "d", regrouped)),
        told(table(tmp_path / "e", split, "file,label,patient,split")),
    ]
    assert all(other["sha256"] != first["sha256"] for other in others)


def test_reading_a_table_gathers_faults(tmp_path):
    path = table(tmp_path, ROWS)
    (tmp_path / "images/5.png").unlink()
    found = read_table(TableSpec(path=str(path)), None, 3)
    assert [fault.kind for fault in found.faults] == ["missing file"]
    assert len(found.parts["all"]) == 23
