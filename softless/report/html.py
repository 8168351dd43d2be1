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


def enlarged(picture: Html, name: str) -> Html:
    """A picture that fills the window when it is clicked, and goes back at the next click or the
    space bar: a checkbox and CSS, no script.
    """
    return tag(
        "label", tag("input", type="checkbox", aria_label=f"enlarge {name}"), picture, class_="zoom"
    )


def details(summary: str, *children: Any) -> Html:
    return tag("details", tag("summary", summary), *children)
