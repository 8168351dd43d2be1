"""`softless train --table`, `eval` and `data check` of tables: right, or one sentence and exit
code 2 before any work."""

import csv
import json
from pathlib import Path

import pytest

from softless.cli.main import main
from tests.data.making import class_folders, noise, table

SMALL = [
    "model.args.embed_dim=32",
    "model.args.depth=2",
    "model.args.num_heads=2",
    "data.image_size=32",
    "batch_size=8",
    "schedule.epochs=1",
    "schedule.warmup_epochs=0",
    "schedule.min_epoch_steps=none",
    "ema_decay=none",
    "ema_evaluate=false",
    "threads=1",
]
ROWS = [(f"images/{n}.png", "cat" if n % 2 else "dog", f"p{n // 2}") for n in range(24)]


def train(out: Path, *words: str, fields: tuple[str, ...] = ()) -> int:
    return main(["train", *words, "--out", str(out), "--device", "cpu", "--set", *SMALL, *fields])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_run_of_a_table(tmp_path, capsys):
    path = table(
        tmp_path / "data",
        [(*row, "test" if n >= 16 else "train") for n, row in enumerate(ROWS)],
        "file,label,patient,split",
    )
    assert train(tmp_path / "run", "--recipe", "folder", "--table", str(path)) == 0
    splits = rows_of(tmp_path / "run/splits.csv")
    assert sorted(row["file"] for row in splits) == sorted(row[0] for row in ROWS)
    assert {row["file"] for row in splits if row["part"] == "test"} == {row[0] for row in ROWS[16:]}
    assert {row["file"]: row["group"] for row in splits} == {row[0]: row[2] for row in ROWS}
    parts: dict[str, set[str]] = {}
    for row in splits:
        parts.setdefault(row["group"], set()).add(row["part"])
    assert all(len(found) == 1 for found in parts.values())
    assert "truth" in (tmp_path / "run/report.html").read_text(), "test images are shown"
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "run"), "--json"]) == 0
    own = json.loads(capsys.readouterr().out)
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert own["top1"] == result["test"]["top1"]
    assert own["seen"] == 8
    other = table(tmp_path / "other", ROWS[:6], name="more.csv")
    assert main(["eval", str(tmp_path / "run"), "--table", str(other), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seen"] == 6
    sources = [str(tmp_path / "data/images"), str(tmp_path / "other/images/0.png")]
    words = [
        "predict",
        "--run",
        str(tmp_path / "run"),
        "--images",
        *sources,
        "--out",
        str(tmp_path / "said"),
        "--no-overlays",
    ]
    assert main(words) == 0
    named = [row["file"] for row in rows_of(tmp_path / "said/predictions.csv")]
    assert named[-1] == "other/images/0.png"
    assert sorted(named[:-1]) == sorted(f"data/{row[0]}" for row in ROWS)


def test_a_run_is_held_to_its_table(tmp_path, capsys):
    path = table(tmp_path, ROWS)
    assert train(tmp_path / "run", "--table", str(path), fields=("schedule.epochs=1",)) == 0
    moved = path.rename(tmp_path / "moved.csv")
    again = [
        "train",
        "--resume",
        "--out",
        str(tmp_path / "run"),
        "--set",
        "schedule.epochs=2",
        "schedule.min_steps=none",
    ]
    capsys.readouterr()
    assert main(again) == 2
    assert "the table of the run" in capsys.readouterr().err
    moved.write_text(moved.read_text().replace("p0", "q0"))
    assert main([*again, "--table", str(moved)]) == 2
    assert (
        "the data changed since (pixels of train, pixels of val, sha256)" in capsys.readouterr().err
    )
    moved.write_text(moved.read_text().replace("q0", "p0"))
    assert main([*again, "--table", str(moved)]) == 0


@pytest.mark.parametrize(
    ("words", "fields", "message"),
    [
        (["--recipe", "folder", "--table", "gone.csv"], (), "gone.csv: give a CSV file"),
        (
            ["--recipe", "digits", "--table", "table.csv"],
            (),
            "recipe 'digits' reads no image files with classes",
        ),
        (
            ["--recipe", "dino", "--table", "table.csv"],
            (),
            "recipe 'dino' reads no image files with classes",
        ),
        (
            ["--recipe", "folder", "--table", "table.csv"],
            ("table.label=Befund",),
            "no column 'Befund'",
        ),
        (
            ["--recipe", "folder", "--table", "table.csv"],
            ("table.lable=x",),
            "Did you mean 'table.label'",
        ),
        (
            ["--recipe", "folder", "--table", "table.csv"],
            ("data.group=(a)",),
            "a table names its groups with table.group",
        ),
        (
            ["--recipe", "folder", "--table", "table.csv", "--data", "gone"],
            (),
            "where the files of",
        ),
        (
            ["--recipe", "folder", "--data", "."],
            ("table.label=x",),
            "'table.label' is of a table, and none is given",
        ),
        (["--recipe", "folder", "--data", "."], ("data.group=(",), "is no regular expression"),
        (
            ["--recipe", "folder", "--data", "."],
            ("data.folds=3",),
            "data.folds=3 and data.fold=None come together",
        ),
    ],
)
def test_bad_input_is_one_sentence(words, fields, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table(tmp_path, ROWS)
    assert train(tmp_path / "run", *words, fields=fields) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert len(said.err.splitlines()) == 1
    assert not (tmp_path / "run").exists(), "nothing was begun"


def test_a_check_of_a_table(tmp_path, capsys):
    path = table(tmp_path, ROWS)
    assert main(["data", "check", "--table", str(path)]) == 0
    said = capsys.readouterr().out
    assert "table.csv (table): 24 images seen, 24 good" in said
    assert "all: 24 in 2 classes (cat: 12, dog: 12)" in said
    assert main(["data", "check", str(path)]) == 0
    capsys.readouterr()
    rows = [(*row, "train" if n < 21 else "test") for n, row in enumerate(ROWS)]
    rows[22], rows[23] = (rows[22][0], "cat", "x", "test"), (rows[23][0], "cat", "y", "test")
    rows[21] = (rows[21][0], "cat", "p10", "test")
    path = table(tmp_path, rows, "file,label,patient,split")
    (tmp_path / "images/3.png").unlink()
    (tmp_path / "images/4.png").write_bytes(b"no image")
    assert main(["data", "check", "--table", str(path), "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["by_reason"] == {"missing file": 1, "groups": 1, "classes": 1, "no image": 1}
    said = [f"{place}: {reason}" for place, reason in content["bad"]]
    assert any("row 5, images/3.png: there is no such file" in one for one in said)
    assert any(
        "patient p10: it is in train (images/20.png) and test (images/21.png)" in one
        for one in said
    )
    assert any("test: it has no image of the class 'dog'" in one for one in said)
    assert any("images/4.png" in one for one in said)


def test_a_check_of_groups_that_cannot_be_cut(tmp_path, capsys):
    path = table(tmp_path, [(file, label, "one") for file, label, _ in ROWS])
    assert main(["data", "check", "--table", str(path)]) == 1
    assert "all 24 images are of one group (one)" in capsys.readouterr().out
    assert main(["data", "check", "--table", str(path), "--set", "table.group=none"]) == 0
    folders = class_folders(tmp_path / "classes", {"cat": 3, "dog": 3})
    capsys.readouterr()
    words = ["data", "check", str(folders), "--recipe", "folder", "--set"]
    assert main([*words, r"data.group=/(\d+)\.png"]) == 0
    assert main([*words, r"data.group=(cat|dog)/"]) == 1
    assert (
        "each of the 2 groups (cat, dog) is the only one of some class" in capsys.readouterr().out
    )


def test_a_check_names_columns_that_are_missing(tmp_path, capsys):
    path = table(tmp_path, ROWS, "file,klass,patient")
    assert main(["data", "check", "--table", str(path)]) == 2
    assert "no column 'label'" in capsys.readouterr().err
    assert main(["data", "check", "--table", str(path), "--set", "table.label=klass"]) == 0


def test_groups_of_class_folders_in_a_run(tmp_path):
    for index in range(24):
        folder = tmp_path / "data" / ("cat", "dog")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        noise(seed=index).save(folder / f"p{index // 4}_{index}.png")
    words = ["--recipe", "folder", "--data", str(tmp_path / "data")]
    assert train(tmp_path / "run", *words, fields=(r"data.group=/(p\d+)_",)) == 0
    splits = rows_of(tmp_path / "run/splits.csv")
    assert {row["group"] for row in splits} == {f"p{n}" for n in range(6)}
    held = [{row["group"] for row in splits if row["part"] == part} for part in ("train", "val")]
    assert held[1]
    assert not held[0] & held[1]
