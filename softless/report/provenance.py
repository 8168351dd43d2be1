"""Versions, machine, folders, and how each number on the page came about."""

from collections.abc import Sequence
from typing import Any

from softless.report.groups import Group
from softless.report.html import Html, table, tag

METRICS = {
    "top1": "highest accuracy",
    "balanced_accuracy": "highest balanced accuracy",
    "auc": "highest AUC",
    "loss": "lowest loss",
}


def draw_provenance(groups: Sequence[Group]) -> Html:
    return tag("div", tag("div", _method(groups), _machine(groups), class_="columns"), _folders(groups))


def _method(groups: Sequence[Group]) -> Html:
    first = groups[0].first
    metric = METRICS[str(first.recipe.get("metric", "top1"))]
    averaged = " (of the averaged weights)" if first.recipe.get("ema_evaluate") else ""
    said = [
        f"The best epoch is the one with the {metric}{averaged} on validation images. The test split is read once, at the end of each run.",
        "The interval of a single run's accuracy is Wilson's at 95 %. Over several seeds it is a bootstrap that draws seeds and images together.",
        "Parameters, multiply-adds and exponentials are counted by running the model on one image, not estimated.",
        "Query and key maps are the l2 norm over channels of each token of q^ and k^ in the last attention layer, rescaled to 0..1 per image.",
        "They show where queries and keys are large, not why an answer was given.",
    ]
    if len(groups) > 1:
        said.insert(
            2,
            "The interval of a difference is a paired bootstrap: both models' answers to the same images, under the same seeds, are drawn together.",
        )
    return tag("div", tag("h3", "How it was measured"), tag("ul", [tag("li", text) for text in said]))


def _machine(groups: Sequence[Group]) -> Html:
    runs = [run for group in groups for run in group.runs]
    rows: dict[str, Any] = {}
    for name in dict.fromkeys(name for run in runs for name in (*run.versions, *run.machine)):
        values = {str({**run.versions, **run.machine}.get(name)) for run in runs}
        rows[name] = ", ".join(sorted(values))
    listed = [tag("div", tag("dt", name), tag("dd", value)) for name, value in rows.items()]
    return tag("div", tag("h3", "Versions and machine"), tag("dl", listed, class_="facts"))


def _folders(groups: Sequence[Group]) -> Html:
    rows: list[list[Any]] = []
    for group in groups:
        for run in group.runs:
            test = run.result.get("test") or {}
            seen = f"{test['seen']} of {test['expected']}" if "seen" in test else "–"
            rows.append([tag("code", run.folder.name), group.label, run.seed, run.result["epochs"], seen])
    head = ["run folder", "model", "seed", "epochs", "test images seen"]
    return table(head, rows, caption="Runs on this page")
