"""Runs that differ in their seed alone are one model; models get a label, a colour and a list of
what sets them apart.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from softless.attention.registry import OPERATORS
from softless.experiment.recipe import as_json
from softless.report.places import is_place, shortened
from softless.report.runs import RunRecord

COLOURS = 14  # of page.css
FEW = 5  # models that are shown side by side; more of them are listed one below the other
# fields no comparison is about
NOT_THE_MODEL = frozenset({"seed", "name", "summary", "threads", "data.workers"})


@dataclass(frozen=True)
class Group:
    """The runs of one model over its seeds, in the order of their seeds."""

    label: str
    colour: str  # CSS class s0, s1, …
    runs: tuple[RunRecord, ...]

    @property
    def first(self) -> RunRecord:
        return self.runs[0]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def best_epochs(self) -> str:
        """The epochs whose weights were kept, and which weights of them, seed by seed."""
        descriptions = [f"{run.result['best_epoch']} ({run.weights} weights)" for run in self.runs]
        return (
            ", ".join(descriptions)
            if self.first.recipe.ema_evaluate
            else ", ".join(description.split()[0] for description in descriptions)
        )


def grouped(runs: Sequence[RunRecord]) -> list[Group]:
    """Groups in the order in which their first run was given, softmax last: it is the one compared
    with.
    """
    by_key: dict[str, list[RunRecord]] = {}
    for run in runs:
        by_key.setdefault(_key(run), []).append(run)
    members = sorted(by_key.values(), key=lambda group: group[0].operator == "softmax")
    labels = _labels([group[0] for group in members])
    return [
        Group(label, f"s{number % COLOURS}", tuple(sorted(group, key=lambda run: run.seed)))
        for number, (label, group) in enumerate(zip(labels, members, strict=True))
    ]


def _key(run: RunRecord) -> str:
    fields = {
        name: value
        for name, value in flat(as_json(run.recipe)).items()
        if name not in NOT_THE_MODEL
    }
    return json.dumps(fields, sort_keys=True)


def _labels(firsts: list[RunRecord]) -> list[str]:
    choices: list[Callable[[RunRecord], str]] = [
        *([_attention_title] if len(set(map(_host, firsts))) == 1 else [_model_title]),
        lambda run: run.model,
        lambda run: run.folder.name,
        lambda run: str(run.folder.resolve()),
    ]
    for choose in choices:
        labels = shortened([choose(run) for run in firsts])
        if len(set(labels)) == len(labels):
            return labels
    return [f"run {number + 1}" for number in range(len(firsts))]


def _attention_title(run: RunRecord) -> str:
    """The operator; the model of networks without attention."""
    return run.model if run.operator == "none" else operator_title(run.operator)


def _host(run: RunRecord) -> str:
    """The model's name without the operator that ours begin with."""
    return run.model.removeprefix(f"{run.operator}_")


def _model_title(run: RunRecord) -> str:
    """Operator and host; the host alone where its attention is its own."""
    operator = run.recipe.model.op or (run.operator if _host(run) != run.model else None)
    return f"{operator_title(operator)} {_host(run)}" if operator else _host(run)


def operator_title(name: str) -> str:
    """The name a paper would print: SimA for sima; softmax stays a common word."""
    return name if name == "softmax" or name not in OPERATORS else OPERATORS[name].title


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted name."""
    out: dict[str, Any] = {}
    for key, value in content.items():
        out |= (
            flat(value, f"{prefix}{key}.")
            if isinstance(value, Mapping) and value
            else {prefix + key: value}
        )
    return out


@dataclass(frozen=True)
class Comparison:
    """Recipe fields: those that differ between the models (value per model, None where one has no
    such field) and those shared.
    """

    differing: dict[str, list[Any]]
    shared: dict[str, Any]


def compare_recipes(groups: Sequence[Group]) -> Comparison:
    """The recipes of the groups field by field; seeds and descriptions left out, paths
    shortened.
    """
    fields = [flat(as_json(group.first.recipe)) for group in groups]
    names = [
        name
        for name in dict.fromkeys(name for recipe in fields for name in recipe)
        if name not in {"seed", "summary"}
    ]
    differing: dict[str, list[Any]] = {}
    shared: dict[str, Any] = {}
    for name in names:
        values = shortened([recipe.get(name) for recipe in fields])
        if all(value == values[0] for value in values):
            shared[name] = values[0]
        else:
            differing[name] = values
    return Comparison(differing, shared)


def without_places(text: Any, groups: Sequence[Group]) -> str:
    """What an error says, the places of the runs and their data in it by their names alone."""
    runs = [run for group in groups for run in group.runs]
    recipes = [path for run in runs for path in (run.recipe.data.path, run.recipe.model.weights)]
    paths = {path for path in recipes if path is not None and is_place(path)}
    paths |= {
        str(folder)
        for run in runs
        for folder in (run.folder, run.folder.resolve())
        if folder.is_absolute()
    }
    message = str(text)
    for path in sorted(paths, key=len, reverse=True):
        message = message.replace(path, PurePath(path).name)
    return message
