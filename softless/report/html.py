"""HTML in a few functions: whatever is not already `Html` is escaped, so a file name or a class
name can never become markup. Signs that are not seen are shown.
"""

from html import escape
from typing import Any

from softless.words import visible


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


VOID = frozenset({
    "br",
    "img",
    "input",
    "meta",
    "hr",
    "line",
    "circle",
    "rect",
    "path",
    "polyline",
    "link",
})


def tag(_name: str, *children: Any, **attributes: Any) -> Html:
    """An element.

    Attributes drop a trailing underscore (`class_`) and turn others into hyphens; None leaves one
    out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(visible(value, lines=True))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if _name in VOID and not children:
        return Html(f"<{_name}{written}/>")
    return Html(f"<{_name}{written}>{join(*children)}</{_name}>")


def join(*children: Any) -> Html:
    """Children one after the other: None is left out, lists are opened, other text is escaped."""
    parts: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, list | tuple):
            parts.append(join(*child))
        else:
            parts.append(
                child
                if isinstance(child, Html)
                else escape(visible(child, lines=True), quote=False)
            )
    return Html("".join(parts))


def section(identifier: str, heading: str, *children: Any, lead: Any = None) -> Html:
    """A part of the page with its heading and, under it, a sentence on how to read it."""
    return tag(
        "section",
        tag("h2", heading, id=identifier),
        tag("p", lead, class_="lead") if lead else None,
        *children,
        aria_labelledby=identifier,
    )


def table(head: list[Any], rows: list[list[Any]], *, caption: str, class_: str = "plain") -> Html:
    """A table whose first column heads its rows, with its CSV behind a link, in a box that scrolls
    sideways on a narrow screen.
    """
    from softless.report.downloads import csv_link

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


def enlarged(picture: Html, name: str) -> Html:
    """A picture that fills the window when it is clicked, and goes back at the next click or the
    space bar: a checkbox and CSS, no script.
    """
    return tag(
        "label", tag("input", type="checkbox", aria_label=f"enlarge {name}"), picture, class_="zoom"
    )


def details(summary: str, *children: Any) -> Html:
    return tag("details", tag("summary", summary), *children)
