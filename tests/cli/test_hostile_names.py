"""Names that are not meant for people: no output steers a terminal, no page or table is broken by
one, and no command ends in a traceback.
"""

import csv
import json
import logging
import os
import re
import sys
import warnings
from pathlib import Path

import pytest

import softless
from softless.cli.eval import eval as eval_run
from softless.cli.main import main, say
from softless.data import open_splits
from softless.data.folder import folder_parts
from softless.data.progress import progress_line
from softless.errors import DataError, UsageError, located
from softless.experiment.groups import DataSpec
from softless.models.files import read_tensors
from softless.prediction.results import Results, picture_names, writable
from softless.report.html import tag
from softless.tasks.check import check
from softless.words import as_cell, is_text, table, visible
from tests.data.making import class_folders, noise, split_folders
from tests.evaluation.runs import run_folder

ESCAPES = (
    "red\x1b[31m",
    "up\x9b2A",
    "two\nlines",
    "turned\u202egnp",
    "apart\u2066",
    "mark\u200f",
    "arab\u061c",
    "byte\udcff",
)
FORMULAS = "=1+1", "+1", "-1", "@sum", "\tx", "＝1"
LONG = "x" * 300
STEERS = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff]"
)


@pytest.fixture
def world(tmp_path):
    """Images whose names and classes hold everything, and a run that knows the classes."""
    classes = tuple(sorted([name for name in ESCAPES if is_text(name)] + ["=1+1", "-cat"]))
    split_folders(
        tmp_path / "data", {part: dict.fromkeys(classes, 2) for part in ("train", "test")}
    )
    data = DataSpec(source="folder", path=str(tmp_path / "data"), image_size=16, val_fraction=0.5)
    run_folder(tmp_path / "run", classes, data)
    (tmp_path / "images").mkdir()
    for number, name in enumerate((*ESCAPES, *FORMULAS)):
        noise(seed=number).save(tmp_path / "images" / f"{name}.png")
    noise().save(tmp_path / "images" / ("y" * 250 + ".png"))
    noise().save(tmp_path / "images" / ("y" * 249 + "z.png"))
    return tmp_path


@pytest.mark.parametrize("name", ESCAPES)
def test_what_steers_a_terminal_is_shown(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert not STEERS.search(visible(name))
    assert "\n" not in visible(name)
    assert visible(f"{name}\nb", lines=True).endswith("\nb")
    assert len(table(["name", "n"], [[name, 1]]).splitlines()) == 3
    say(name)
    for words in (
        ["train", "--recipe", name],
        [name],
        ["cost", name],
        ["predict", name, name, "--out", name],
    ):
        assert main(words) == 2
    said = capsys.readouterr()
    assert not STEERS.search(said.out + said.err)
    assert len(said.err.splitlines()) == 4


def test_notes_and_warnings_are_shown_too(capsys: pytest.CaptureFixture[str], monkeypatch):
    def speaking() -> None:
        logging.getLogger("softless.data").warning("%s", ESCAPES[0])
        sys.stderr.write(warnings.formatwarning(ESCAPES[0], UserWarning, ESCAPES[2], 1, "line"))

    monkeypatch.setattr("softless.cli.main.load", lambda _: speaking)
    assert main(["list"]) == 0
    said = capsys.readouterr().err
    assert r"note: red\x1b[31m" in said
    assert not STEERS.search(said)


def test_progress_lines_show_them():
    assert not STEERS.search(progress_line(f"reading {ESCAPES[0]}", 1, 2, 1.0))


def test_signs_that_the_terminal_lacks(tmp_path: Path):
    with (tmp_path / "out").open("w", encoding="ascii") as stream:
        say("größe …", stream)
    assert (tmp_path / "out").read_bytes() == rb"gr\xf6\xdfe \u2026" + os.linesep.encode()


def test_the_page_shows_them():
    made = tag("p", "".join(ESCAPES), title=ESCAPES[3])
    assert not STEERS.search(made)
    made.encode()


def test_predict_and_eval(world, capsys: pytest.CaptureFixture[str]):
    images, out = world / "images", world / "out"
    assert (
        main(["predict", str(world / "run"), str(images), "--out", str(out), "--device", "cpu"])
        == 0
    )
    said = capsys.readouterr()
    assert not STEERS.search(said.out + said.err)
    assert "too long for the pictures' own" in said.err
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as file:
        header, *body = csv.reader(file)
    cells = [cell for row in (header, *body) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "＝"))]
    assert {"'=1+1.png", "'-1.png", "'\tx.png"} <= {row[0] for row in body}
    drawn = [path.name for path in (out / "saliency").iterdir()]
    assert len(drawn) == len(body) == len(ESCAPES) + len(FORMULAS) + 2
    assert not [name for name in drawn if STEERS.search(name) or len(os.fsencode(name)) > 250]
    for text in (str(eval_run(world / "run", device="cpu")),):
        assert not STEERS.search(text)
    assert main(["eval", str(world / "run"), "--device", "cpu", "--json"]) == 0
    assert "red\x1b[31m" in json.loads(capsys.readouterr().out)["classes"], (
        "JSON keeps names, escaped its own way"
    )


def test_export(world, capsys: pytest.CaptureFixture[str]):
    """Classes, folders and files of any name; the file holds its classes as they are."""
    out = world / f"out{ESCAPES[0]}"
    assert main(["export", str(world / "run"), "--format", "pt2", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert not STEERS.search(said.out + said.err)
    assert r"red\x1b[31m" in said.out
    exported = softless.load_exported(out / "model.pt2")
    assert "red\x1b[31m" in exported.classes
    assert not STEERS.search(repr(exported))


def test_explain(world, capsys: pytest.CaptureFixture[str]):
    words = [
        "explain",
        str(world / "run"),
        str(world / "images"),
        "--out",
        str(world / "maps"),
        "--device",
        "cpu",
    ]
    assert main(words) == 0
    said = capsys.readouterr()
    assert not STEERS.search(said.out + said.err)
    assert len(list((world / "maps").glob("*.png"))) == len(ESCAPES) + len(FORMULAS) + 2


def test_pictures_never_meet(tmp_path: Path):
    names = [
        "a\nb.png",
        "a\x1bb.png",
        "a_b.png",
        "y" * 250 + ".png",
        "y" * 251,
        "ä" * 124 + ".png",
        "d\n/c.png",
        "d_/c.png",
    ]
    found = picture_names(names)
    assert len({name.casefold() for name in found}) == len(names)
    assert all(len(part.encode()) <= 250 for name in found for part in name.split("/"))
    assert [writable(name) for name in ("plain", "größe", "a b")] == ["plain", "größe", "a b"]
    with Results(tmp_path, "predict", []) as results:
        for path in results.pictures(names):
            path.parent.mkdir(exist_ok=True)
            path.touch()


def test_cells_that_are_no_formulas_stay():
    assert [as_cell(text) for text in ("cat", "a=1", "", "0.5", "'x")] == [
        "cat",
        "a=1",
        "",
        "0.5",
        "'x",
    ]
    assert as_cell(" =1") == "' =1"


@pytest.mark.bar("B18", "a class whose name is not UTF-8: refused before the first step")
def test_a_class_folder_that_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    split_folders(tmp_path, {"train": {"a": 2, "b\udcff": 2}})
    said = r"class folder 'b\udcff' has a name that is not UTF-8"
    with pytest.raises(DataError, match=re.escape(said)):
        open_splits(DataSpec(source="folder", path=str(tmp_path)), seed=0)
    assert [(fault.kind, "not UTF-8" in fault.reason) for fault in check(tmp_path).bad] == [
        ("classes", True)
    ]
    words = [
        "train",
        "--recipe",
        "folder",
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path / "run"),
        "--device",
        "cpu",
    ]
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_names_of_other_layouts_that_are_no_text(tmp_path: Path):
    coco = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cell\ud800"}]}
    (tmp_path / "a.json").write_text(json.dumps(coco))
    assert any("not UTF-8" in fault.reason for fault in check(tmp_path / "a.json").bad)
    for part in ("images", "labels"):
        (tmp_path / part / "train").mkdir(parents=True)
        noise(mode="L").save(tmp_path / part / "train" / "a.png")
    (tmp_path / "classes.json").write_text(json.dumps({"0": "ground", "1": "vessel\ud800"}))
    assert any("not UTF-8" in fault.reason for fault in check(tmp_path).bad)


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--recipe", "digits", "--out", LONG],
        ["train", "--recipe", "folder", "--data", LONG, "--out", "run"],
        ["predict", LONG, "images", "--out", "out"],
        ["eval", LONG],
        ["cost", LONG],
        ["audit", LONG],
        ["export", LONG],
        ["export", "sima_deit_tiny_patch16_224", "--out", LONG],
        ["export", "sima_deit_tiny_patch16_224", "--size", "9" * 20],
        ["bench", "latency", f"{LONG}.onnx"],
        ["bench", "export", LONG],
        ["data", "check", LONG],
        ["explain", LONG, LONG],
        ["runs", LONG],
        ["slide", "sima_deit_tiny_patch16_224", LONG, "--out", "out"],
        ["swap", "vit_tiny_patch16_224", "--weights", LONG],
        ["swap", "vit_tiny_patch16_224", "--out", LONG],
        ["cost", "sima_deit_tiny_patch16_224", "--input-size", "9" * 20],
        ["audit", "sima_deit_tiny_patch16_224", "--input-size", "9" * 12],
        ["data", "check", "/dev/null"],
        ["train", "--recipe", "digits", "--set", "optim.lr=" + "-" * 3000 + "1"],
        ["train", "--recipe", "digits", "--out", "~nobody-has-this-name/x"],
        ["data", "check", "images/\0"],
    ],
    ids=lambda words: " ".join(words)[:40],
)
def test_paths_and_numbers_beyond_reason(
    words, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("softless: ")
    assert len(said) < 600
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_is_refused_in_python_too(tmp_path: Path):
    for path in (LONG, "a\0b", "~nobody-has-this-name/x"):
        with pytest.raises(UsageError, match="cannot be used"):
            located(path)
    with pytest.raises(UsageError, match="cannot be used"):
        read_tensors(LONG)
    assert located(tmp_path / "nothing there") == tmp_path / "nothing there"


def test_what_the_system_refuses_is_a_sentence(
    tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
):
    def locked(folder, *_, **__):
        raise PermissionError(13, "Permission denied", str(folder))

    class_folders(tmp_path / "data", {"a": 2, "b": 2})
    for listing in ("scandir", "listdir"):  # whichever of them lists the folder
        monkeypatch.setattr(os, listing, locked)
    assert main(["data", "check", str(tmp_path / "data")]) == 2
    assert capsys.readouterr().err.endswith(
        "data: Permission denied (said by the system; --debug tells where)\n"
    )
    with pytest.raises(PermissionError):
        main(["data", "check", str(tmp_path / "data"), "--debug"])
    with pytest.raises(PermissionError):
        folder_parts(tmp_path / "data", 3)
