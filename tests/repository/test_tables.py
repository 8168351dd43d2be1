"""tools/tables.py: generated blocks are written, found stale, and refused when nothing can write
them.
"""

import re

import pytest

from tests.conftest import ROOT
from tools import tables


@pytest.fixture
def documents(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "speed.csv").write_text(
        "operator,median_ms,commit,machine\nsima,1.5,abc,two cores\nsoftmax,2.25,abc,two cores\n"
    )
    return tmp_path


def block(name: str, inside: str = "old\n") -> str:
    return (
        f"before\n<!-- generated: {name} (tools/tables.py) -->\n{inside}<!-- end generated "
        "-->\nafter\n"
    )


def test_no_documents_is_no_error(tmp_path):
    assert tables.main([], tmp_path) == 0
    assert tables.main(["--check"], tmp_path) == 0


def test_a_stale_block_is_named_then_rewritten_then_fresh(documents, capsys):
    text = documents / "docs" / "speed.md"
    text.write_text("# Speed\n" + block("csv speed") + block("csv speed operator", ""))
    before = text.read_text()
    assert tables.main(["--check"], documents) == 1
    shown = capsys.readouterr().out
    assert "docs/speed.md: block 'csv speed' is stale" in shown
    assert "block 'csv speed operator' is stale" in shown
    assert text.read_text() == before

    assert tables.main([], documents) == 0
    assert tables.main(["--check"], documents) == 0
    written = text.read_text()
    assert (
        "| operator | median ms |\n| --- | ---: |\n| sima | 1.5 |\n| softmax | 2.25 "
        "|\n\nMeasured: commit abc; machine two cores.\n<!-- end" in written
    )
    assert "-->\n| operator |\n| --- |\n| sima |\n| softmax |\n" in written
    assert written.count("before\n") == written.count("\nafter\n") == 2

    text.write_text(written.replace("2.25", "2.26"))
    assert tables.main(["--check"], documents) == 1
    (documents / "benchmarks" / "speed.csv").write_text("operator\nsima\n")
    text.write_text(written)
    assert tables.main(["--check"], documents) == 1


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (block("operaters"), "block 'operaters': no such block; known: operators"),
        (block("csv nothing"), "block 'csv nothing': nothing.csv is not in benchmarks/"),
        (
            block("csv speed length"),
            "block 'csv speed length': speed.csv has no column length; it has operator, median_ms",
        ),
        (
            block("csv speed").replace("<!-- end generated -->", ""),
            "block 'csv speed' has no '<!-- end generated -->'",
        ),
        (
            block("csv speed").replace("<!-- end generated -->", block("csv speed")),
            "block 'csv speed' has no",
        ),
    ],
)
def test_a_block_that_cannot_be_written_is_an_error(documents, capsys, text, error):
    readme = documents / "README.md"
    readme.write_text(text)
    for arguments in ([], ["--check"]):
        assert tables.main(arguments, documents) == 2
        assert f"README.md: {error}" in capsys.readouterr().err
        assert readme.read_text() == text


def test_rows_are_chosen_and_fractions_rounded(documents):
    file = documents / "benchmarks" / "twins.csv"
    file.write_text(
        "kind,operator,accuracy,seed\nrun,sima,0.9723456,1\nmean,sima,0.971,\nmean,softmax,1e-07,\n"
    )
    shown = tables.render("csv twins kind=run", documents)
    assert shown.splitlines()[2:] == ["| sima | 0.9723 | 1 |"]
    assert tables.render("csv twins operator accuracy kind=mean", documents).splitlines()[2:] == [
        "| sima | 0.971 |",
        "| softmax | 1e-07 |",
    ]
    with pytest.raises(tables.BlockError, match=r"twins\.csv has no row with kind=median"):
        tables.render("csv twins kind=median", documents)


def test_the_tables_of_errors_show_the_worst_family_and_name_it_far_above_the_claim(documents):
    lines = [
        (
            "operator,form,options,dtype,out_dtype,tokens,family,status,error,gradient_error,"
            "claim,commit"
        )
    ]
    lines += ["sima,eager,,float16,float32,49,gauss,ok,1e-4,2e-2,1e-4,abc"]
    lines += ["sima,eager,,float16,float32,49,wide,ok,3e-4,1e-2,1e-4,abc"]
    lines += ["sima,eager,,float16,float16,4096,gauss,refused,,,1e-4,abc"]
    lines += ["sima,reference,,float16,float32,49,gauss,ok,0.5,0.5,,abc"]  # stays in the file
    (documents / "benchmarks" / "operators.csv").write_text("\n".join(lines))
    value, gradient = tables.errors(documents).split("Of the gradient of q, k and v:")
    head = "| operator | form | dtype | N = 49 | N = 4,096 |"
    assert value.split("\n")[2:3] + value.split("\n")[4:6] == [
        head,
        "| `sima` | eager | float16 → float32 | 3.0e-04 |  |",
        "| `sima` | eager | float16 |  | refused |",
    ]
    assert "| `sima` | eager | float16 → float32 | 2.0e-02 gauss |  |" in gradient.splitlines()
    assert gradient.splitlines()[-1] == "Measured: commit abc."
    assert "reference" not in value + gradient


def test_the_table_of_operators():
    from softless.attention.registry import OPERATORS

    shown = tables.operators()
    assert set(re.findall(r"^\| `(\w+)`", shown, re.MULTILINE)) == set(OPERATORS)
    # 6 heads x 197 x 197; twelve blocks make 2,794,248
    assert re.search(r"\| `softmax` \|.*\| N² \| 232,854 \|", shown)
    assert re.search(
        r"\| `sima` \|.*\| N \| 0 \| \[arXiv:2206.08898\]\(https://arxiv.org/abs/2206.08898\)",
        shown,
    )
    assert set(re.findall(r"^\| \[`(\w+)`\]", tables.claims(), re.MULTILINE)) == set(OPERATORS)


def test_the_sections_of_the_operators():
    """Each says what its record says: formula, module, streaming or the reason why not, options,
    differences.
    """
    from softless.attention.registry import OPERATORS

    shown = tables.sections()
    parts = dict(
        zip(
            re.findall(r"^## (\w+)$", shown, re.MULTILINE),
            re.split(r"^## \w+$", shown, flags=re.MULTILINE)[1:],
            strict=True,
        )
    )
    assert set(parts) == set(OPERATORS)
    for name, op in OPERATORS.items():
        part = parts[name].replace("\\|", "|")
        assert op.formula in part
        assert f"softless.{op.title}" in part
        assert (op.streaming.holds if op.streaming else op.no_stream) in part
        assert all(f"`{option}`" in part for option in op.options)
        assert op.differs in part
        assert f"{op.exps(tables.block_of(op)):,} transcendentals" in part
    assert "tokens: build" not in shown
    assert "the grid of the tokens, q and k tied (k=None)" in parts["soft"]
    assert "`key_projection` 197 × 256" in parts["linformer"]
    assert "`directions` 266 × 64 (drawn, not trained)" in parts["performer"]


def test_the_table_of_models():
    """Every registered name is in it, and what it says is what is counted now."""
    from lab.sizes import listed
    from softless.compare.papers import counted
    from softless.models import ENTRIES

    shown = tables.models()
    unlisted = set(ENTRIES) - set(re.findall(r"`(\w+)`", shown))
    assert not unlisted, f"run `python -m lab models --record`, then `make tables`: {unlisted}"
    rows = tables.read_csv(ROOT / "benchmarks" / "models.csv")
    assert [row["model"] for row in rows] == listed()
    assert "| `deit_small_patch16_224` (timm) | 22,050,664 |" in shown
    for row in rows:
        if row["model"] in {
            "deit_tiny_patch16_224",
            "sima_small_12_p16",
            "sima_cvt_13_224",
            "soft_tiny_224",
        }:
            assert counted(row["model"]) == tuple(
                int(row[name]) for name in ("parameters", "macs", "exps", "activation_exps")
            )


def test_a_pipe_in_a_cell_does_not_end_it():
    assert tables.table(["a"], [["|x|"]]).endswith("| \\|x\\| |")


def test_the_blocks_of_this_repository_are_fresh(capsys):
    assert tables.main(["--check"]) == 0, capsys.readouterr()


def test_the_readme_shows_the_table_of_operators():
    assert "<!-- generated: operators (tools/tables.py) -->" in (ROOT / "README.md").read_text()
