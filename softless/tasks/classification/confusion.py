"""Which classes are taken for which: counts over all seeds, as a coloured table, or as a list where
there are many classes.
"""

import numpy as np
from numpy.typing import NDArray

from softless.report.groups import Group
from softless.report.html import Html, tag
from softless.report.numbers import percent

MOST = 24  # classes; above, a matrix tells less than its largest entries


def confusion(group: Group) -> NDArray[np.int64]:
    """(K, K) counts: rows are the truth, columns what the model said; seeds added up."""
    total = np.zeros((len(group.first.classes),) * 2, dtype=np.int64)
    for run in group.runs:
        if run.predictions is not None:
            np.add.at(total, (run.predictions.targets, run.predictions.predicted), 1)
    return total


def draw_confusion(group: Group, counts: NDArray[np.int64], unit: str = "images") -> Html:
    """One model's counts (K, K) as a matrix, or in words where there are many classes; `unit` is
    what is counted.
    """
    return draw_counts(group.label, group.colour, group.first.classes, counts, unit)


def draw_counts(
    label: str, colour: str, classes: tuple[str, ...], counts: NDArray[np.int64], unit: str
) -> Html:
    """Counts (K, K) under a heading with a colour."""
    heading = tag("h3", tag("span", class_=f"swatch {colour}"), label)
    if not counts.sum():
        return tag("div", heading, tag("p", "No test predictions.", class_="note"))
    body = _matrix(classes, counts, label, colour, unit) if len(classes) <= MOST else None
    return tag(
        "div",
        heading,
        body,
        tag("p", _in_words(classes, counts), class_="note"),
        class_="confusion",
    )


def _matrix(
    classes: tuple[str, ...], counts: NDArray[np.int64], label: str, colour: str, unit: str
) -> Html:
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    rows = []
    for truth, name in enumerate(classes):
        cells = [
            _cell(classes, counts, shares, truth, predicted) for predicted in range(len(classes))
        ]
        recall = tag(
            "td",
            percent(shares[truth, truth], 0),
            class_="recall",
            title=f"of {counts[truth].sum()} {unit} of {name}",
        )
        rows.append(tag("tr", tag("th", name, scope="row"), cells, recall))
    long_names = max(map(len, classes)) > 3
    head = [
        tag("th", tag("span", name), scope="col", class_="up" if long_names else None)
        for name in classes
    ]
    return tag(
        "div",
        tag(
            "table",
            tag(
                "caption",
                f"Rows: truth. Columns: what {label} said. Last column: share of the class found.",
            ),
            tag(
                "thead",
                tag("tr", tag("td"), head, tag("th", "found", scope="col", class_="recall")),
            ),
            tag("tbody", rows),
            class_=f"matrix {colour}" + (" many" if len(classes) > 12 else ""),
        ),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=f"confusion of {label}",
    )


def _cell(
    classes: tuple[str, ...],
    counts: NDArray[np.int64],
    shares: NDArray[np.float64],
    truth: int,
    predicted: int,
) -> Html:
    number, share = int(counts[truth, predicted]), shares[truth, predicted]
    if not number:
        return tag("td", class_="none")
    correct = truth == predicted
    # A mistake is rare and must be seen: its tint starts at a quarter. The right answers' tint
    # follows their share.
    depth = round(100 * share) if correct else round(25 + 75 * min(1, 4 * share))
    meaning = (
        f"{number} of class {classes[truth]} called {classes[predicted]} ({100 * share:.1f} %)"
    )
    return tag(
        "td",
        number,
        class_="right" if correct else "wrong",
        style=f"--depth:{depth}%",
        title=meaning,
    )


def _in_words(classes: tuple[str, ...], counts: NDArray[np.int64]) -> str:
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    if not wrong.sum():
        return f"All {counts.sum()} answers are right."
    worst = np.argsort(wrong, axis=None)[::-1][: 5 if len(classes) <= MOST else 20]
    mistakes = [
        f"{classes[truth]} taken for {classes[predicted]} ({wrong[truth, predicted]})"
        for truth, predicted in (np.unravel_index(flat_index, wrong.shape) for flat_index in worst)
        if wrong[truth, predicted]
    ]
    return f"{wrong.sum()} of {counts.sum()} answers are wrong; most often {', '.join(mistakes)}."
