"""A line of log.jsonl: an epoch's scores on the validation split, of the raw weights and of their
average.

Both are measured each epoch where `ema_evaluate` asks for it, and the pair (epoch, weights) with
the best value is kept. Lines of an older softless have no `weights`: there the average alone was
chosen from.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from softless.experiment.epochs import COUNTED
from softless.experiment.measures import MEASURES

AVERAGED, RAW = "averaged", "raw"
KEYS = {AVERAGED: "val_ema", RAW: "val"}  # of a line; in the order in which ties are decided

CHOSEN = ("threshold", "thresholds")  # what validation chooses beside the epoch

Candidate = dict[str, Any]  # epoch, weights, metric, value and loss: what a kept epoch is known by


def unsaid(*, ema_evaluate: bool) -> str:
    """Which weights a run of an older softless kept, which does not say: the average alone stood,
    where it was measured.
    """
    return AVERAGED if ema_evaluate else RAW


def measured(line: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The scores by kind of weights, among those that the run chooses from."""
    scores = {kind: line[key] for kind, key in KEYS.items() if key in line}
    return scores if "weights" in line or len(scores) == 1 else {AVERAGED: scores[AVERAGED]}


def candidates(line: Mapping[str, Any], metric: str) -> list[Candidate]:
    """What this epoch offers to be kept."""
    return [
        {
            "epoch": line["epoch"],
            **COUNTED,
            "weights": kind,
            "metric": metric,
            "value": line["epoch"] if metric == "last" else scores.get(metric),
            "loss": scores.get("loss", 0.0),
            **{name: scores[name] for name in CHOSEN if name in scores},
        }
        for kind, scores in measured(line).items()
    ]


def best_of(line: Mapping[str, Any], metric: str) -> Candidate:
    """The better of an epoch's candidates; the first where none is finite."""
    best, *rest = candidates(line, metric)
    for candidate in rest:
        if better(candidate, best):
            best = candidate
    return best


def better(new: Candidate, old: Candidate | None) -> bool:
    """Whether a candidate beats the best so far. What is not finite never wins.

    Equal values go to averaged weights, then to the lower loss: on a few hundred validation images
    several epochs reach the same accuracy, and these are the surer. Tasks that measure no loss in
    validation keep the earlier epoch.
    """
    if not finite(new):
        return False
    return old is None or not finite(old) or rank(new) > rank(old)


def finite(candidate: Candidate) -> bool:
    """Whether a candidate's value and loss are numbers."""
    return all(
        candidate[key] is not None and math.isfinite(candidate[key]) for key in ("value", "loss")
    )


def rank(candidate: Candidate) -> tuple[float, bool, float]:
    """The better of two candidates has the larger."""
    sign = 1.0 if MEASURES[candidate["metric"]].higher else -1.0
    return sign * candidate["value"], candidate["weights"] == AVERAGED, -candidate["loss"]


def gain(lines: Sequence[Mapping[str, Any]], metric: str) -> float | None:
    """What the last quarter of the epochs added to the best value of a measure, positive where it
    became better.

    None: fewer than four epochs have a value.
    """
    sign = 1.0 if MEASURES[metric].higher else -1.0
    values = [
        sign * candidate["value"] for line in lines if finite(candidate := best_of(line, metric))
    ]
    if len(values) < 4:
        return None
    cut = len(values) - len(values) // 4
    return max(values) - max(values[:cut])


def still_rising(lines: Sequence[Mapping[str, Any]], metric: str) -> bool:
    """Whether the last quarter added a point of a share, or a hundredth of another measure: a
    longer run would reach more.
    """
    added = gain(lines, metric)
    if added is None:
        return False
    best = max(
        abs(candidate["value"]) for line in lines if finite(candidate := best_of(line, metric))
    )
    return added >= (0.01 if MEASURES[metric].percent else 0.01 * best) and added > 0


def described(added: float, metric: str) -> str:
    """A gain for people."""
    measure = MEASURES[metric]
    return (
        f"{100 * added:+.1f} points of {measure.title}"
        if measure.percent
        else f"{added:+.3g} of {measure.title}"
    )
