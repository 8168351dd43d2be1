"""What the page of bags shows: numbers of patients with their intervals, ROC curve and calibration,
the confusion at the chosen threshold, and tiles that weigh most and least.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from softless.evaluation.patients import PatientEvaluation
from softless.evaluation.survival import SurvivalEvaluation
from softless.report.groups import Group
from softless.report.html import Html, section, tag
from softless.report.numbers import duration
from softless.report.tables import table
from softless.tasks.bags.drawing import (
    NO_DEVICE,
    Answered,
    card,
    plain_card,
    sentence,
    warning,
)
from softless.tasks.bags.drawing import numbers as drawn_numbers
from softless.tasks.bags.measure import PREDICTIONS, read_predictions
from softless.tasks.bags.tiles import TILES, read_tiles
from softless.tasks.classification.confusion import draw_confusion

__all__ = ["HEADING", "SAMPLES", "further", "headline", "method", "numbers", "samples"]

HEADING = "Tiles"
SAMPLES = (
    "Of some test slides the tiles that the pool weighs most and least. A weight of 1 is the even "
    "share. Weights show what the answer rests on, not why it was given."
)


def per_patient(group: Group) -> PatientEvaluation | SurvivalEvaluation | None:
    """The first run's answers to test slides, by patients; None without any."""
    run = group.first
    path = run.folder / PREDICTIONS
    if not path.is_file():
        return None
    val = run.result.get("val") or {}
    return read_predictions(path).per_patient(val.get("thresholds") or ())


def _answered(groups: Sequence[Group]) -> list[Answered]:
    """Of the models that have test slides."""
    return [
        Answered(group.label, group.colour, outcome)
        for group in groups
        if (outcome := per_patient(group)) is not None
    ]


def headline(groups: Sequence[Group]) -> Html:
    """What the software is not, a sentence, and a card for each model."""
    verdict = " ".join(sentence(model_answers) for model_answers in _answered(groups)) or (
        "There are no test slides: what follows was measured on validation slides, which also "
        "chose the best epoch."
    )
    cards = [_card(group, f"strip-{number}") for number, group in enumerate(groups)]
    return tag(
        "div",
        warning(),
        tag("p", verdict, class_="verdict-line"),
        tag("div", cards, class_="cards"),
    )


def _card(group: Group, identifier: str) -> Html:
    outcome, facts = per_patient(group), _facts(group)
    if outcome is not None:
        return card(Answered(group.label, group.colour, outcome), facts, identifier)
    val = group.first.result.get("val") or {}
    value = val.get("auc", val.get("concordance"))
    under = "on validation slides: no test slides"
    return plain_card(group.label, group.colour, value, under, facts, None)


def _facts(group: Group) -> list[tuple[str, Any]]:
    data = group.first.recipe.data
    fold = [] if data.fold is None else [("fold", f"{data.fold} of 0 to {(data.folds or 1) - 1}")]
    return [
        *fold,
        ("seeds" if len(group.seeds) > 1 else "seed", ", ".join(map(str, group.seeds))),
        ("best epoch", group.best_epochs),
        ("training", duration(group.first.result["seconds"])),
    ]


def numbers(groups: Sequence[Group]) -> Html | None:
    """A table of measures and the curves."""
    model_answers = _answered(groups)
    chosen = "Thresholds were chosen on validation patients, never on these."
    return drawn_numbers(model_answers, chosen) if model_answers else None


def samples(groups: Sequence[Group]) -> Html:
    """Tables of tiles, of the first model."""
    rows = read_tiles(groups[0].first.folder / TILES)
    if not rows:
        return tag(
            "p",
            "This model weighs no tiles: bags.pool=gated does. `softless heat` scores the tiles "
            "of any model.",
            class_="note",
        )
    slides = list(dict.fromkeys(row["slide"] for row in rows))
    parts = [_slide([row for row in rows if row["slide"] == slide]) for slide in slides]
    return tag("div", parts, class_="charts squares")


def _slide(rows: Sequence[dict[str, str]]) -> Html:
    """The highest tiles of a slide beside its lowest."""
    unit, keys = _unit(rows)
    ends = {end: [row for row in rows if row["end"] == end] for end in ("highest", "lowest")}
    head = [
        name
        for end in ends
        for name in (f"{end}: tile", "weight", *([f"x, y in {unit}"] if unit else []))
    ]
    body = [
        [cell for row in level for cell in _cells(row, keys)]
        for level in zip(*ends.values(), strict=True)
    ]
    caption = f"{rows[0]['slide']}: {rows[0]['label']}, answered {rows[0]['class']}"
    return table(head, body, caption=caption, class_="plain")


def _cells(row: dict[str, str], keys: tuple[str, ...]) -> list[str]:
    corner = [", ".join(f"{float(row[key]):,.0f}" for key in keys)] if keys else []
    return [row["tile"], f"{float(row['weight']):.3g}", *corner]


def _unit(rows: Sequence[dict[str, str]]) -> tuple[str, tuple[str, ...]]:
    """The unit in which corners are told, and their columns; none where they are unknown."""
    for unit, keys in (("level-0 pixels", ("x_px0", "y_px0")), ("µm", ("x_um", "y_um"))):
        if all(row[key] for row in rows for key in keys):
            return unit, keys
    return "", ()


def further(groups: Sequence[Group]) -> list[Html]:
    """Who is taken for what, at the threshold."""
    matrices = []
    for group in groups:
        outcome = per_patient(group)
        if isinstance(outcome, PatientEvaluation) and not outcome.several:
            counts = outcome.confusion().astype(np.int64)
            matrices.append(draw_confusion(group, counts, f"{outcome.units.unit}s"))
    if not matrices:
        return []
    lead = "Of two classes at the threshold that validation patients chose."
    return [section("confusion", "Confusion", tag("div", matrices, class_="matrices"), lead=lead)]


def method(groups: Sequence[Group]) -> list[str]:
    """How the measures came about."""
    outcome = per_patient(groups[0])
    if isinstance(outcome, SurvivalEvaluation):
        measures = [
            (
                "The loss is Cox's partial likelihood over a batch with Efron's ties. Concordance "
                "is Harrell's, equal risks count half; its interval is a bootstrap over patients."
            )
        ]
    else:
        measures = [
            (
                "AUC is the share of pairs of patients that are ranked rightly. One interval is a "
                "bootstrap over patients on the scale of the logit, the other has DeLong's "
                "variance."
            ),
            (
                "Balanced accuracy is the mean share of each class that is found. Shares have "
                "Wilson's intervals. Calibration error: the mean gap in the bins, by the patients "
                "in them."
            ),
        ]
    return [
        "Probabilities of the slides of a patient are averaged, and patients are what is counted.",
        *measures,
        NO_DEVICE,
    ]
