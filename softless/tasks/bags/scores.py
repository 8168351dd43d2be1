"""The measures of bags, by the names that they have in the files of a run; those of classifiers are
theirs.
"""

from softless.experiment.measure import Measure

MEASURES = {"concordance": Measure("concordance", "highest concordance")}
