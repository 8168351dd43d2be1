"""How the models were trained: the fields in which their recipes differ, and those they share."""

from collections.abc import Sequence
from typing import Any

from softless.attention.registry import OPERATORS
from softless.report.groups import Comparison, Group, compare_recipes
from softless.report.html import Html, details, tag
from softless.report.numbers import MINUS, plain
from softless.report.tables import table


def draw_recipes(groups: Sequence[Group]) -> Html:
    """The token scale of each model, the fields that differ, and those that are shared."""
    compared = compare_recipes(groups)
    return tag(
        "div",
        [tag("p", line, class_="note") for line in token_scales(groups)],
        _differing(groups, compared) if len(groups) > 1 else None,
        _shared(compared, alone=len(groups) == 1),
    )


def token_scales(groups: Sequence[Group]) -> list[str]:
    """A sentence for each model whose operator has a token_scale: which one it has, and what that
    means away from the training size.
    """
    sentences = []
    for group in groups:
        record = OPERATORS.get(group.first.operator)
        if record is not None and "token_scale" in record.options:
            scale = group.first.best.get("model_args", {}).get("token_scale")
            sentences.append(f"{group.label}: {_meaning(scale)}")
    return sentences


def _meaning(scale: Any) -> str:
    if scale is None:
        return (
            "token scale of the paper: on images with more tokens than in training the "
            "attention shrinks."
        )
    if scale == "tokens":
        return (
            "token scale by the number of tokens: the attention is as strong at every image size."
        )
    return (
        f"token scale of {scale} tokens, those of the training: there the paper's, and as "
        "strong at every other image size."
    )


def _differing(groups: Sequence[Group], compared: Comparison) -> Html:
    if not compared.differing:
        return tag("p", "The recipes are the same in every field.", class_="note")
    head = [
        "field",
        *(
            tag("span", tag("span", class_=f"swatch {group.colour}"), group.label)
            for group in groups
        ),
    ]
    rows: list[list[Any]] = [
        [tag("code", name), *("not set" if value is None else written(value) for value in values)]
        for name, values in compared.differing.items()
    ]
    return table(
        head,
        rows,
        caption=f"What differs: {len(rows)} of {len(rows) + len(compared.shared)} fields",
    )


def _shared(compared: Comparison, *, alone: bool) -> Html:
    parts: dict[str, list[Html]] = {}
    for name, value in compared.shared.items():
        part, _, rest = name.rpartition(".")
        parts.setdefault(part or "run", []).append(
            tag("div", tag("dt", rest), tag("dd", written(value)))
        )
    boxes = [
        tag("div", tag("h3", part), tag("dl", items), class_="fields")
        for part, items in parts.items()
    ]
    summary = (
        f"The recipe: {len(compared.shared)} fields"
        if alone
        else f"What is shared: {len(compared.shared)} fields"
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
