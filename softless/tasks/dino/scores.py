"""The measures of self-supervision, by the names that they have in the files of a run."""

from softless.experiment.measure import Measure

MEASURES = {
    "knn": Measure("20-NN", "highest 20-NN accuracy", percent=True),
    "linear": Measure("linear", "highest linear accuracy", percent=True),
    "spread": Measure("spread of features", "widest spread of features"),
    "last": Measure("epoch", "last epoch"),
}
