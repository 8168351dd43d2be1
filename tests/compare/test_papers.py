"""The papers' tables: printed sizes beside counted ones, and what is not here said so."""

import csv
import json
from pathlib import Path

import pytest

import softless
from softless.cli.main import main
from softless.compare import papers

KEPT = (
    "XCiT-T24/16",
    "XCiT-T24/16 -> SimA",
    "MS-MLP-T",
    "DeiT-S -> SimA",
    "DeiT-S -> SimA, ReLU for GELU",
)


@pytest.fixture
def short_table(monkeypatch):
    whole = papers.TABLES["sima-table1"]
    rows = tuple(row for row in whole.rows if row.name in KEPT)
    assert len(rows) == len(KEPT)
    monkeypatch.setattr(papers, "TABLES", {"sima-table1": papers.PaperSizes(whole.title, rows)})


@pytest.mark.soak
def test_printed_and_measured_sizes(short_table, capsys):
    assert main(["cost", "--paper", "sima-table1", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert {name: row["parameters"] for name, row in rows.items()} == {
        "XCiT-T24/16": 12_116_800 + 24 * 4,  # the temperatures
        "XCiT-T24/16 -> SimA": 12_116_800,
        "MS-MLP-T": None,
        "DeiT-S -> SimA": 22_050_664,
        "DeiT-S -> SimA, ReLU for GELU": 22_050_664,
    }
    assert [row["printed_params"] for row in rows.values()] == ["12M", "12M", "28M", "22M", "22M"]
    assert rows["XCiT-T24/16 -> SimA"]["macs"] == pytest.approx(2.336e9, rel=1e-3)
    # class attention with softmax needs the query of the class token alone
    spared = 2 * 196 * 192**2
    assert rows["XCiT-T24/16"]["macs"] == rows["XCiT-T24/16 -> SimA"]["macs"] - spared
    assert rows["DeiT-S -> SimA"]["macs"] == pytest.approx(4.357e9, rel=1e-3)
    layers, heads, width = 24, 4, 192 // 4
    # class attention: one row
    assert rows["XCiT-T24/16"]["exps"] == layers * heads * width**2 + 2 * heads * 197
    relu = rows["DeiT-S -> SimA, ReLU for GELU"]
    assert (relu["exps"], relu["activation_exps"]) == (0, 0)
    assert rows["DeiT-S -> SimA"]["activation_exps"] == 12 * 197 * 4 * 384


@pytest.mark.soak
def test_as_text_with_what_is_not_here_and_the_notes(short_table, capsys):
    assert main(["cost", "--paper", "sima-table1"]) == 0
    said = capsys.readouterr().out
    assert "not here" in next(line for line in said.splitlines() if line.startswith("MS-MLP-T"))
    assert "12,116,896" in said
    assert "DeiT-S -> SimA: the cheaper order of products" in said


def test_what_the_documents_say_of_the_recorded_tables():
    """SimA's and SOFT's rows come out as printed: parameters rounded or cut off, multiply-adds
    within 8 %; three slips apart.
    """
    rows = [
        row
        for row in recorded()
        if row["macs"]
        and ("SimA" in row["name"] or (row["model"].startswith("soft_") and not row["options"]))
    ]
    wrong = {}
    for row in rows:
        millions, billions = int(row["parameters"]) / 1e6, int(row["macs"]) / 1e9
        if float(row["printed_params"][:-1]) not in {int(millions), round(millions)}:
            wrong[row["name"], row["paper"]] = millions
        if abs(billions / float(row["printed_flops"][:-1]) - 1) > 0.08:
            wrong[row["name"], "FLOPs"] = billions
    assert sorted(wrong) == [
        ("Small, as the code builds it", "FLOPs"),
        ("Small, as the code builds it", "soft-readme"),
        ("XCiT-S12/16 -> SimA", "sima-table2"),
        ("XCiT-T20/16 -> SimA", "sima-table2"),
    ]
    assert len(rows) > 20


def test_detectors_have_the_printed_sizes():
    """Mask R-CNN and RetinaNet on XCiT, SimA, Swin and SOFT: as printed, rounded or cut off at the
    printed digit.
    """
    rows = [row for row in recorded() if "head=" in row["options"] and row["parameters"]]
    assert len(rows) == 12
    for row in rows:
        printed = row["printed_params"][:-1]
        digit = 10 ** (6 - (len(printed.partition(".")[2])))
        near = {int(row["parameters"]) // digit, round(int(row["parameters"]) / digit)}
        assert round(float(printed) * 1e6 / digit) in near, row["name"]


def recorded():
    with (Path(softless.__file__).parents[1] / "benchmarks" / "papers.csv").open(
        encoding="utf-8"
    ) as file:
        return list(csv.DictReader(file))


def test_every_model_of_the_tables_is_registered():
    from timm import is_model

    from softless.models import ENTRIES
    from softless.models.variants import VARIANTS

    hosts = {variant.name for variant in VARIANTS}
    rows = [row for one in papers.TABLES.values() for row in one.rows if row.model]
    assert not [
        row.model for row in rows if not is_model(row.model) and row.model not in {*ENTRIES, *hosts}
    ]
    assert len(rows) > 50


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--paper", "sima-table9"], "Did you mean"),
        (["--paper", "sima-table1", "--op", "sima"], "leave the other options out"),
        (["deit_tiny_patch16_224", "--paper", "sima-table1"], "leave the other options out"),
        ([], "--paper sima-table1"),
    ],
)
def test_refusals(words, message, capsys):
    assert main(["cost", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def differs(row: dict[str, str]) -> bool:
    """Whether a count is not the printed one: parameters rounded or cut off at the printed digit,
    multiply-adds within 3 %.
    """
    printed = row["printed_params"][:-1]
    digit = 10 ** (6 - len(printed.partition(".")[2]))
    near = {int(row["parameters"]) // digit, round(int(row["parameters"]) / digit)}
    off = round(float(printed) * 1e6 / digit) not in near
    return off or bool(
        row["macs"] and abs(int(row["macs"]) / 1e9 / float(row["printed_flops"][:-1]) - 1) > 0.03
    )


def test_every_row_that_differs_from_print_says_why():
    notes = {(name, row.name): row.note for name, one in papers.TABLES.items() for row in one.rows}
    counted = [row for row in recorded() if row["parameters"]]
    assert [
        (row["paper"], row["name"])
        for row in counted
        if differs(row) and not notes[row["paper"], row["name"]]
    ] == []
    assert sum(map(differs, counted)) > 10
