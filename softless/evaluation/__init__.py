"""Measuring trained models: metrics, intervals, and what a run loaded back from its folder is."""

from softless.evaluation.evaluate import Evaluation, evaluate, forward_all
from softless.evaluation.intervals import Interval, bootstrap_mean, paired_bootstrap, wilson
from softless.evaluation.metrics import Metrics, measure
from softless.evaluation.run import LoadedRun
from softless.moved import names_in

__all__ = [
    "Evaluation",
    "Interval",
    "LoadedRun",
    "Metrics",
    "bootstrap_mean",
    "evaluate",
    "forward_all",
    "measure",
    "paired_bootstrap",
    "wilson",
]

__getattr__ = names_in(__name__, {"load_run": "softless.tasks.loaded"})
