"""All folds together: one table of answers, each slide by the run that did not know its patient, and
the numbers of all patients.

A run has its own scale of probabilities, so an area over all patients is a little below the mean over
the folds; both are told. Sensitivity and specificity are of each fold's own threshold, which its
validation patients chose.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from softless.errors import DataError
from softless.evaluation.details import share
from softless.evaluation.patients import PatientEvaluation
from softless.experiment.files import read_result
from softless.experiment.folder import RESULT
from softless.models.durable import write_text
from softless.tasks.bags.measure import PREDICTIONS, read_predictions


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
    per_patient = read_predictions(folder / PREDICTIONS).per_patient()
    at = _at_thresholds(runs) if isinstance(per_patient, PatientEvaluation) else {}
    lines = [f"all folds together\n{per_patient}"]
    lines += [f"  {name} at each fold's own threshold  {value}" for name, value in at.items()]
    return {
        **per_patient.to_dict(),
        **{name: value.value for name, value in at.items()},
        "at_own_thresholds": {name: value.interval for name, value in at.items()},
        "text": "\n".join(lines),
    }


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"{path} cannot be read: train that fold anew") from error


def _at_thresholds(runs: Sequence[Path]) -> dict[str, Any]:
    """Sensitivity and specificity over all patients, each answered at the threshold of its fold."""
    counts = np.zeros(4, dtype=int)
    for run in runs:
        test = read_result(run / RESULT).get("test") or {}
        points = test.get("at_threshold") or {}
        if len(points) != 1:
            return {}
        (point,) = points.values()
        counts += [point[name] for name in ("found", "missed", "passed", "called")]
    found, missed, passed, called = map(int, counts)
    return {
        "sensitivity": share(found, found + missed, "nobody has the class"),
        "specificity": share(passed, passed + called, "everybody has the class"),
    }
