"""What the page of bags shows: numbers of patients with their intervals, the ROC curve with its band,
who is taken for what at the chosen threshold, calibration, and the tiles that weigh most and least.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from softless.evaluation.patients import PatientEvaluation, roc, roc_band
from softless.evaluation.spread import Estimate
from softless.evaluation.survival import SurvivalEvaluation, kaplan_meier
from softless.report.groups import Group
from softless.report.html import Html, section, tag
from softless.report.intervals import Strip, axis, draw
from softless.report.numbers import THIN, count, duration, percent
from softless.report.squares import Curve, square
from softless.report.tables import table
from softless.tasks.bags.measure import PREDICTIONS, read_predictions
from softless.tasks.bags.tiles import TILES, read_tiles
from softless.tasks.classification.confusion import draw_confusion

__all__ = ["HEADING", "SAMPLES", "further", "headline", "method", "numbers", "samples"]

HEADING = "Tiles"
SAMPLES = (
    "Of some test slides the tiles that the pool weighs most and least. A weight of 1 is the even "
    "share. Weights show what the answer rests on, not why it was given."
)
NO_DEVICE = (
    "This is research software and no medical device: its answers must not be used to diagnose or "
    "to treat anybody."
)
BAND_POINTS = 101


def per_patient(group: Group) -> PatientEvaluation | SurvivalEvaluation | None:
    """The first run's answers to test slides, by patients; None without any."""
    run = group.first
    path = run.folder / PREDICTIONS
    if not path.is_file():
        return None
    val = run.result.get("val") or {}
    return read_predictions(path).per_patient(val.get("thresholds") or ())


def headline(groups: Sequence[Group]) -> Html:
    """What the software is not, a sentence, and a card for each model."""
    outcomes = [per_patient(group) for group in groups]
    parts = [
        _sentence(group, outcome)
        for group, outcome in zip(groups, outcomes, strict=True)
        if outcome
    ]
    sentence = " ".join(parts) or (
        "There are no test slides: what follows was measured on validation slides, which also "
        "chose the best epoch."
    )
    cards = [
        _card(group, outcome, f"strip-{number}")
        for number, (group, outcome) in enumerate(zip(groups, outcomes, strict=True))
    ]
    return tag(
        "div",
        tag("p", NO_DEVICE, class_="warning", role="note"),
        tag("p", sentence, class_="verdict-line"),
        tag("div", cards, class_="cards"),
    )


def _sentence(group: Group, outcome: PatientEvaluation | SurvivalEvaluation) -> str:
    unit = outcome.units.unit
    if isinstance(outcome, SurvivalEvaluation):
        value = outcome.concordance.value
        return (
            ""
            if value is None
            else f"Of two test {unit}s {group.label} gives the one who dies first the higher risk "
            f"in {percent(value)} of pairs."
        )
    value = outcome.area.value
    if value is None:
        return f"Every test {unit} of {group.label} is of one class."
    if outcome.columns == (1,):
        who = f"a test {unit} with {outcome.classes[1]} above one with {outcome.classes[0]}"
    else:
        who = f"a test {unit} of a class above one of another"
    return f"{group.label} ranks {who} in {percent(value)} of pairs."


def _main(outcome: PatientEvaluation | SurvivalEvaluation) -> tuple[str, Estimate]:
    """The number of a card, and what it is called."""
    if isinstance(outcome, SurvivalEvaluation):
        return "concordance", outcome.concordance
    single = outcome.columns == (1,)
    return f"AUC of {outcome.classes[1]}" if single else "mean AUC", outcome.area.bootstrap


def _card(
    group: Group, outcome: PatientEvaluation | SurvivalEvaluation | None, identifier: str
) -> Html:
    heading = tag("h3", tag("span", class_=f"swatch {group.colour}"), group.label)
    if outcome is None:
        val = group.first.result.get("val") or {}
        value = val.get("auc", val.get("concordance"))
        under: str = "on validation slides: no test slides"
        return tag(
            "article",
            heading,
            tag("p", "–" if value is None else f"{value:.3f}", class_="big"),
            tag("p", under, class_="under"),
            _facts(group, None),
            class_="card",
        )
    name, estimated = _main(outcome)
    under, strip = f"{name} over test {outcome.units.unit}s", None
    if estimated.value is not None and estimated.low is not None and estimated.high is not None:
        low, high = estimated.low, estimated.high
        under += f", 95{THIN}% interval {low:.3f} to {high:.3f}"
        text = f"{group.label}: {name} {estimated.value:.3f}, 95 % interval {low:.3f} to {high:.3f}"
        strip = Strip(text, group.colour, estimated.value, low, high)
    elif estimated.why:
        under += f" (no interval: {estimated.why})"
    return tag(
        "article",
        heading,
        tag("p", "–" if estimated.value is None else f"{estimated.value:.3f}", class_="big"),
        tag("p", under, class_="under"),
        None if strip is None else draw(strip, axis([strip]), identifier),
        _facts(group, outcome),
        class_="card",
    )


def _facts(group: Group, outcome: PatientEvaluation | SurvivalEvaluation | None) -> Html:
    rows = []
    if outcome is not None:
        rows.append((f"test {outcome.units.unit}s", count(len(outcome.units.names))))
        rows.append(("test slides", count(int(outcome.units.slides.sum()))))
    if isinstance(outcome, SurvivalEvaluation):
        rows.append(("events", count(int(outcome.events.sum()))))
    fold = group.first.recipe.data.fold
    rows += [
        *(
            [("fold", f"{fold} of 0 to {(group.first.recipe.data.folds or 1) - 1}")]
            if fold is not None
            else []
        ),
        ("seeds" if len(group.seeds) > 1 else "seed", ", ".join(map(str, group.seeds))),
        ("best epoch", group.best_epochs),
        ("training", duration(group.first.result["seconds"])),
    ]
    return tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in rows])


def numbers(groups: Sequence[Group]) -> Html | None:
    """A table of measures, the curves, and what is taken for what."""
    measured = [(group, outcome) for group in groups if (outcome := per_patient(group)) is not None]
    if not measured:
        return None
    columns = [_column(outcome) for _, outcome in measured]
    names = list(dict.fromkeys(name for column in columns for name in column))
    head: list[Any] = [
        "",
        *(
            tag("span", tag("span", class_=f"swatch {group.colour}"), group.label)
            for group, _ in measured
        ),
    ]
    rows = [[name, *(column.get(name, "–") for column in columns)] for name in names]
    unit = measured[0][1].units.unit
    lead = (
        f"Of {unit}s; the slides of a patient are averaged. In brackets 95{THIN}% intervals. "
        f"Thresholds were chosen on validation {unit}s, never on these."
    )
    return section(
        "numbers",
        "Numbers",
        table(head, rows, caption=f"Measures of the test {unit}s", class_="plain numbers"),
        tag("div", _charts(measured), class_="charts squares"),
        lead=lead,
    )


def _column(outcome: PatientEvaluation | SurvivalEvaluation) -> dict[str, str]:
    if isinstance(outcome, SurvivalEvaluation):
        return {
            f"{outcome.units.unit}s": count(len(outcome.units.names)),
            "events": count(int(outcome.events.sum())),
            "concordance (Harrell)": _number(outcome.concordance),
            "Cox loss": f"{outcome.loss:.4f}",
        }
    name = _main(outcome)[0]
    rows = {
        f"{name}, bootstrap over patients": _number(outcome.area.bootstrap),
        f"{name}, DeLong": _number(outcome.area.delong),
    }
    if outcome.accuracy is not None and outcome.balanced_accuracy is not None:
        rows["accuracy"] = _share(outcome.accuracy)
        rows["balanced accuracy"] = _share(outcome.balanced_accuracy)
    for label, point in outcome.at_threshold().items():
        rows[f"threshold of {label}"] = f"{point['threshold']:.3f}"
        rows[f"sensitivity for {label}"] = (
            f"{_share(point['sensitivity'])}, {point['found']} found and {point['missed']} missed"
        )
        rows[f"specificity for {label}"] = (
            f"{_share(point['specificity'])}, {point['passed']} passed and {point['called']} called"
        )
    rows["Brier score"] = f"{outcome.brier:.4f}"
    rows["calibration error"] = f"{outcome.calibration.error:.4f}"
    if len(outcome.columns) > 1:
        for label, area in outcome.of_classes.items():
            rows[f"AUC of {label}"] = _number(area.bootstrap)
    return rows


def _share(estimated: Estimate) -> str:
    if estimated.value is None:
        return f"– ({estimated.why})"
    ends = (
        ""
        if estimated.low is None or estimated.high is None
        else f" ({100 * estimated.low:.1f} to {100 * estimated.high:.1f})"
    )
    return percent(estimated.value) + ends


def _number(estimated: Estimate) -> str:
    if estimated.value is None:
        return f"– ({estimated.why})"
    if estimated.low is None or estimated.high is None:
        return f"{estimated.value:.3f} (no interval: {estimated.why})"
    return f"{estimated.value:.3f} ({estimated.low:.3f} to {estimated.high:.3f})"


def _charts(measured: Sequence[tuple[Group, Any]]) -> list[Html]:
    """ROC and calibration, or the curves of survival."""
    if isinstance(measured[0][1], SurvivalEvaluation):
        group, survival = measured[0]
        return [_survival(group, survival)]
    group, first = measured[0][0], cast("PatientEvaluation", measured[0][1])
    drawn = []
    curves = [
        curve
        for number, (each, outcome) in enumerate(measured)
        for curve in _roc(each, outcome, banded=number == 0)
    ]
    if curves:
        note = f"The band holds 95{THIN}% of the curves of patients that are drawn again, place by place."
        if any(curve.ring for curve in curves):
            note += " The ring is the threshold that validation chose."
        if len(first.columns) > 1:
            note += " One curve for each class."
        across = f"1 {chr(8722)} specificity"
        drawn.append(square("ROC curve", across, "sensitivity", curves, "roc", note=note))
    title = (
        (f"probability of {first.classes[1]}", f"share of {first.classes[1]}")
        if first.columns == (1,)
        else ("how sure the answer is", "share that is right")
    )
    calibrations = [_calibration(each, outcome) for each, outcome in measured]
    note = "Ten bins of one width; on the dashed line probabilities are what happens."
    drawn.append(square("Calibration", *title, calibrations, "calibration", note=note))
    return drawn


def _roc(group: Group, outcome: PatientEvaluation, *, banded: bool) -> list[Curve]:
    """A curve for each class that has one; the first of them with its band."""
    curves = []
    for k in outcome.columns:
        scores, positive = outcome.units.answers[:, k], outcome.truth[:, k]
        if positive.all() or not positive.any():
            continue
        name = outcome.classes[k]
        area = outcome.of_classes[name]
        point = outcome.at_threshold().get(name)
        ring = None
        if point is not None and len(outcome.columns) == 1:
            ring = (1 - point["specificity"].value, point["sensitivity"].value)
        band: list[tuple[float, float, float]] = []
        if banded and len(outcome.columns) == 1:
            grid, low, high = roc_band(scores, positive, outcome.units.groups)
            band = [tuple(map(float, ends)) for ends in zip(grid, low, high, strict=True)]  # type: ignore[misc]
        text = f"{group.label}, {name}: AUC {_number(area.bootstrap)}."
        curves.append(
            Curve(group.label, group.colour, roc(scores, positive), text, ring=ring, band=band)
        )
    return curves


def _calibration(group: Group, outcome: PatientEvaluation) -> Curve:
    curve = outcome.calibration
    points = [
        (float(sure), float(right))
        for sure, right in zip(curve.sure, curve.right, strict=True)
        if not np.isnan(sure)
    ]
    text = f"{group.label}, calibration error {curve.error:.3f}."
    return Curve(group.label, group.colour, points, text, dots=True)


def _survival(group: Group, outcome: SurvivalEvaluation) -> Html:
    """Kaplan and Meier's curves of the halves with the lower and the higher risk."""
    middle, longest = float(np.median(outcome.risks)), float(outcome.times.max()) or 1.0
    halves = {"lower risk": outcome.risks <= middle, "higher risk": outcome.risks > middle}
    curves = []
    for number, (name, rows) in enumerate(halves.items()):
        if not rows.any():
            continue
        points = kaplan_meier(outcome.times[rows], outcome.events[rows])
        scaled = [(time / longest, alive) for time, alive in points]
        text = (
            f"{name}: {int(rows.sum())} {outcome.units.unit}s, {percent(points[-1][1])} at the end."
        )
        curves.append(Curve(name, f"s{number}", scaled, text))
    marks = [f"{share * longest:.4g}" for share in (0, 0.25, 0.5, 0.75, 1)]
    legend = ", ".join(
        f"{curve.label} (colour {number + 1})" for number, curve in enumerate(curves)
    )
    return square(
        "Survival",
        "time",
        "share without the event",
        curves,
        "survival",
        note=f"Test {outcome.units.unit}s of {group.label} cut at the middle risk: {legend}.",
        marks=marks,
    )


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
    return tag("div", parts, class_="tiles")


def _slide(rows: Sequence[dict[str, str]]) -> Html:
    first = rows[0]
    unit, keys = _unit(rows)
    head = ["", "tile", "weight", *([f"x, y in {unit}"] if unit else [])]
    body = [
        [
            row["end"],
            row["tile"],
            f"{float(row['weight']):.3g}",
            *([", ".join(f"{float(row[key]):,.0f}" for key in keys)] if unit else []),
        ]
        for row in rows
    ]
    caption = f"{first['slide']}: {first['label']}, answered {first['class']}"
    return table(head, body, caption=caption, class_="plain")


def _unit(rows: Sequence[dict[str, str]]) -> tuple[str, tuple[str, str]]:
    """The unit in which corners are told, and their columns; none where they are unknown."""
    for unit, keys in (("level-0 pixels", ("x_px0", "y_px0")), ("µm", ("x_um", "y_um"))):
        if all(row[key] for row in rows for key in keys):
            return unit, keys
    return "", ("", "")


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
                "bootstrap over patients on the scale of the logit, the other has DeLong's variance."
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
