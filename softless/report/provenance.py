"""Versions, machine, folders, and how each number on the page came about."""

from collections.abc import Sequence
from typing import Any

from softless.evaluation.evaluate import precision_of
from softless.experiment.candidates import described
from softless.experiment.measures import MEASURES
from softless.experiment.started import line_of
from softless.report.groups import Group
from softless.report.html import Html, tag
from softless.report.places import shortened_words
from softless.report.tables import table

COUNTED = (
    "Parameters, multiply-adds and exponentials are counted by running the model on one "
    "image, not estimated."
)


def draw_provenance(groups: Sequence[Group], method: Sequence[str]) -> Html:
    """`method` says how the measures of the task came about."""
    return tag(
        "div",
        tag("div", _method(groups, method), _machine(groups), class_="columns"),
        _folders(groups),
    )


def _method(groups: Sequence[Group], method: Sequence[str]) -> Html:
    first = groups[0].first
    metric = MEASURES[first.recipe.metric].best
    averaged = (
        ", of the raw or the averaged weights, whichever are better,"
        if first.recipe.ema_evaluate
        else ""
    )
    chosen = (
        "The weights are those of the last epoch"
        if metric == MEASURES["last"].best
        else f"The best epoch is the one with the {metric}{averaged} on validation images"
    )
    precise = sorted({precision_of(group.first.recipe.amp) for group in groups})
    sentences = [
        f"{chosen}. The test split is read once, at the end of each run.",
        (
            f"Answers are computed in {' and '.join(precise)}, as `softless eval` and `softless "
            "predict` compute them."
        ),
        COUNTED,
        *_started(groups),
        *_fitted(groups),
        *_rising(groups),
        *_ended(groups),
    ]
    return tag(
        "div",
        tag("h3", "How it was measured"),
        tag("ul", [tag("li", text) for text in (*sentences, *method)]),
    )


def _started(groups: Sequence[Group]) -> list[str]:
    """Which runs started from weights, and what was done to them."""
    return [
        f"{group.label} starts {line}."
        for group in groups
        if (line := line_of(group.first.started))
    ]


def _fitted(groups: Sequence[Group]) -> list[str]:
    """What of the recipe was changed so that the run is long enough for its data."""

    def written(value: Any) -> str:
        return f"{value:.6g}" if isinstance(value, float) else str(value)

    changes = {
        group.label: ", ".join(
            f"{name} {written(value)}" for name, value in group.first.fitted.items()
        )
        for group in groups
    }
    same = set(changes.values())
    if len(same) == 1:
        return [f"The run was fitted to the data: {change}." for change in same if change]
    return [
        f"The run of {label} was fitted to the data: {change}."
        for label, change in changes.items()
        if change
    ]


def _rising(groups: Sequence[Group]) -> list[str]:
    """Which models would reach more in a longer run."""
    return [
        f"{group.label} was still rising: the last quarter of its epochs added "
        f"{described(float(group.first.result['gained']), str(group.first.result['metric']))} on "
        "validation images."
        for group in groups
        if group.first.result.get("rising")
    ]


def _ended(groups: Sequence[Group]) -> list[str]:
    """Which runs were ended before their last epoch, by what, and after how many epochs."""
    return [
        f"{group.label}, seed {run.seed}, was ended by {run.result['ended_by']} after "
        f"{run.result['epochs']} of "
        f"{run.result['planned']} epochs."
        for group in groups
        for run in group.runs
        if run.result.get("ended_by")
    ]


def _machine(groups: Sequence[Group]) -> Html:
    runs = [run for group in groups for run in group.runs]
    rows: dict[str, Any] = {}
    for name in dict.fromkeys(name for run in runs for name in (*run.versions, *run.machine)):
        values = {str({**run.versions, **run.machine}.get(name)) for run in runs}
        rows[name] = ", ".join(sorted(values))
    rows = _begun(groups) | rows
    listed = [tag("div", tag("dt", name), tag("dd", value)) for name, value in rows.items()]
    return tag("div", tag("h3", "Command, versions and machine"), tag("dl", listed, class_="facts"))


def _begun(groups: Sequence[Group]) -> dict[str, Any]:
    """Command, date and commit of the first run; nothing of runs of an older softless."""
    runs = [run for group in groups for run in group.runs if run.provenance]
    if not runs:
        return {}
    provenance = {name: str(runs[0].provenance[name]) for name in ("command", "date", "commit")}
    provenance["command"] = shortened_words(provenance["command"])
    provenance["date"] = provenance["date"].replace("T", " ").replace("+00:00", " UTC")
    return {
        name: tag("code", value) if name == "command" else value
        for name, value in provenance.items()
    }


def _folders(groups: Sequence[Group]) -> Html:
    rows: list[list[Any]] = []
    for group in groups:
        for run in group.runs:
            test = run.result.get("test") or {}
            images_seen = f"{test['seen']} of {test['expected']}" if "seen" in test else "–"
            rows.append([
                tag("code", run.folder.name),
                group.label,
                run.seed,
                run.result["epochs"],
                images_seen,
            ])
    head = ["run folder", "model", "seed", "epochs", "test images seen"]
    return table(head, rows, caption="Runs on this page")
