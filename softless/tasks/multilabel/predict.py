"""The labels of images, several each, and where the model looked: a table and saliency maps."""

import numpy as np

from softless.data.samples import Samples
from softless.evaluation.run import LoadedRun
from softless.prediction.results import Results
from softless.prediction.setting import Setting
from softless.tasks.classification.predict import Predictions, Words, answered
from softless.tasks.multilabel.settings import MultilabelSpec


def predict(
    loaded: LoadedRun, samples: Samples, out: Results, setting: Setting, *, overlays: bool
) -> Predictions:
    """Write `predictions.csv` (file, the labels from the run's threshold on, probability of each
    label) and, with overlays, `saliency/NAME.png`.

    Raises:
        UsageError: the model's output is not finite, or the folder cannot be written.
    """
    return answered(loaded, samples, out, setting, words_of(loaded), overlays=overlays)


def words_of(loaded: LoadedRun) -> Words:
    """The labels from the run's threshold on."""
    threshold = (loaded.recipe.multilabel or MultilabelSpec()).threshold

    def labels(row: np.ndarray) -> list[str]:
        return [name for name, share in zip(loaded.classes, row, strict=True) if share >= threshold]

    def title(row: np.ndarray) -> str:
        parts = [
            f"{name}, {share:.0%}"
            for name, share in zip(loaded.classes, row, strict=True)
            if share >= threshold
        ]
        return "; ".join(parts) or "no label"

    return Words(probabilities=lambda logits: logits.sigmoid(), labels=labels, title=title)
