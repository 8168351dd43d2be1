"""What the page of distilled runs shows: how often a student answers as its teacher, at the start
and in the end, and the divergence by epoch.
"""

from collections.abc import Sequence
from typing import Any

from softless.experiment.epochs import of_epoch
from softless.experiment.measures import MEASURES
from softless.report.charts import EpochCurve, LineChart
from softless.report.groups import Group
from softless.report.html import Html, section, tag
from softless.report.numbers import duration, plain
from softless.report.tables import table

__all__ = ["SAMPLES", "further", "headline", "method", "samples"]

SAMPLES = "None are shown: the models' answers are held against each other, not against a truth."
ROWS = ("agreement", "cosine", "kl", "top1", "teacher_top1")


def headline(groups: Sequence[Group]) -> Html:
    """A sentence for each student, and a card with its measures."""
    lines = [tag("p", _sentence(group), class_="verdict-line") for group in groups]
    return tag("div", lines, tag("div", [_card(group) for group in groups], class_="cards"))


def samples(groups: Sequence[Group]) -> Html:
    """How many images were held out."""
    best = _ends(groups[0])[1]
    return tag("p", f"{best['seen']} images were held out and measured after every epoch.")


def further(groups: Sequence[Group]) -> list[Html]:
    """The divergence of all epochs, the start among them."""
    name = "cosine" if groups[0].first.epochs[0]["val"].get("kl") is None else "kl"
    measure = MEASURES[name]
    curves = [
        EpochCurve(
            group.label,
            group.colour,
            [line["val"].get(name) for line in run.epochs],
            faint=number > 0,
            mark=int(run.result["best_epoch"]) if number == 0 else None,
            first=int(run.epochs[0]["epoch"]),
        )
        for group in groups
        for number, run in enumerate(group.runs)
    ]
    chart = LineChart(
        measure.title[:1].upper() + measure.title[1:],
        curves,
        plain,
        plain,
        better="higher" if measure.higher else "lower",
        digits=4,
        note="Epoch 0 is the state before the first step; the ring is the epoch that was kept.",
    )
    head = ["epoch", *(MEASURES[row].title for row in ROWS)]
    body = [
        [line["epoch"], *(_written(line["val"], row) for row in ROWS)]
        for line in groups[0].first.epochs
    ]
    caption = f"{groups[0].label} on held-out images, by epoch"
    return [
        section(
            "teacher",
            "Beside the teacher",
            tag("div", chart.render("teacher-chart"), class_="charts"),
            table(head, body, caption=caption),
        )
    ]


def method(_: Sequence[Group]) -> list[str]:
    """How the measures came about."""
    return [
        (
            "Agreement is the share of held-out images to which both models give the same answer; "
            "the epoch with the highest is kept, of equal ones that with the lower divergence."
        ),
        "The divergence is KL(teacher || student), in nats, of both models' probabilities.",
        "Epoch 0 stands for election with the others, so no run ends below its start.",
    ]


def _ends(group: Group) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measures on held-out images at the start, and of the epoch that was kept."""
    run = group.first
    return run.epochs[0]["val"], of_epoch(run.epochs, int(run.result["best_epoch"]))["val"]


def _sentence(group: Group) -> str:
    start, best = _ends(group)
    name = "cosine" if start.get("agreement") is None else "agreement"
    title, epoch = MEASURES[name].title, int(group.first.result["best_epoch"])
    if epoch == 0:
        return (
            f"{group.label}: no epoch was better than the start, which is kept ({title} "
            f"{_written(start, name)})."
        )
    return (
        f"{group.label}: {title} {_written(best, name)} on held-out images after epoch {epoch}, "
        f"{_written(start, name)} before the first step."
    )


def _card(group: Group) -> Html:
    start, best = _ends(group)
    name = "cosine" if start.get("agreement") is None else "agreement"
    rows = [
        (MEASURES[row].title, f"{_written(start, row)} to {_written(best, row)}")
        for row in ROWS
        if best.get(row) is not None
    ]
    rows += [("training", duration(float(group.first.result["seconds"])))]
    listed = tag("dl", [tag("div", tag("dt", title), tag("dd", value)) for title, value in rows])
    heading = tag("h3", tag("span", class_=f"swatch {group.colour}"), group.label)
    return tag(
        "article",
        heading,
        tag("p", _written(best, name), class_="big"),
        tag("p", MEASURES[name].title, class_="under"),
        listed,
        class_="card",
    )


def _written(scores: dict[str, Any], name: str) -> str:
    value = scores.get(name)
    return "–" if value is None else MEASURES[name].write(value)
