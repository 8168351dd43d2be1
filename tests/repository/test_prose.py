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


def with_shape(x: Tensor):
    """Of (B, N, C)."""


def without_shape(x: Tensor): ...
'''
TENSORS = '''
from torch import Tensor
from torch.autograd import Function


class Layer:
    """x (B, N, C)."""

    def forward(self, x: Tensor) -> Tensor: ...
    def sides(self, x: Tensor) -> Tensor: ...
    def _private(self, x: Tensor) -> Tensor: ...


class Derivative(Function):
    def forward(x: Tensor) -> Tensor: ...
    def called(x: Tensor) -> Tensor: ...


class Second(Derivative):
    def backward(x: Tensor) -> Tensor: ...


def state(x: dict[str, Tensor], pairs: Iterable[tuple[str, Tensor]]) -> "Mapping[str, int]": ...


def read(x: Mapping[str, Tensor]) -> Tensor:
    """Positions (kept, cut off) as kernel(a, a) gives them (ours, design §4); run()."""


def count(x: int) -> int: ...
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
    assert sorted(sentence.words for sentence in sentences) == [1, 1, 1, 2, 4, 4, 4, 31, 31, 31]
    assert {sentence.path.name for sentence in sentences if sentence.words > 30} == {
        "README.md",
        "x.py",
    }


def test_the_table(tree: Path):
    found = prose.table(tree)
    assert found["sentences over 30 words"] == "3 of 10 (30.0%)"
    assert found["vague names"] == "2 of 7 (28.6%)"  # told, made; self, x (3), name
    assert found["longest line of a signature"] == "125"
    assert found["lines over 100 characters"].startswith("4 of ")
    assert found["fmt: skip"] == "0"
    assert found["tensors without a shape"] == "1 of 2 (50.0%)"


def test_functions_of_tensors_whose_docstring_states_no_shape(tmp_path: Path):
    """`forward` has it from its class; mappings, and what autograd prescribes, need none."""
    path = tmp_path / "x.py"
    path.write_text(TENSORS)
    assert dict(prose.functions_of_tensors(path)) == {
        "Layer.forward": True,
        "Layer.sides": False,
        "Derivative.called": False,
        "read": False,
    }


@pytest.mark.parametrize(
    "text",
    [
        "x (B, N, C).",
        "x (B,H,N,D) -> y",
        "(…, 3 H D)",
        "(...,n,m)",
        "of targets (n,)",
        "(h, w, 3)",
        "(h, w, 1 or 3)",
        "(B, [class token] + N, C)",
        "(B, C', h / 2, w / 2)",
        "(B or 1, 1, n, R)",
        "The mean loss ().",
        "A 0-d tensor.",
        "Of any shape.",
        "Tensors of one shape.",
        "Of the same shape.",
        "Zeros of the shape of x.",
    ],
)
def test_what_states_a_shape(text: str):
    assert prose.shaped(text)


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
    without, functions = found["tensors without a shape"].split(" (")[0].split(" of ")
    assert int(functions) > 400
    assert int(without) <= 0.02 * int(functions)


def test_it_prints_a_table(capsys: pytest.CaptureFixture[str], tree: Path):
    assert prose.main(["--list"], tree) == 0
    said = capsys.readouterr().out
    assert "README.md: 31 words" in said
    assert "softless/x.py: {'told': 1, 'made': 1}" in said
    assert "softless/x.py: no shape: without_shape" in said
    assert "no shape: with_shape" not in said
