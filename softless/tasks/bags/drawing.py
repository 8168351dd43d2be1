"""Numbers of patients drawn: cards, tables, ROC curves with a band, calibration, survival."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from softless.evaluation.patients import PatientEvaluation, roc, roc_band
from softless.evaluation.spread import Estimate
from softless.evaluation.survival import SurvivalEvaluation, kaplan_meier
from softless.report.html import Html, section, tag
from softless.report.intervals import Strip, axis, draw
from softless.report.numbers import THIN, count, percent
from softless.report.squares import Curve, square
from softless.report.tables import table

NO_DEVICE = (
    "This is research software and no medical device: its answers must not be used to diagnose or "
    "to treat anybody."
)
Rows = Sequence[tuple[str, Any]]


class Answered(NamedTuple):
    """A model's answers to patients, and how it is drawn."""

    label: str
    colour: str  # CSS class s0, s1, …
    outcome: PatientEvaluation | SurvivalEvaluation


def warning() -> Html:
    """What the software is not."""
    return tag("p", NO_DEVICE, class_="warning", role="note")


def sentence(model_answers: Answered) -> str:
    """What came out, in words."""
    label, _, outcome = model_answers
    unit = outcome.units.unit
    if isinstance(outcome, SurvivalEvaluation):
        value = outcome.concordance.value
        return (
            ""
            if value is None
            else f"Of two test {unit}s {label} gives the one who dies first the higher risk "
            f"in {percent(value)} of pairs."
        )
    value = outcome.area.value
    if value is None:
        return f"Every test {unit} of {label} is of one class."
    if outcome.columns == (1,):
        who = f"a test {unit} with {outcome.classes[1]} above one with {outcome.classes[0]}"
    else:
        who = f"a test {unit} of a class above one of another"
    return f"{label} ranks {who} in {percent(value)} of pairs."


def _main(outcome: PatientEvaluation | SurvivalEvaluation) -> tuple[str, Estimate]:
    """The number of a card, and what it is called."""
    if isinstance(outcome, SurvivalEvaluation):
        return "concordance", outcome.concordance
    single = outcome.columns == (1,)
    return f"AUC of {outcome.classes[1]}" if single else "mean AUC", outcome.area.bootstrap


def card(model_answers: Answered, facts: Rows, identifier: str) -> Html:
    """The main number with its interval, and facts in two columns."""
    label, colour, outcome = model_answers
    name, estimated = _main(outcome)
    under, strip = f"{name} over test {outcome.units.unit}s", None
    if estimated.value is not None and estimated.low is not None and estimated.high is not None:
        low, high = estimated.low, estimated.high
        under += f", 95{THIN}% interval {low:.3f} to {high:.3f}"
        text = f"{label}: {name} {estimated.value:.3f}, 95 % interval {low:.3f} to {high:.3f}"
        strip = Strip(text, colour, estimated.value, low, high)
    elif estimated.why:
        under += f" (no interval: {estimated.why})"
    counted = [
        (f"test {outcome.units.unit}s", count(len(outcome.units.names))),
        ("test slides", count(int(outcome.units.slides.sum()))),
    ]
    if isinstance(outcome, SurvivalEvaluation):
        counted.append(("events", count(int(outcome.events.sum()))))
    picture = None if strip is None else draw(strip, axis([strip]), identifier)
    return plain_card(label, colour, estimated.value, under, [*counted, *facts], picture)


def plain_card(
    label: str, colour: str, value: float | None, under: str, facts: Rows, picture: Html | None
) -> Html:
    """A number, what it is, and facts."""
    return tag(
        "article",
        tag("h3", tag("span", class_=f"swatch {colour}"), label),
        tag("p", "–" if value is None else f"{value:.3f}", class_="big"),
        tag("p", under, class_="under"),
        picture,
        tag("dl", [tag("div", tag("dt", name), tag("dd", fact)) for name, fact in facts]),
        class_="card",
    )


def numbers(measured: Sequence[Answered], chosen: str) -> Html:
    """The section of measures and curves; `chosen` says how thresholds came about."""
    columns = [_column(model_answers.outcome) for model_answers in measured]
    names = list(dict.fromkeys(name for column in columns for name in column))
    head: list[Any] = [
        "",
        *(
            tag("span", tag("span", class_=f"swatch {model_answers.colour}"), model_answers.label)
            for model_answers in measured
        ),
    ]
    rows = [[name, *(column.get(name, "–") for column in columns)] for name in names]
    unit = measured[0].outcome.units.unit
    lead = (
        f"Of {unit}s; the slides of a patient are averaged. In brackets 95{THIN}% intervals. "
        f"{chosen}"
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


def _charts(measured: Sequence[Answered]) -> list[Html]:
    """ROC and calibration, or the curves of survival."""
    if isinstance(measured[0].outcome, SurvivalEvaluation):
        return [_survival(measured[0].label, measured[0].outcome)]
    first = measured[0].outcome
    drawn = []
    curves = [
        curve
        for number, model_answers in enumerate(measured)
        for curve in _roc(model_answers, banded=number == 0)
    ]
    if curves:
        note = f"The band holds 95{THIN}% of the curves of patients drawn again, place by place."
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
    calibrations = [_calibration(model_answers) for model_answers in measured]
    note = "Ten bins of one width; on the dashed line probabilities are what happens."
    drawn.append(square("Calibration", *title, calibrations, "calibration", note=note))
    return drawn


def _roc(model_answers: Answered, *, banded: bool) -> list[Curve]:
    """A curve for each class that has one; the first of them with its band."""
    label, colour, outcome = model_answers
    assert isinstance(outcome, PatientEvaluation)
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
        text = f"{label}, {name}: AUC {_number(area.bootstrap)}."
        curves.append(Curve(label, colour, roc(scores, positive), text, ring=ring, band=band))
    return curves


def _calibration(model_answers: Answered) -> Curve:
    label, colour, outcome = model_answers
    assert isinstance(outcome, PatientEvaluation)
    curve = outcome.calibration
    points = [
        (float(sure), float(right))
        for sure, right in zip(curve.sure, curve.right, strict=True)
        if not np.isnan(sure)
    ]
    text = f"{label}, calibration error {curve.error:.3f}."
    return Curve(label, colour, points, text, dots=True)


def _survival(label: str, outcome: SurvivalEvaluation) -> Html:
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
        note=f"Test {outcome.units.unit}s of {label} cut at the middle risk: {legend}.",
        marks=marks,
    )
