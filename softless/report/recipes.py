"""How the models were trained: the fields in which their recipes differ, and those they share."""

from collections.abc import Sequence
from typing import Any

from softless.report.groups import Comparison, Group, compare_recipes
from softless.report.html import Html, details, table, tag
from softless.report.numbers import MINUS, plain


def draw_recipes(groups: Sequence[Group]) -> Html:
    compared = compare_recipes(groups)
    return tag(
        "div", _differing(groups, compared) if len(groups) > 1 else None, _shared(compared, alone=len(groups) == 1)
    )


def _differing(groups: Sequence[Group], compared: Comparison) -> Html:
    if not compared.differing:
        return tag("p", "The recipes are the same in every field.", class_="note")
    head = ["field", *(tag("span", tag("span", class_=f"swatch {group.colour}"), group.label) for group in groups)]
    rows: list[list[Any]] = [
        [tag("code", name), *("not set" if value is None else written(value) for value in values)]
        for name, values in compared.differing.items()
    ]
    return table(head, rows, caption=f"What differs: {len(rows)} of {len(rows) + len(compared.shared)} fields")


def _shared(compared: Comparison, *, alone: bool) -> Html:
    parts: dict[str, list[Html]] = {}
    for name, value in compared.shared.items():
        part, _, rest = name.rpartition(".")
        parts.setdefault(part or "run", []).append(tag("div", tag("dt", rest), tag("dd", written(value))))
    boxes = [tag("div", tag("h4", part), tag("dl", items), class_="fields") for part, items in parts.items()]
    summary = (
        f"The recipe: {len(compared.shared)} fields" if alone else f"What is shared: {len(compared.shared)} fields"
    )
    return details(summary, tag("div", boxes, class_="field-groups"))


def written(value: Any) -> str:
    """A recipe's value for people."""
    if value is None or value == {}:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return plain(value)
    if isinstance(value, list | tuple):
        return ", ".join(written(item) for item in value)
    return str(value).replace("-", MINUS) if isinstance(value, int) else str(value)
