"""An SVG of matplotlib for everybody: a title, its words as a description, and colours that turn
with a dark page.
"""

import re
from html import escape, unescape

NUMBER = re.compile(r"[\d.,×\s+-]+(px)?")
DARK = "@media (prefers-color-scheme: dark) { #figure_1 { filter: invert(1) hue-rotate(180deg) } }"
OPENING = re.compile(r"<svg [^>]*>", re.DOTALL)
ADDED = re.compile(r"\n <title id=\"title\">.*?</style>", re.DOTALL)
ROLE = ' role="img" aria-labelledby="title description"'


def readable(svg: str, title: str) -> str:
    """The drawing with `title` and a description, in whose place a screen reader would find paths
    alone.

    Light is exchanged for dark where the page is dark, and hues stay. Of a drawing that is readable
    already the title is exchanged.
    """
    bare = ADDED.sub("", svg).replace(ROLE, "")
    opening = OPENING.search(bare)
    assert opening, "matplotlib writes one svg element"
    head = "".join([
        f'\n <title id="title">{escape(title)}</title>',
        f'\n <desc id="description">{escape(described(bare))}</desc>',
        f"\n <style>{DARK}</style>",
    ])
    return f"{bare[: opening.end() - 1]}{ROLE}>{head}{bare[opening.end() :]}"


def described(svg: str) -> str:
    """What is written in the drawing but for numbers: panels, axes and the names of the lines.
    matplotlib leaves it as comments.
    """
    words = [unescape(comment) for comment in re.findall(r"<!-- (.*?) -->", svg, re.DOTALL)]
    labels = dict.fromkeys(
        " ".join(word.split()) for word in words if not NUMBER.fullmatch(word.strip())
    )
    return (
        f"A chart with these words: {'; '.join(labels)}. The numbers are in the table beside it."
        if labels
        else "A chart."
    )
