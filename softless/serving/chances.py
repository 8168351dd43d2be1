"""Classes and what is given to each, as bars."""

from collections.abc import Mapping

from softless.report.html import Html, details, tag
from softless.report.numbers import percent
from softless.words import counted

FIRST = 8  # classes that are listed before the rest is folded


def shares(chances: Mapping[str, float], chosen: set[str]) -> Html:
    """Names with their shares, the largest first; what follows is folded."""
    ordered = sorted(chances.items(), key=lambda entry: -entry[1])
    rows = [_share(name, share, chosen=name in chosen) for name, share in ordered]
    rest = rows[FIRST:]
    folded = details(
        f"{counted(len(rest), 'more class', 'more classes')}", tag("ul", rest, class_="shares")
    )
    return tag("div", tag("ul", rows[:FIRST], class_="shares"), folded if rest else None)


def _share(name: str, share: float, *, chosen: bool) -> Html:
    bar = tag(
        "svg",
        tag("rect", width=f"{100 * share:.2f}", height="4", rx="0"),
        viewBox="0 0 100 4",
        preserveAspectRatio="none",
        aria_hidden="true",
        class_="bar",
    )
    head = tag("span", name, class_="class-name"), tag("span", percent(share, 2), class_="sure")
    return tag("li", tag("div", head), bar, class_="chosen" if chosen else None)
