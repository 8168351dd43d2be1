"""The first screen: one sentence that says what came out, and a card for each model and each
difference.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from softless.report.groups import FEW, Group
from softless.report.html import Html, tag
from softless.report.intervals import Strip, axis, draw
from softless.report.numbers import MINUS, THIN, duration, percent, points
from softless.report.statistics import ONE_SEED, ShareEstimate, accuracy, agreement, difference
from softless.report.tables import table


def headline(groups: Sequence[Group]) -> Html:
    """The verdict and, below it, a card for each model and for each difference to the last one."""
    estimates = [accuracy(group) for group in groups]
    base = groups[-1]
    differences = [
        (group, estimate)
        for group in groups[:-1]
        if (estimate := difference(group, base)) is not None
    ]
    sentence = tag("p", verdict(groups, estimates, differences), class_="verdict-line")
    if len(groups) > FEW:
        return tag("div", sentence, _ranking(groups, estimates, differences))
    cards = [*_accuracy_cards(groups, estimates), *_difference_cards(differences, base)]
    return tag("div", sentence, tag("div", cards, class_="cards"))


def verdict(
    groups: Sequence[Group],
    estimates: Sequence[ShareEstimate | None],
    differences: Sequence[tuple[Group, ShareEstimate]],
) -> str:
    """What came out, in one or two sentences that claim no more than the intervals allow."""
    measured = [
        (group, estimate) for group, estimate in zip(groups, estimates, strict=True) if estimate
    ]
    if not measured:
        return (
            "There is no test split: what follows was measured on validation images, which "
            "also chose the best epoch."
        )
    if len(measured) > FEW:
        return _range(measured, differences, groups[-1])
    (first, share), *remaining = measured
    text = f"{first.label} gets {percent(share.value, 2)} of the test images right"
    text += (
        "".join(f", {group.label} {percent(estimate.value, 2)}" for group, estimate in remaining)
        + "."
    )
    text += "".join(_compared(group, groups[-1], estimate) for group, estimate in differences)
    if differences and min(len(group.runs) for group in groups) == 1:
        text += ONE_SEED
    return text


def _range(
    measured: Sequence[tuple[Group, ShareEstimate]],
    differences: Sequence[tuple[Group, ShareEstimate]],
    base: Group,
) -> str:
    """The ends of a long list, and which differences to the last one are more than chance."""
    ordered = sorted(measured, key=lambda group_estimate: group_estimate[1].value)
    (low, low_estimate), (high, high_estimate) = ordered[0], ordered[-1]
    text = (
        f"Test accuracy lies between {percent(low_estimate.value, 2)} ({low.label}) and "
        f"{percent(high_estimate.value, 2)} ({high.label})."
    )
    apart = [
        (group, estimate)
        for group, estimate in differences
        if not estimate.low <= 0 <= estimate.high
    ]
    for words, sign in (("ahead of", 1), ("behind", -1)):
        names = [group.label for group, estimate in apart if sign * estimate.value > 0]
        if names:
            text += f" {_and(names)} {'is' if len(names) == 1 else 'are'} {words} {base.label}."
    if differences and len(apart) < len(differences):
        rest = "the others'" if apart else "every"
        text += (
            f" The 95{THIN}% interval of {rest} difference to {base.label} contains zero: no "
            f"winner{' there' if apart else ''}."
        )
    if min(len(group.runs) for group, _ in measured) == 1:
        text += ONE_SEED
    return text


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _ranking(
    groups: Sequence[Group],
    estimates: Sequence[ShareEstimate | None],
    differences: Sequence[tuple[Group, ShareEstimate]],
) -> Html:
    """A line for each model, in the order given: its accuracy on one axis for all, and its
    difference to the last.
    """
    strips = [
        _accuracy_strip(group, estimate)
        for group, estimate in zip(groups, estimates, strict=True)
        if estimate
    ]
    tick_values = axis(strips) if strips else []
    to_base = {group.label: estimate for group, estimate in differences}
    rows = []
    for number, (group, estimate) in enumerate(zip(groups, estimates, strict=True)):
        name = tag("span", tag("span", class_=f"swatch {group.colour}"), group.label)
        apart = to_base.get(group.label)
        rows.append([
            name,
            percent(estimate.value, 2) if estimate else "–",
            draw(_accuracy_strip(group, estimate), tick_values, f"strip-{number}")
            if estimate
            else "–",
            f"{points(apart.value, 2)} ({points(apart.low)} to {points(apart.high)})"
            if apart
            else "–",
            group.best_epochs,
        ])
    seeds = len(groups[0].seeds)
    head = [
        "",
        "test accuracy",
        f"95{THIN}% interval, seeds",
        f"points to {groups[-1].label} (95{THIN}% interval)",
        "best epoch",
    ]
    return table(
        head, rows, caption=f"Means over {seeds} seed{'s' * (seeds > 1)}", class_="plain ranking"
    )


def _compared(group: Group, base: Group, estimate: ShareEstimate) -> str:
    if estimate.low <= 0 <= estimate.high:
        span = f"{points(estimate.low)} to {points(estimate.high)}"
        return (
            f" The difference of {group.label} to {base.label} is {points(estimate.value, 2)} "
            f"points, and its 95{THIN}% "
            f"interval, {span}, contains zero: no winner."
        )
    ahead, behind = (group, base) if estimate.value > 0 else (base, group)
    ends = sorted((abs(estimate.low), abs(estimate.high)))
    return (
        f" {ahead.label} is ahead of {behind.label} by {100 * abs(estimate.value):.2f} points "
        f"(95{THIN}% interval {100 * ends[0]:.1f} to {100 * ends[1]:.1f})."
    )


def _accuracy_cards(
    groups: Sequence[Group], estimates: Sequence[ShareEstimate | None]
) -> list[Html]:
    measured = [
        (group, estimate) for group, estimate in zip(groups, estimates, strict=True) if estimate
    ]
    strips = [_accuracy_strip(group, estimate) for group, estimate in measured]
    tick_values = axis(strips) if strips else []
    cards = []
    for number, ((group, estimate), strip) in enumerate(zip(measured, strips, strict=True)):
        cards.append(
            tag(
                "article",
                tag("h3", tag("span", class_=f"swatch {group.colour}"), group.label),
                tag("p", f"{100 * estimate.value:.2f}", tag("span", f"{THIN}%"), class_="big"),
                tag(
                    "p",
                    f"test accuracy, 95{THIN}% interval {100 * estimate.low:.1f} to "
                    f"{100 * estimate.high:.1f}",
                    class_="under",
                ),
                draw(strip, tick_values, f"strip-{number}"),
                _facts(group),
                class_="card",
            )
        )
    return cards or [_validation_card(group) for group in groups]


def _accuracy_strip(group: Group, estimate: ShareEstimate) -> Strip:
    seeds = (
        [float(run.predictions.correct.mean()) for run in group.runs if run.predictions]
        if len(group.runs) > 1
        else []
    )
    text = (
        f"{group.label}: {percent(estimate.value)}, 95 % interval {percent(estimate.low)} to "
        f"{percent(estimate.high)} ({estimate.how})"
    )
    if seeds:
        text += "; seeds " + ", ".join(percent(value) for value in seeds)
    return Strip(text, group.colour, estimate.value, estimate.low, estimate.high, seeds)


def _difference_cards(
    differences: Sequence[tuple[Group, ShareEstimate]], base: Group
) -> list[Html]:
    strips = [
        Strip(
            f"{group.label} minus {base.label}: {points(estimate.value)} points, 95 % interval "
            f"{points(estimate.low)} to {points(estimate.high)} ({estimate.how})",
            group.colour,
            estimate.value,
            estimate.low,
            estimate.high,
            zero=True,
        )
        for group, estimate in differences
    ]
    tick_values = axis(strips) if strips else []
    return [
        tag(
            "article",
            tag("h3", f"{group.label} {MINUS} {base.label}"),
            tag("p", points(estimate.value, 2), tag("span", " points"), class_="big"),
            tag(
                "p",
                f"95{THIN}% interval {points(estimate.low)} to {points(estimate.high)}",
                class_="under",
            ),
            draw(strip, tick_values, f"difference-{number}"),
            _pairs(group, base),
            tag("p", estimate.how, class_="how"),
            class_="card difference",
        )
        for number, ((group, estimate), strip) in enumerate(zip(differences, strips, strict=True))
    ]


def _pairs(group: Group, base: Group) -> Html | None:
    counted = agreement(group, base)
    if counted is None:
        return None
    rows: list[tuple[str, Any]] = [
        (f"only {group.label} right", counted.only_first),
        (f"only {base.label} right", counted.only_second),
        ("both wrong", counted.neither),
    ]
    if len(counted.by_seed) > 1:
        rows.append(("by seed", ", ".join(points(value) for _, value in counted.by_seed)))
    return _listed(rows)


def _listed(rows: Sequence[tuple[str, Any]]) -> Html:
    return tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in rows])


def _facts(group: Group) -> Html:
    tests = [run.result.get("test") or {} for run in group.runs]
    rows = (
        [
            ("always the commonest class", percent(share)),
            ("chance", percent(1 / len(group.first.classes))),
        ]
        if (share := _commonest(group)) is not None
        else []
    )
    for key, name in (
        ("balanced_accuracy", "balanced accuracy"),
        ("auc", "AUC (one against the rest)"),
    ):
        values = [test[key] for test in tests if test.get(key) is not None]
        if values:
            mean = sum(values) / len(values)
            rows.append((name, percent(mean) if key != "auc" else f"{mean:.4f}"))
    seeds = ", ".join(map(str, group.seeds))
    rows.append(("seeds" if len(group.seeds) > 1 else "seed", seeds))
    rows.append(("best epoch", group.best_epochs))
    rows.append((
        "training",
        duration(sum(run.result["seconds"] for run in group.runs) / len(group.runs))
        + (" a run" if len(group.runs) > 1 else ""),
    ))
    return _listed(rows)


def _commonest(group: Group) -> float | None:
    """What always answering the class that is commonest among the images gets right: of the test
    images, or of those of validation.
    """
    answers = group.first.predictions
    if answers is not None:
        return float(np.bincount(answers.targets).max() / len(answers.targets))
    return (group.first.result.get("val") or {}).get("commonest")


def _validation_card(group: Group) -> Html:
    value = group.first.result.get("val", {}).get("top1")
    return tag(
        "article",
        tag("h3", tag("span", class_=f"swatch {group.colour}"), group.label),
        tag("p", percent(value), class_="big"),
        tag("p", "validation accuracy: no test split", class_="under"),
        _facts(group),
        class_="card",
    )
