"""Every ```python block of README.md and docs/*.md runs: in order, one namespace per file, warnings
as errors, in an empty folder.
"""

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

DOCUMENTS = [
    path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if path.is_file()
]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def execute(path: Path) -> int:
    """Runs the blocks of a document; the lines of a traceback are those of the document.

    Returns how many there were.
    """
    text = path.read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": "__document__"}
    blocks = list(BLOCK.finditer(text))
    for block in blocks:
        lines_before = text.count("\n", 0, block.start(1))
        exec(compile("\n" * lines_before + block[1], str(path), "exec"), namespace)
    return len(blocks)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_code_of_a_document_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    execute(path)
    fences = path.read_text(encoding="utf-8").count("\n```")
    assert fences % 2 == 0, "a block is not closed"


def test_the_page_for_timm_users_has_code():
    assert len(BLOCK.findall((ROOT / "docs" / "timm.md").read_text())) >= 5


def test_an_error_in_a_document_is_seen_at_its_line(tmp_path):
    document = tmp_path / "x.md"
    document.write_text(
        "# Title\n```python\na = 1\n```\ntext\n```bash\nnot python\n```\n```python\nassert a == "
        "1\nassert a == 2\n```\n"
    )
    with pytest.raises(AssertionError) as error:
        execute(document)
    assert error.traceback[-1].lineno + 1 == 11
