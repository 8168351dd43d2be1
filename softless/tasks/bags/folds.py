"""All folds together: one table of answers, each slide by the run that did not know its patient, and
the numbers of all patients.

A run has its own scale of probabilities, so an area over all patients is a little below the mean over
the folds; both are told. Sensitivity and specificity are of each fold's own threshold, which its
validation patients chose.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from softless.errors import DataError
from softless.evaluation.details import share
from softless.evaluation.patients import PatientEvaluation
from softless.evaluation.spread import Estimate
from softless.experiment.files import read_result
from softless.experiment.folder import RECIPE, REPORT, RESULT
from softless.experiment.measures import MEASURES
from softless.experiment.recipe import read_stored
from softless.models.durable import write_text
from softless.report.document import document
from softless.report.html import Html, section, tag
from softless.report.numbers import percent
from softless.report.tables import table
from softless.tasks.bags.drawing import (
    NO_DEVICE,
    Answered,
    card,
    numbers,
    sentence,
    warning,
)
from softless.tasks.bags.measure import PREDICTIONS, read_predictions
from softless.tasks.classification.confusion import draw_counts


def together(folder: Path, runs: Sequence[Path]) -> dict[str, Any]:
    """Write predictions.csv of all folds, and measure it.

    Args:
        folder: of the folds.
        runs: folders of their runs, finished.

    Raises:
        DataError: answers of a run are missing, or of other classes than the first one's.
    """
    texts = [_text(run / PREDICTIONS) for run in runs]
    heads = {text.partition("\n")[0] for text in texts}
    if len(heads) != 1:
        raise DataError(f"the folds in {folder} have answers of several kinds: train them anew")
    rows = [text.partition("\n")[2] for text in texts]
    write_text(folder / PREDICTIONS, "".join([*heads, "\n", *rows]))
    stored = read_predictions(folder / PREDICTIONS)
    per_patient, results = stored.per_patient(), [read_result(run / RESULT) for run in runs]
    points = _counts(results) if isinstance(per_patient, PatientEvaluation) else None
    at = {} if points is None else _at_thresholds(points)
    lines = [f"all folds together\n{per_patient}"]
    lines += [f"  {name} at each fold's own threshold  {value}" for name, value in at.items()]
    name = read_stored(runs[0] / RECIPE).recipe.model.name
    model_answers = Answered(name, "s0", per_patient)
    write_text(folder / REPORT, _page(folder, model_answers, results, points, at))
    return {
        **per_patient.to_dict(),
        **{name: value.value for name, value in at.items()},
        "at_own_thresholds": {name: value.interval for name, value in at.items()},
        "text": "\n".join([*lines, f"page {(folder / REPORT).resolve()}"]),
    }


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"{path} cannot be read: train that fold anew") from error


def _counts(results: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
    """(2, 2) patients of all folds, each answered at the threshold of its fold: rows truth, columns
    answer. None where a fold has no threshold of one class.
    """
    counts = np.zeros((2, 2), dtype=np.int64)
    for result in results:
        points = (result.get("test") or {}).get("at_threshold") or {}
        if len(points) != 1:
            return None
        (point,) = points.values()
        counts += [[point["passed"], point["called"]], [point["missed"], point["found"]]]
    return counts


def _at_thresholds(counts: np.ndarray) -> dict[str, Estimate]:
    """Sensitivity and specificity over all patients."""
    (passed, called), (missed, hits) = counts.tolist()
    return {
        "sensitivity": share(hits, hits + missed, "nobody has the class"),
        "specificity": share(passed, passed + called, "everybody has the class"),
    }


def _page(
    folder: Path,
    model_answers: Answered,
    results: Sequence[Mapping[str, Any]],
    points: np.ndarray | None,
    at: Mapping[str, Estimate],
) -> str:
    """The page of all folds together."""
    outcome = model_answers.outcome
    unit = f"{outcome.units.unit}s"
    facts = [("folds", str(len(results))), *((name, _percent(value)) for name, value in at.items())]
    chosen = (
        "Each was answered by the model of the fold that knew neither it nor its patient. "
        "Accuracies are of the answers as they are."
    )
    head = tag(
        "div",
        warning(),
        tag("p", sentence(model_answers), class_="verdict-line"),
        tag("div", card(model_answers, facts, "strip-0"), class_="cards"),
    )
    sections = [section("result", "Result", head), numbers([model_answers], chosen)]
    if points is not None and isinstance(outcome, PatientEvaluation):
        matrix = draw_counts(
            model_answers.label, model_answers.colour, outcome.classes, points, unit
        )
        lead = "At the threshold of each fold, which its validation patients chose."
        body = tag("div", matrix, class_="matrices")
        sections.append(section("confusion", "Confusion", body, lead=lead))
    sections += [
        section("folds", "Folds", _by_fold(results)),
        section("method", "Method", _method()),
    ]
    subtitle = f"{len(results)} folds · {len(outcome.units.names)} {unit}"
    title = f"{model_answers.label}, all folds of {folder.resolve().name}"
    return document("Softless report", title, subtitle, sections, LINKS)


LINKS = {
    "result": "Result",
    "numbers": "Numbers",
    "confusion": "Confusion",
    "folds": "Folds",
    "method": "Method",
}


def _percent(estimated: Estimate) -> str:
    if estimated.value is None or estimated.low is None or estimated.high is None:
        return "–"
    return f"{percent(estimated.value)} ({100 * estimated.low:.1f} to {100 * estimated.high:.1f})"


def _by_fold(results: Sequence[Mapping[str, Any]]) -> Html:
    tests = [result.get("test") or {} for result in results]
    names = [
        name
        for name in ("auc", "concordance", "balanced_accuracy", "brier", "ece", "loss")
        if any(test.get(name) is not None for test in tests)
    ]
    titles = {
        "brier": "Brier score",
        "ece": "calibration error",
        **{name: measure.title for name, measure in MEASURES.items()},
    }
    head = ["fold", "patients", "slides", *(titles[name] for name in names)]
    rows = [
        [
            number,
            test.get("patients", "–"),
            test.get("slides", "–"),
            *("–" if test.get(name) is None else f"{test[name]:.3f}" for name in names),
        ]
        for number, test in enumerate(tests)
    ]
    return table(head, rows, caption="Each fold on its own test patients", class_="plain numbers")


def _method() -> Html:
    lines = [
        "Probabilities of the slides of a patient are averaged, and patients are what is counted.",
        (
            "Each run has its own scale of probabilities, so the area over all patients is often "
            "a little below the mean over the folds."
        ),
        NO_DEVICE,
    ]
    return tag("ul", [tag("li", line) for line in lines])
