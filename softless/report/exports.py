"""What was exported of a run: a line for each file, and why one must not be used.

The section also goes into a page that is there, without drawing the rest anew. So a page keeps
pictures of test images that have gone since, and speeds that were measured once.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from softless.report.groups import Group
from softless.report.html import Html, section, tag
from softless.report.numbers import THIN, percent, size
from softless.report.tables import table
from softless.words import counted

PLACE, HEADING = "exported", "Exported files"
BEFORE = "recipe"  # the section that it stands before
LEAD = (
    "Each file was run beside the model and searched for what is no sum, product or root. "
    "A difference is relative to the largest answer; in brackets Wilson's "
    "95\N{NARROW NO-BREAK SPACE}% interval."
)
_THERE = re.compile(rf'<section aria-labelledby="{PLACE}">.*?</section>', re.DOTALL)
_LINK = f'<a href="#{PLACE}">{HEADING}</a>'

Row = Mapping[str, Any]


def draw_exports(groups: Sequence[Group]) -> Html | None:
    """The section, or None where nothing was exported."""
    runs = [(group, run) for group in groups for run in group.runs]
    rows = [(_whose(groups, group, run), row) for group, run in runs for row in run.exports]
    return drawn(rows) if rows else None


def drawn(rows: Sequence[tuple[Any, Row]]) -> Html:
    """The section of these files, each with the model it was made of, or None on a page of one."""
    several = any(whose is not None for whose, _ in rows)
    head = ["file", *(["of"] if several else []), "checks", "form", "largest difference"]
    head += ["transcendental", "test images", "the model there", "answers alike", "size"]
    body = [[row["file"], *([whose] if several else []), *_cells(row)] for whose, row in rows]
    sentences = [sentence for _, row in rows for sentence in _sentences(row)]
    return section(
        PLACE,
        HEADING,
        table(head, body, caption=_caption([row for _, row in rows]), class_="plain listed"),
        [tag("p", sentence, class_="note") for sentence in dict.fromkeys(sentences)],
        lead=LEAD,
    )


def with_exports(page: str, part: Html) -> str | None:
    """A page with this section in it, in the place of an older one; None where it is no page that
    has a place for it.
    """
    if _THERE.search(page):
        return _THERE.sub(lambda _: part, page, count=1)
    anchors = (f'<a href="#{BEFORE}">', f'<section aria-labelledby="{BEFORE}">')
    if any(page.count(anchor) != 1 for anchor in anchors):
        return None
    for anchor, ahead in zip(anchors, (_LINK, part), strict=True):
        page = page.replace(anchor, f"{ahead}{anchor}")
    return page


def _caption(rows: Sequence[Row]) -> str:
    counts = {row["measured"]["images"] for row in rows if row.get("measured")}
    images = [counted(number, "test image") for number in sorted(counts)]
    return "Files of softless export" + (f", measured on {' or '.join(images)}" if images else "")


def _whose(groups: Sequence[Group], group: Group, run: Any) -> Html | None:
    """The model, and its seed where it has several."""
    if len(groups) == 1 and len(group.runs) == 1:
        return None
    seed = f", seed {run.seed}" if len(group.runs) > 1 else ""
    return tag("span", tag("span", class_=f"swatch {group.colour}"), f"{group.label}{seed}")


def _cells(row: Row) -> list[Any]:
    measured = row.get("measured")
    return [
        "passed" if row["ok"] else tag("span", "failed", class_="wrong"),
        _form(row),
        f"{row['parity']['difference']:.1e}" if row.get("parity") else "–",
        _kinds(row.get("transcendentals")),
        _share(measured),
        percent(measured["plain"]) if measured else "–",
        percent(measured.get("agreement")) if measured else "–",
        size(row["bytes"]),
    ]


def _form(row: Row) -> str:
    height, width = row["size"]
    free = {"batch": "any batch", "size": "any size", "both": "any batch and size"}
    words = [
        row["form"],
        f"{height}{THIN}×{THIN}{width}" if row.get("dynamic") in {None, "batch"} else "",
        free.get(str(row.get("dynamic")), ""),
        "of bytes" if row["pixels"] == "uint8" else "",
    ]
    return ", ".join(word for word in words if word)


def _kinds(kinds: Mapping[str, int] | None) -> str:
    if kinds is None:
        return "–"
    return ", ".join(sorted(kinds)) or "none"


def _share(measured: Mapping[str, Any] | None) -> str:
    if not measured:
        return "–"
    text = percent(measured["value"])
    if measured["metric"] != "top1":
        text = f"{measured['metric'].replace('_', ' ')} {text}"
    if not measured.get("interval"):
        return text
    low, high = measured["interval"]
    return f"{text} ({100 * low:.1f} to {100 * high:.1f})"


def _sentences(row: Row) -> list[str]:
    """Why a file failed, why it has the form it has, what was tried before."""
    sentences = [f"{row['file']} must not be used: {fault}." for fault in row["faults"]]
    if row["why"]:
        sentences.append(f"{row['file']} has the plain form: {row['why']}.")
    if row["int8"] != "none":
        sentences.append(f"{row['file']} is in eight bits: {row['int8']}.")
    sentences += [
        f"{row['file']}: tried before and not kept: {recipe} ({why})."
        for recipe, why in row["tried"].items()
    ]
    return [*sentences, *(f"{row['file']}: {note}." for note in row["notes"])]
