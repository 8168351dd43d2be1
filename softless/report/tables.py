"""Tables of a page."""

from typing import Any

from softless.report.downloads import csv_link
from softless.report.html import Html, tag


def table(head: list[Any], rows: list[list[Any]], *, caption: str, class_: str = "plain") -> Html:
    """A table whose first column heads its rows, with its CSV behind a link, in a box that scrolls
    sideways on a narrow screen.
    """
    body = [
        tag("tr", tag("th", row[0], scope="row"), [tag("td", cell) for cell in row[1:]])
        for row in rows
    ]
    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption, " ", csv_link(head, rows, caption)),
            tag("thead", tag("tr", [_head(cell) for cell in head])),
            tag("tbody", body),
            class_=class_,
        ),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=caption,
    )


def _head(cell: Any) -> Html:
    """A heading; an empty one is no heading, which a screen reader would read out."""
    return tag("th", cell, scope="col") if cell != "" else tag("td")
