"""Numbers and names in sentences: with the right noun, with the digits that say something, and with
nothing that steers a terminal.
"""

from collections.abc import Iterable, Sequence
from typing import Any
from unicodedata import category, normalize

POINTER = b"version https://git-lfs"  # begins a file that stands for another
POINTED = "a Git LFS pointer and not the file itself: fetch it with git lfs pull"
ALIKE = "differ only in case, or in how an accent is encoded; rename or merge them"
NO_TEXT = "a name that is not UTF-8, and results and pages name their classes: rename it"
SPACE = "Zs"  # of Unicode: the narrow space between thousands is one


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """A number with its noun.

    >>> counted(1, "image"), counted(1200, "image"), counted(0, "class", "classes")
    ('1 image', '1,200 images', '0 classes')
    """
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def few(items: Iterable[str], show: int = 10) -> str:
    """The first of them, ten if not told otherwise, then a count.

    >>> few("abc", 2)
    'a, b and 1 more'
    """
    listed = list(items)
    rest = f" and {len(listed) - show} more" if len(listed) > show else ""
    return ", ".join(listed[:show]) + rest


def rate(per_second: float) -> str:
    """A rate with the digits that say something: never 0 for what moves.

    >>> rate(1234.5), rate(7.26), rate(0.0312), rate(0.0)
    ('1,234', '7.3', '0.031', '0')
    """
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"


def visible(text: object, *, lines: bool = False) -> str:
    r"""Text that a terminal or a page may show: what steers it, turns its order or is no text
    stands as an escape.

    Names come from files, and may hold anything: colour codes, line breaks, signs that turn the
    direction of writing, bytes that are not UTF-8. Every output for people passes here.

    Args:
        text: what is shown; `str` of it.
        lines: keep line breaks, for text of several lines.

    >>> visible("a\x1b[2Jb\n\u202ecod.exe"), visible("one\ntwo", lines=True)
    ('a\\x1b[2Jb\\n\\u202ecod.exe', 'one\ntwo')
    """
    text = str(text)
    if text.isprintable():
        return text
    allowed = "\n" if lines else ""
    return "".join(
        c if c.isprintable() or c in allowed or category(c) == SPACE else repr(c)[1:-1]
        for c in text
    )


def clipped(text: object, limit: int = 200) -> str:
    """Text as a sentence repeats it: whole, or its beginning where it is longer than anybody reads.

    >>> clipped("abcdef", limit=4)
    'abcd… (6 signs)'
    """
    text = str(text)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text):,} signs)"


def aligned(pairs: Iterable[tuple[object, object]]) -> list[str]:
    """Names and what is said of each, in two columns.

    >>> aligned([("cat", 3), ("horse", 12)])
    ['  cat    3', '  horse  12']
    """
    rows = [(visible(name), value) for name, value in pairs]
    width = max((len(name) for name, _ in rows), default=0)
    return [f"  {name:<{width}}  {value}" for name, value in rows]


def is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8: names of files may hold bytes that are no text, and
    JSON halves of signs.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_cell(text: str) -> str:
    """Text for a cell of a csv file: where a spreadsheet would run it as a formula, an apostrophe
    stands before it.

    >>> as_cell("=1+1"), as_cell("-cat"), as_cell("cat")
    ("'=1+1", "'-cat", 'cat')
    """
    return f"'{text}" if text.lstrip(" ").startswith(FORMULAS) else text


# the wide signs count in some languages
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def composed(name: str) -> str:
    """A class's name, whose accents some file systems write apart from their letters."""
    return normalize("NFC", name)


def twins_of(names: Iterable[str]) -> dict[str, str]:
    """Names that people read as one before them: name -> that one."""
    first_by_form: dict[str, str] = {}
    first = {name: first_by_form.setdefault(composed(name).casefold(), name) for name in names}
    return {name: twin for name, twin in first.items() if twin != name}


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns for a terminal: the first flush left, the others flush right.

    A row is one line, whatever its names hold.
    """
    cells = [list(map(visible, row)) for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def said_columns(
    head: Sequence[str], rows: Sequence[Sequence[str]], nothing: str = "-"
) -> tuple[list[str], list[list[str]]]:
    """Head and rows without the columns that say nothing in any row.

    >>> said_columns(["a", "b", "c"], [["1", "-", "2"], ["3", "-", "-"]])
    (['a', 'c'], [['1', '2'], ['3', '-']])
    """
    kept = [column for column in range(len(head)) if any(row[column] != nothing for row in rows)]
    return [head[column] for column in kept], [[row[column] for column in kept] for row in rows]
