"""The numbers of classifiers on the page: what each measure is, with its interval; each class; the
ROC curve and the calibration.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from softless.evaluation import Evaluation
from softless.evaluation.evaluate import evaluated
from softless.evaluation.metrics import BINS, second_class
from softless.evaluation.spread import Estimate
from softless.report.groups import FEW, Group
from softless.report.html import Html, section, table, tag
from softless.report.numbers import THIN, percent
from softless.report.squares import Curve, square


def draw_numbers(groups: Sequence[Group]) -> Html | None:
    """The section, or None without test images."""
    known = {group.label: found for group in groups if (found := evaluation_of(group)) is not None}
    if not known:
        return None
    shown = [group for group in groups if group.label in known]
    seeds = " of the first seed" if any(len(group.runs) > 1 for group in groups) else ""
    parts = [
        table(
            *_measures(shown, known),
            caption=f"Measures of the test images{seeds}",
            class_="plain numbers",
        )
    ]
    if len(shown) <= FEW:
        parts.append(_charts(shown, known))
        parts += [
            table(
                *_classes(known[one.label]),
                caption=f"Classes{seeds}: {one.label}",
                class_="plain numbers",
            )
            for one in shown
        ]
    lead = (
        f"In brackets 95{THIN}% intervals: Wilson's of shares, a bootstrap over images of areas "
        "under the ROC curve. "
        "Precision and recall are of the answers as they are; sensitivity and specificity at the "
        "threshold that validation images chose."
    )
    return section("numbers", "Numbers", parts, lead=lead)


def evaluation_of(group: Group) -> Evaluation | None:
    """The first run's answers, measured; None without test images."""
    run = group.first
    if run.predictions is None:
        return None
    threshold = (run.result.get("val") or {}).get("threshold")
    return evaluated(
        run.predictions.logits, run.predictions.targets, run.classes, threshold=threshold
    )


def _measures(
    groups: Sequence[Group], known: Mapping[str, Evaluation]
) -> tuple[list[object], list[list[object]]]:
    columns = [_column(known[group.label]) for group in groups]
    names = list(dict.fromkeys(name for column in columns for name in column))
    head: list[object] = [
        "",
        *(
            tag("span", tag("span", class_=f"swatch {group.colour}"), group.label)
            for group in groups
        ),
    ]
    return head, [[name, *(column.get(name, "–") for column in columns)] for name in names]


def _column(found: Evaluation) -> dict[str, str]:
    """Of one model, in the order of the table."""
    m, whole = found.metrics, found.details.whole
    low, high = found.interval
    most = found.classes[int(m.confusion.sum(1).argmax())]
    told = {
        "accuracy": _share(Estimate(m.top1, low, high)),
        f"always the commonest class ({most})": percent(m.commonest),
        "chance": percent(m.chance),
        "balanced accuracy": _share(whole["balanced_accuracy"]),
        "AUC" if len(found.classes) == 2 else "AUC, mean of one against the rest": _number(
            whole["auc"]
        ),
    }
    point = found.operating
    if point is not None:
        told |= {
            f"threshold for {point.positive}, chosen on validation images": (
                f"{point.threshold:.3f}"
            ),
            "sensitivity there": _share(point.sensitivity),
            "specificity there": _share(point.specificity),
        }
    return {
        **told,
        "Brier score": f"{m.brier:.4f}",
        "calibration error": f"{m.calibration.error:.4f}",
    }


def _classes(found: Evaluation) -> tuple[list[object], list[list[object]]]:
    told = found.details.of_class
    head: list[object] = ["class", "images", "precision", "recall", "AUC against the rest"]
    rows = [
        [
            name,
            images,
            _share(told["precision"][place]),
            _share(told["recall"][place]),
            _number(told["auc"][place]),
        ]
        for place, (name, images) in enumerate(
            zip(found.classes, found.metrics.confusion.sum(1).tolist(), strict=True)
        )
    ]
    return head, rows


def _charts(groups: Sequence[Group], known: Mapping[str, Evaluation]) -> Html:
    two = len(groups[0].first.classes) == 2
    positive = groups[0].first.classes[-1]
    drawn = []
    if two and all(known[group.label].metrics.auc is not None for group in groups):
        curves = [_roc(group, known[group.label]) for group in groups]
        note = (
            "The ring is the threshold that validation images chose."
            if any(one.ring for one in curves)
            else ""
        )
        drawn.append(
            square(
                "ROC curve", f"1 {chr(8722)} specificity", "sensitivity", curves, "roc", note=note
            )
        )
    curves = [_calibration(group, known[group.label]) for group in groups]
    across, upwards = (
        (f"probability of {positive}", f"share of {positive}")
        if two
        else ("how sure the answer is", "share that is right")
    )
    note = f"{BINS} bins of one width; on the dashed line probabilities are what happens."
    drawn.append(square("Calibration", across, upwards, curves, "calibration", note=note))
    return tag("div", drawn, class_="charts squares")


def _roc(group: Group, found: Evaluation) -> Curve:
    """Every threshold between two probabilities, from none to all answered with the second
    class.
    """
    chances, positive = second_class(found.logits), found.targets == 1
    values, place = np.unique(-chances, return_inverse=True)
    up, down = (
        np.bincount(place, weights=side, minlength=len(values)).cumsum()
        for side in (positive, ~positive)
    )
    points = [(0.0, 0.0), *zip((down / down[-1]).tolist(), (up / up[-1]).tolist(), strict=True)]
    point, area = found.operating, found.details.whole["auc"]
    ring = None
    if (
        point is not None
        and point.sensitivity.value is not None
        and point.specificity.value is not None
    ):
        ring = (1 - point.specificity.value, point.sensitivity.value)
    return Curve(
        group.label, group.colour, points, f"{group.label}, AUC {_number(area)}.", ring=ring
    )


def _calibration(group: Group, found: Evaluation) -> Curve:
    curve = found.metrics.calibration
    points = [
        (float(sure), float(right))
        for sure, right in zip(curve.sure, curve.right, strict=True)
        if not np.isnan(sure)
    ]
    return Curve(
        group.label,
        group.colour,
        points,
        f"{group.label}, calibration error {curve.error:.3f}.",
        dots=True,
    )


def _share(one: Estimate) -> str:
    """A share with its interval, in percent."""
    if one.value is None:
        return f"– ({one.why})" if one.why else "–"
    if one.low is None or one.high is None:
        return f"{percent(one.value)} (no interval: {one.why})" if one.why else percent(one.value)
    return f"{percent(one.value)} ({100 * one.low:.1f} to {100 * one.high:.1f})"


def _number(one: Estimate) -> str:
    """An area with its interval."""
    if one.value is None:
        return f"– ({one.why})" if one.why else "–"
    if one.low is None or one.high is None:
        return f"{one.value:.4f} (no interval: {one.why})" if one.why else f"{one.value:.4f}"
    return f"{one.value:.4f} ({one.low:.3f} to {one.high:.3f})"
