"""The measures of a classification, by the names that they have in the files of a run."""

from softless.experiment.measure import Measure

MEASURES = {
    "top1": Measure("top-1", "highest accuracy", percent=True),
    "balanced_accuracy": Measure("balanced", "highest balanced accuracy", percent=True),
    "auc": Measure("AUC", "highest AUC"),
}
