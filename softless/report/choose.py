"""Which test images the page shows: the most instructive mistakes, then right answers from all
classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from softless.report.runs import HeldOutPredictions


def chosen(answers: Sequence[HeldOutPredictions], count: int = 12) -> list[int]:
    """Indices of test images: up to half wrong for some model, the surest mistakes first; the rest
    right, class by class.

    No choice is random, so the page of a run never changes.
    """
    correct = np.stack([answer.correct for answer in answers])
    surest = np.stack([
        np.where(answer.correct, 0, answer.probabilities.max(1)) for answer in answers
    ]).max(0)
    wrong = [int(i) for i in np.argsort(-surest, kind="stable") if not correct[:, i].all()]
    first, remaining = wrong[: count // 2], wrong[count // 2 :]
    spread = _spread(
        answers[0].targets,
        correct.all(0),
        count - len(first),
        shown_labels=answers[0].targets[first],
    )
    # a weak model has few right answers to show
    return [*first, *remaining[: count - len(first) - len(spread)], *spread]


def _spread(targets: np.ndarray, allowed: Any, count: int, shown_labels: np.ndarray) -> list[int]:
    """The first allowed image of each class, classes not shown yet before the others; then the
    second of each, until enough.
    """
    classes = sorted(np.unique(targets).tolist(), key=lambda label: label in shown_labels)
    of_class = [[int(i) for i in np.flatnonzero((targets == label) & allowed)] for label in classes]
    rounds = max(map(len, of_class), default=0)
    ordered = [
        members[turn] for turn in range(rounds) for members in of_class if turn < len(members)
    ]
    return ordered[:count]
