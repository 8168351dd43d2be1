"""What the page of classifiers with several labels an image shows: mean AUC, a table of the
labels, and test images.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from softless.report.groups import Group
from softless.report.html import Html, section, tag
from softless.report.intervals import Strip, axis, draw
from softless.report.numbers import THIN, duration, percent
from softless.report.runs import HeldOutPredictions
from softless.report.tables import table
from softless.tasks.classification.gallery import Wording, draw_samples
from softless.tasks.multilabel.settings import MultilabelSpec

__all__ = ["SAMPLES", "further", "headline", "method", "samples"]

SAMPLES = (
    "First the images whose labels the model gets most wrong, then others in their order. "
    "Bright is where the last layer's queries and keys are large."
)


class LabelWording(Wording):
    """Several labels an image: those from the threshold on, and the share of all labels that is
    right.
    """

    sure = "labels that are right"

    def chosen(self, answers: Sequence[HeldOutPredictions], count: int) -> list[int]:
        """Half of them those with the largest loss of a model, the others in their order."""
        all_logits = [answer.logits.astype(np.float64) for answer in answers]
        losses = [
            (np.logaddexp(0, logits) - logits * answer.targets).mean(1)
            for logits, answer in zip(all_logits, answers, strict=True)
        ]
        worst = np.argsort(-np.max(losses, axis=0), kind="stable")[: count // 2].tolist()
        remaining = [index for index in range(len(answers[0].targets)) if index not in worst]
        return [*worst, *remaining[: count - len(worst)]]

    def truth(self, group: Group, answers: HeldOutPredictions, index: int) -> str:
        return _named(group, answers.targets[index] > 0)

    def answer(
        self, group: Group, answers: HeldOutPredictions, index: int
    ) -> tuple[str, bool, float]:
        threshold = _threshold(group)
        predicted = answers.logits[index] >= np.log(threshold / (1 - threshold))
        correct = predicted == (answers.targets[index] > 0)
        return _named(group, predicted), bool(correct.all()), float(correct.mean())


def _named(group: Group, predicted: np.ndarray) -> str:
    return (
        ", ".join(
            name for name, present in zip(group.first.classes, predicted, strict=True) if present
        )
        or "no label"
    )


def _threshold(group: Group) -> float:
    return (group.first.recipe.multilabel or MultilabelSpec()).threshold


def samples(groups: Sequence[Group]) -> Html:
    """The grid of test images, or the sentence that says why there is none."""
    return draw_samples(groups, wording=LabelWording())


def headline(groups: Sequence[Group]) -> Html:
    """A sentence, and a card for each model."""
    tested = [_test(group) for group in groups]
    if not all(tested):
        sentence = (
            "There is no test split: what follows was measured on validation images, which "
            "also chose the best epoch."
        )
    else:
        parts = [
            f"{group.label} ranks a test image with a label above one without it in "
            f"{percent(test['auc'], 1)} of pairs, mean over the labels."
            for group, test in zip(groups, tested, strict=True)
            if test["auc"] is not None
        ]
        sentence = " ".join(parts) or "No label has test images with and without it."
    cards = [
        _card(group, test, f"strip-{number}")
        for number, (group, test) in enumerate(zip(groups, tested, strict=True))
    ]
    return tag("div", tag("p", sentence, class_="verdict-line"), tag("div", cards, class_="cards"))


def further(groups: Sequence[Group]) -> list[Html]:
    """A table of the labels for each model."""
    tables = [_labels(group, test) for group in groups if (test := _test(group))]
    return [section("classes", "Labels", tag("div", tables))] if tables else []


def method(groups: Sequence[Group]) -> list[str]:
    """How the measures came about."""
    threshold = _threshold(groups[0])
    interval = (
        f"Its 95{THIN}% interval is a bootstrap over images, or over groups where images "
        "belong to some."
    )
    return [
        (
            "AUC is the share of pairs, one test image with the label and one without, that are "
            f"ranked rightly. {interval}"
        ),
        (
            "Sensitivity, specificity and precision are of answers from a probability of "
            f"{threshold:g} on, which the recipe sets."
        ),
        (
            "Query and key maps are the l2 norm over channels of each token of q^ and k^ in the "
            "last "
            "attention layer, rescaled to 0..1 per image."
        ),
    ]


def _test(group: Group) -> dict[str, Any]:
    """The measures on the test split of a model's first run; empty where there is none."""
    return group.first.result.get("test") or {}


def _card(group: Group, test: dict[str, Any], identifier: str) -> Html:
    score = test.get("auc") if test else (group.first.result.get("val") or {}).get("auc")
    ends = test.get("interval")
    under = (
        "mean AUC of the labels on test images"
        if test
        else "mean AUC on validation images: no test split"
    )
    strip = None
    if ends and score is not None:
        low, high = ends
        under += f", 95{THIN}% interval {low:.3f} to {high:.3f}"
        strip = Strip(
            f"{group.label}: mean AUC {score:.3f}, 95 % interval {low:.3f} to {high:.3f}",
            group.colour,
            score,
            low,
            high,
        )
    return tag(
        "article",
        tag("h3", tag("span", class_=f"swatch {group.colour}"), group.label),
        tag("p", "–" if score is None else f"{score:.3f}", class_="big"),
        tag("p", under, class_="under"),
        None if strip is None else draw(strip, axis([strip]), identifier),
        tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in _facts(group)]),
        class_="card",
    )


def _facts(group: Group) -> list[tuple[str, str]]:
    return [
        ("labels", str(len(group.first.classes))),
        ("seeds" if len(group.seeds) > 1 else "seed", ", ".join(map(str, group.seeds))),
        ("best epoch", group.best_epochs),
        ("training", duration(group.first.result["seconds"])),
    ]


def _labels(group: Group, test: dict[str, Any]) -> Html:
    measures = test.get("per_class") or {}

    def value(measure: str, label: str) -> float | None:
        return (measures.get(measure) or {}).get(label)

    rows: list[list[Any]] = []
    for label in group.first.classes:
        area, low, high = (value(name, label) for name in ("auc", "auc_low", "auc_high"))
        ends = "–" if low is None or high is None else f"{low:.3f} to {high:.3f}"
        shares = [
            value(name, label) for name in ("share", "sensitivity", "specificity", "precision")
        ]
        rows.append([
            label,
            "–" if area is None else f"{area:.3f}",
            ends,
            *("–" if share is None else percent(share) for share in shares),
        ])
    head = [
        "label",
        "AUC",
        f"95{THIN}% interval",
        "images with it",
        "sensitivity",
        "specificity",
        "precision",
    ]
    return table(head, rows, caption=f"{group.label}: each label on the test images")
