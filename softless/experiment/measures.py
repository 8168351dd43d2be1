"""The measures of all tasks: what each is called, how it is written, and whether more is better."""

from collections.abc import Mapping
from typing import Any

from softless.experiment.measure import Measure
from softless.tasks.folders import of_tasks

# those of each task in turn
MEASURES: Mapping[str, Measure] = {
    **{
        name: measure
        for module in of_tasks("scores").values()
        for name, measure in module.MEASURES.items()
    },
    "loss": Measure("loss", "lowest loss", higher=False),
}


def describe(scores: Mapping[str, Any]) -> str:
    """The measures among these numbers in a line for people."""
    parts = [
        f"{measure.title} {measure.write(scores[name])}"
        for name, measure in MEASURES.items()
        if scores.get(name) is not None and name != "last"
    ]
    parts += [baseline] if (baseline := against(scores)) else []
    unit = scores.get("unit", "images")
    return f"{', '.join(parts)} ({scores['seen']} of {scores['expected']} {unit})"


def against(scores: Mapping[str, Any]) -> str:
    """What the accuracy among these numbers is held against, or nothing where there is none."""
    if scores.get("commonest") is None:
        return ""
    return beside(scores["commonest"], scores.get("chance"))


def beside(commonest: float, chance: float | None = None) -> str:
    """What an accuracy is held against: always the commonest class, and guessing with every class
    as likely.
    """
    chance_text = "" if chance is None else f", chance {chance:.1%}"
    return f"always the commonest class {commonest:.1%}{chance_text}"
