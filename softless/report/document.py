"""A page as one file: its head, style and foot around the sections that it is made of."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import softless
from softless.report.html import Html, tag

# The browser is told to fetch nothing, so that a page cannot call home even if a name in it tried
# to.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def document(
    eyebrow: str,
    title: str,
    subtitle: str,
    sections: Sequence[Html],
    links: Mapping[str, str],
) -> str:
    """A page as text: one file with its style, which loads nothing and runs nothing.

    Args:
        eyebrow: what kind of page it is.
        title: its heading.
        subtitle: what stands below.
        sections: its parts, of `report.html.section`.
        links: identifier -> name, of parts that the head links to where they are there.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(_style())),
    )
    main = tag("main", sections)
    top = _top(eyebrow, title, subtitle, [item for item in links.items() if _in(item[0], main)])
    body = tag("body", top, main, _foot())
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _in(identifier: str, main: Html) -> bool:
    return f'id="{identifier}"' in main


def _top(eyebrow: str, title: str, subtitle: str, links: Sequence[tuple[str, str]]) -> Html:
    return tag(
        "header",
        tag("p", eyebrow, class_="eyebrow"),
        tag("h1", title),
        tag("p", subtitle, class_="subtitle"),
        tag(
            "nav",
            [tag("a", name, href=f"#{to}") for to, name in links],
            aria_label="parts of this page",
        ),
        class_="top",
    )


def _foot() -> Html:
    return tag(
        "footer",
        tag(
            "p",
            f"Written by softless {getattr(softless, '__version__', '')}. One file, no requests, "
            "no scripts.",
        ),
    )


def _style() -> str:
    return Path(__file__).with_name("page.css").read_text(encoding="utf-8")
