"""The numbers of classifiers on the page: what each measure is, with its interval; each class; the
ROC curve and the calibration.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from softless.evaluation.evaluate import Evaluation, evaluated
from softless.evaluation.metrics import BINS, second_class
from softless.evaluation.spread import Estimate
from softless.report.groups import FEW, Group
from softless.report.html import Html, section, tag
from softless.report.numbers import THIN, percent
from softless.report.squares import Curve, square
from softless.report.tables import table


def draw_numbers(groups: Sequence[Group]) -> Html | None:
    """The section, or None without test images."""
    evaluations = {
        group.label: evaluation
        for group in groups
        if (evaluation := evaluation_of(group)) is not None
    }
    if not evaluations:
        return None
    measured_groups = [group for group in groups if group.label in evaluations]
    seeds = " of the first seed" if any(len(group.runs) > 1 for group in groups) else ""
    parts = [
        table(
            *_measures(measured_groups, evaluations),
            caption=f"Measures of the test images{seeds}",
            class_="plain numbers",
        )
    ]
    if len(measured_groups) <= FEW:
        parts.append(_charts(measured_groups, evaluations))
        parts += [
            table(
                *_classes(evaluations[group.label]),
                caption=f"Classes{seeds}: {group.label}",
                class_="plain numbers",
            )
            for group in measured_groups
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
    groups: Sequence[Group], evaluations: Mapping[str, Evaluation]
) -> tuple[list[object], list[list[object]]]:
    columns = [_column(evaluations[group.label]) for group in groups]
    names = list(dict.fromkeys(name for column in columns for name in column))
    head: list[object] = [
        "",
        *(
            tag("span", tag("span", class_=f"swatch {group.colour}"), group.label)
            for group in groups
        ),
    ]
    return head, [[name, *(column.get(name, "–") for column in columns)] for name in names]


def _column(evaluation: Evaluation) -> dict[str, str]:
    """Of one model, in the order of the table."""
    m, overall = evaluation.metrics, evaluation.details.overall
    low, high = evaluation.interval
    commonest = evaluation.classes[int(m.confusion.sum(1).argmax())]
    rows = {
        "accuracy": _share(Estimate(m.top1, low, high)),
        f"always the commonest class ({commonest})": percent(m.commonest),
        "chance": percent(m.chance),
        "balanced accuracy": _share(overall["balanced_accuracy"]),
        "AUC" if len(evaluation.classes) == 2 else "AUC, mean of one against the rest": _number(
            overall["auc"]
        ),
    }
    point = evaluation.operating
    if point is not None:
        rows |= {
            f"threshold for {point.positive}, chosen on validation images": (
                f"{point.threshold:.3f}"
            ),
            "sensitivity there": _share(point.sensitivity),
            "specificity there": _share(point.specificity),
        }
    return {
        **rows,
        "Brier score": f"{m.brier:.4f}",
        "calibration error": f"{m.calibration.error:.4f}",
    }


def _classes(evaluation: Evaluation) -> tuple[list[object], list[list[object]]]:
    by_class = evaluation.details.of_class
    head: list[object] = ["class", "images", "precision", "recall", "AUC against the rest"]
    rows = [
        [
            name,
            images,
            _share(by_class["precision"][index]),
            _share(by_class["recall"][index]),
            _number(by_class["auc"][index]),
        ]
        for index, (name, images) in enumerate(
            zip(evaluation.classes, evaluation.metrics.confusion.sum(1).tolist(), strict=True)
        )
    ]
    return head, rows


def _charts(groups: Sequence[Group], evaluations: Mapping[str, Evaluation]) -> Html:
    two = len(groups[0].first.classes) == 2
    positive = groups[0].first.classes[-1]
    drawn = []
    if two and all(evaluations[group.label].metrics.auc is not None for group in groups):
        curves = [_roc(group, evaluations[group.label]) for group in groups]
        note = (
            "The ring is the threshold that validation images chose."
            if any(curve.ring for curve in curves)
            else ""
        )
        drawn.append(
            square(
                "ROC curve", f"1 {chr(8722)} specificity", "sensitivity", curves, "roc", note=note
            )
        )
    curves = [_calibration(group, evaluations[group.label]) for group in groups]
    across, upwards = (
        (f"probability of {positive}", f"share of {positive}")
        if two
        else ("how sure the answer is", "share that is right")
    )
    note = f"{BINS} bins of one width; on the dashed line probabilities are what happens."
    drawn.append(square("Calibration", across, upwards, curves, "calibration", note=note))
    return tag("div", drawn, class_="charts squares")


def _roc(group: Group, evaluation: Evaluation) -> Curve:
    """Every threshold between two probabilities, from none to all answered with the second
    class.
    """
    chances, positive = second_class(evaluation.logits), evaluation.targets == 1
    values, value_index = np.unique(-chances, return_inverse=True)
    up, down = (
        np.bincount(value_index, weights=side, minlength=len(values)).cumsum()
        for side in (positive, ~positive)
    )
    points = [(0.0, 0.0), *zip((down / down[-1]).tolist(), (up / up[-1]).tolist(), strict=True)]
    point, area = evaluation.operating, evaluation.details.overall["auc"]
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


def _calibration(group: Group, evaluation: Evaluation) -> Curve:
    curve = evaluation.metrics.calibration
    points = [
        (float(sure), float(frequency))
        for sure, frequency in zip(curve.sure, curve.right, strict=True)
        if not np.isnan(sure)
    ]
    return Curve(
        group.label,
        group.colour,
        points,
        f"{group.label}, calibration error {curve.error:.3f}.",
        dots=True,
    )


def _share(estimate: Estimate) -> str:
    """A share with its interval, in percent."""
    if estimate.value is None:
        return f"– ({estimate.why})" if estimate.why else "–"
    if estimate.low is None or estimate.high is None:
        return (
            f"{percent(estimate.value)} (no interval: {estimate.why})"
            if estimate.why
            else percent(estimate.value)
        )
    return f"{percent(estimate.value)} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def _number(estimate: Estimate) -> str:
    """An area with its interval."""
    if estimate.value is None:
        return f"– ({estimate.why})" if estimate.why else "–"
    if estimate.low is None or estimate.high is None:
        return (
            f"{estimate.value:.4f} (no interval: {estimate.why})"
            if estimate.why
            else f"{estimate.value:.4f}"
        )
    return f"{estimate.value:.4f} ({estimate.low:.3f} to {estimate.high:.3f})"
