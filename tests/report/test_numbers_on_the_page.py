"""Numbers, data and downloads on the page of a run, as a browser gets them."""

import base64
import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from softless.report.composition import draw_composition
from softless.report.downloads import as_csv
from softless.report.groups import grouped
from softless.report.html import Html, tag
from softless.report.places import shortened_words
from softless.report.runs import read_run
from softless.tasks.page import write
from softless.training import fit
from tests.report.test_page import Reader
from tests.training.conftest import tiny_recipe, write_npz


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of two classes."""
    folder = tmp_path_factory.mktemp("two")
    recipe = tiny_recipe(write_npz(folder / "images.npz", classes=2))
    fit(recipe, folder / "mine", device="cpu", progress=False)
    return folder / "mine"


@pytest.fixture(scope="module")
def text(run: Path) -> str:
    return write([run], run / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def words(text: str) -> str:
    return " ".join(" ".join(Reader(text).text).split())


def tables(text: str) -> dict[str, list[list[str]]]:
    """The CSV files of the page by their names."""
    return {
        link["download"]: list(
            csv.reader(io.StringIO(base64.b64decode(link["href"].partition("base64,")[2]).decode()))
        )
        for link in Reader(text).all("a")
        if link["href"].startswith("data:text/csv")
    }


def test_every_measure_is_there_with_its_interval(run: Path, text: str):
    result = json.loads((run / "result.json").read_text())["test"]
    rows = {row[0]: row[1] for row in tables(text)["measures_of_the_test_images.csv"][1:]}
    assert rows["chance"] == "50.0 %"
    assert rows["always the commonest class (0)"] == f"{100 * result['commonest']:.1f} %"
    assert rows["Brier score"] == f"{result['brier']:.4f}"
    assert rows["AUC"].startswith(f"{result['auc']:.4f}")
    assert rows["sensitivity there"].startswith(
        f"{100 * result['at_threshold']['sensitivity']:.1f} %"
    )
    assert any(name.startswith("threshold for 1, chosen on validation images") for name in rows)


def test_each_class_has_a_row(run: Path, text: str):
    result = json.loads((run / "result.json").read_text())["test"]
    (rows,) = [rows for name, rows in tables(text).items() if name.startswith("classes")]
    assert rows[0] == ["class", "images", "precision", "recall", "AUC against the rest"]
    assert [row[0] for row in rows[1:]] == ["0", "1"]
    assert rows[2][3].startswith(f"{100 * result['per_class']['recall']['1']:.1f} %")


def test_the_roc_curve_is_scikit_learn_s(run: Path, text: str):
    with np.load(run / "predictions.npz") as held:
        apart, truth = held["logits"][:, 1].astype(float) - held["logits"][:, 0], held["targets"]
    drawn = text.split('id="roc-title"')[1].split("</svg>", maxsplit=1)[0]
    points = [
        tuple(map(float, dot.split(",")))
        for dot in re.findall(r'points="([^"]*)"', drawn)[0].split()
    ]
    false, true, _ = roc_curve(truth, apart, drop_intermediate=False)
    wanted = [(54 + 260 * x, 12 + 260 * (1 - y)) for x, y in zip(false, true, strict=True)]
    assert np.allclose(points, wanted, atol=0.06)
    assert f"{roc_auc_score(truth, apart):.4f}" in drawn
    assert 'class="ring"' in drawn
    assert 'id="calibration-title"' in text


def test_the_title_says_data_and_run_and_not_the_recipe_s_prose(text: str):
    assert "<h1>SimA on images.npz, run mine</h1>" in text
    assert "for tests" not in text.split("</header>", maxsplit=1)[0]


def test_what_the_data_hold(words: str, text: str):
    rows = tables(text)["images_in_images_npz_and_images_of_each_class.csv"]
    assert rows == [
        ["", "training", "validation", "test"],
        ["all images", "48", "18", "15"],
        ["0", "24", "9", "8"],
        ["1", "24", "9", "7"],
    ]
    assert "40 training images that were looked at are 16 × 16 pixels" in words
    assert "The model was trained at 16 × 16." in words


def test_command_date_and_commit(run: Path, words: str):
    about = json.loads((run / "about.json").read_text())
    assert about["command"] == "called in Python"
    assert about["date"][:10] in words
    assert about["commit"] in words
    begun = (run / "about.json").read_bytes()
    fit(tiny_recipe(run.parent / "images.npz"), run, resume=True, device="cpu", progress=False)
    assert (run / "about.json").read_bytes() == begun, "a run that is continued keeps it"


def test_a_command_tells_nobody_where_files_lay():
    told = shortened_words(
        "softless train --data /disk/my/images --set model.weights=/runs/one 'data.path=/a b/c' "
        "lr=1e-3 --out ../x"
    )
    assert "/disk" not in told
    assert "/runs" not in told
    assert told.startswith("softless train --data images --set model.weights=one")
    assert told.endswith("lr=1e-3 --out ../x")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        '{"command": 1}',
        '{"command": "a", "date": "b", "commit": "c", "data": {"name": "x"}}',
        (
            '{"command": "a", "date": "b", "commit": "c", "data": {"name": "x", "images": '
            '{"train": '
            '"many"}}}'
        ),
    ],
)
def test_a_file_about_the_run_that_cannot_be_read_leaves_the_page_as_it_is(
    run: Path, tmp_path: Path, content: str
):
    kept = (run / "about.json").read_bytes()
    try:
        (run / "about.json").write_text(content)
        groups = grouped([read_run(run)])
        assert groups[0].first.provenance == {}
        assert draw_composition(groups) is None
        assert "<h2" in write([run], tmp_path / "page.html").read_text(encoding="utf-8")
    finally:
        (run / "about.json").write_bytes(kept)


def test_both_weight_curves_are_drawn(words: str, text: str):
    assert (
        "Full lines are averaged weights, thin dashed ones the raw weights of the same run."
        in words
    )
    assert 'class="curve second"' in text


def test_tables_are_files(text: str):
    read = Reader(text)
    assert len(tables(text)) == len(read.all("table")) - len([
        one for one in read.all("table") if "matrix" in one["class"]
    ])
    assert all(
        rows and all(len(row) == len(rows[0]) for row in rows) for rows in tables(text).values()
    )


def test_a_cell_is_its_words():
    head = ["", tag("span", tag("span", class_="swatch"), "SimA"), "x"]
    rows = [
        [
            "a",
            tag("span", "one", tag("small", "two")),
            Html("<svg><title id='t'>0.9 to 1</title><text>1</text></svg>"),
        ]
    ]
    assert as_csv(head, rows) == ",SimA,x\na,one two,0.9 to 1\n"
    odd = [["=1+1", "@x", "−1.5", "–", "97.0\N{NARROW NO-BREAK SPACE}%", "a,b", None, "-rm"]]
    assert as_csv([], odd) == "\n'=1+1,'@x,-1.5,,97.0 %,\"a,b\",,'-rm\n"


def test_every_figure_is_enlarged_by_a_click_without_a_script(text: str):
    read = Reader(text)
    assert not read.all("script")
    boxes = read.all("input")
    assert all(
        box["type"] == "checkbox" and box["aria-label"].startswith("enlarge ") for box in boxes
    )
    assert len(boxes) == len(read.all("img")) + len([
        one for one in read.all("svg") if one.get("class") != "strip"
    ])
    assert ".zoom input:checked + *" in text
