"""tools/prose.py counts what it says, and what was won stays."""

from pathlib import Path

import pytest

from tools import prose

ROOT = Path(__file__).resolve().parents[2]
LONG = " ".join(["word"] * 31)
MODULE = f'''"""A file. {LONG.capitalize()}."""

class Thing:
    """Short.

    Args:
        x: {LONG}.
    """

    def __init__(self, told, x={"x" * 90!r}):
        self.made, name = told, x


def _private():
    """{LONG.capitalize()}."""
'''
README = f"""# Title

{LONG.capitalize()}. And a short one.
A second short one.

- {LONG}

    {LONG} in code

| {LONG} | in a table |

```
{LONG}
```

<!-- generated: x (tools/tables.py) -->
{LONG}
<!-- end generated -->
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "softless").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "softless" / "x.py").write_text(MODULE)
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "CONTRIBUTING.md").write_text("Short.\n")
    return tmp_path


def test_sentences_are_those_of_plain_text_and_public_docstrings(tree: Path):
    sentences = prose.all_sentences(tree)
    assert sorted(sentence.words for sentence in sentences) == [1, 1, 1, 2, 4, 4, 31, 31, 31]
    assert {sentence.path.name for sentence in sentences if sentence.words > 30} == {
        "README.md",
        "x.py",
    }


def test_the_table(tree: Path):
    found = prose.table(tree)
    assert found["sentences over 30 words"] == "3 of 9 (33.3%)"
    assert found["vague names"] == "2 of 5 (40.0%)"  # told, made; self, x, name
    assert found["longest line of a signature"] == "125"
    assert found["lines over 100 characters"].startswith("4 of ")
    assert found["fmt: skip"] == "0"


def test_what_was_won_stays():
    """Of the house itself; the counts only go down."""
    found = prose.table(ROOT)
    assert found["fmt: skip"] == "0"
    assert int(found["longest line of a signature"]) <= 100
    over, lines = found["lines over 100 characters"].split(" (")[0].replace(",", "").split(" of ")
    assert int(over) < 0.01 * int(lines)
    over, sentences = found["sentences over 30 words"].split(" (")[0].replace(",", "").split(" of ")
    assert int(over) <= 0.03 * int(sentences)
    vague, names = found["vague names"].split(" (")[0].replace(",", "").split(" of ")
    assert int(vague) <= 0.01 * int(names)


def test_it_prints_a_table(capsys: pytest.CaptureFixture[str], tree: Path):
    assert prose.main(["--list"], tree) == 0
    said = capsys.readouterr().out
    assert "README.md: 31 words" in said
    assert "softless/x.py: {'told': 1, 'made': 1}" in said
