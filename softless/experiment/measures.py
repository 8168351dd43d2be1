"""The measures of all tasks: what each is called, how it is written, and whether more is better."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    """One number of an evaluation."""

    title: str  # within a sentence
    best: str  # how the best value is called
    percent: bool = False
    higher: bool = True

    def write(self, value: float | None) -> str:
        """The value for people; one that cannot be computed (no class of that kind occurs) as
        n/a.
        """
        if value is None:
            return "n/a"
        return f"{value:.1%}" if self.percent else f"{value:.3f}"


MEASURES: Mapping[str, Measure] = {
    "top1": Measure("top-1", "highest accuracy", percent=True),
    "balanced_accuracy": Measure("balanced", "highest balanced accuracy", percent=True),
    "auc": Measure("AUC", "highest AUC"),
    "box_ap": Measure("box AP", "highest box AP", percent=True),
    "box_ap50": Measure("box AP50", "highest box AP50", percent=True),
    "box_ap75": Measure("box AP75", "highest box AP75", percent=True),
    "mask_ap": Measure("mask AP", "highest mask AP", percent=True),
    "mask_ap50": Measure("mask AP50", "highest mask AP50", percent=True),
    "mask_ap75": Measure("mask AP75", "highest mask AP75", percent=True),
    "miou": Measure("mIoU", "highest mIoU", percent=True),
    "dice": Measure("mean Dice", "highest mean Dice", percent=True),
    "pixel_accuracy": Measure("pixel accuracy", "highest pixel accuracy", percent=True),
    "knn": Measure("20-NN", "highest 20-NN accuracy", percent=True),
    "linear": Measure("linear", "highest linear accuracy", percent=True),
    "spread": Measure("spread of features", "widest spread of features"),
    "last": Measure("epoch", "last epoch"),
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
    return f"{', '.join(parts)} ({scores['seen']} of {scores['expected']} images)"


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
