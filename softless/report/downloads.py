"""A table of the page as a file: a link that carries the CSV itself, so that nothing is
requested.
"""

import base64
import csv
import io
import re
from collections.abc import Sequence
from html import unescape
from typing import Any

from softless.report.html import Html, tag
from softless.report.numbers import MINUS, THIN
from softless.words import visible

# a drawing in a cell stands for its words
DRAWN = re.compile(r"<svg\b.*?<title[^>]*>(.*?)</title>.*?</svg>", re.DOTALL)
MARKUP = re.compile(r"<[^>]*>")
NUMBER = re.compile(r"[-+]?[\d.,]+(\s*%)?$")
FORMULA = ("=", "+", "-", "@")  # how a spreadsheet's formulas begin


def csv_link(head: Sequence[Any], rows: Sequence[Sequence[Any]], name: str) -> Html:
    """The link; `name` becomes the file's."""
    file = re.sub(r"[^a-z0-9]+", "_", visible(name).lower()).strip("_")[:60] or "table"
    coded = base64.b64encode(as_csv(head, rows).encode("utf-8")).decode("ascii")
    return tag(
        "a",
        "CSV",
        href=f"data:text/csv;charset=utf-8;base64,{coded}",
        download=f"{file}.csv",
        class_="csv",
        aria_label=f"{name} as CSV",
    )


def as_csv(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """The cells' words, one line for each row; what a spreadsheet would take for a formula is
    quoted.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([list(map(_plain, row)) for row in (head, *rows)])
    return file.getvalue()


def _plain(cell: Any) -> str:
    text = (
        unescape(MARKUP.sub(" ", DRAWN.sub(r"\1", cell)))
        if isinstance(cell, Html)
        else visible("" if cell is None else cell)
    )
    words = " ".join(text.replace(MINUS, "-").replace(THIN, " ").split())
    words = "" if words == "–" else words
    return f"'{words}" if words.startswith(FORMULA) and not NUMBER.match(words) else words
